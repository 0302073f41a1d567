"""README.md stays true: its links, its Python blocks, its commands and its tables."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from patternc.backend import backends
from patternc.language.primitives import PRIMITIVES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_column(title: str) -> list[str]:
    rows = [line for line in section(title).splitlines() if line.startswith("| `")]
    return [re.split(r"(?<!\\)\|", row)[1] for row in rows]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text())
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert not missing


def test_python_blocks_run() -> None:
    pytest.importorskip("torch")
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)


def test_shell_lines_run(tmp_path: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line]
    assert lines
    for line in lines:
        command, *arguments = shlex.split(line)
        assert command == "patternc"
        code = f"import sys; from patternc.cli import main; sys.argv[0] = {command!r}; main()"
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_every_command_is_listed() -> None:
    from patternc.cli import main

    listed = [cell.split()[1].strip("`") for cell in first_column("From the command line")]
    assert sorted(listed) == sorted(main.commands)


def test_every_backend_is_listed() -> None:
    assert sorted(cell.strip(" `") for cell in first_column("Backends")) == sorted(backends())


def test_every_primitive_is_listed() -> None:
    words = set(re.findall(r"`(\w+)", " ".join(first_column("The language"))))
    assert words == PRIMITIVES.keys() | {"where"}


def test_the_error_is_the_real_one() -> None:
    from patternc import PatternError, parse

    with pytest.raises(PatternError) as caught:
        parse("causal & windw(4)")
    shown = "\n".join(f"    {line}" if line else "" for line in str(caught.value).splitlines())
    assert shown in README


def test_the_table_of_the_example_is_the_real_one() -> None:
    """The example's patterns and shares; its own test checks the cosines."""
    from patternc import parse

    rows = re.findall(r"^    (\S.*?)\s{2,}([\d.]+)%\s+[\d.]+$", section("From Python"), re.MULTILINE)
    assert len(rows) == 3
    for expression, share in rows:
        assert f"{parse(expression).nnz(512) / 512**2:.1%}" == f"{share}%"
