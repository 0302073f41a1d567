"""What the repository's text files may not hold."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATHS = r"(?<![\w.])/(?:work|root|tmp/w|home/\w+)/"
REGISTRIES = (
    r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|(?:extra-)?index-url"  # the user's pip configuration names them
)
SELF = Path(__file__).resolve()


def tracked() -> list[Path]:
    """The files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def text(path: Path) -> str:
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode()


@pytest.mark.parametrize("forbidden", [PATHS, REGISTRIES], ids=["folders of one machine", "registries"])
def test_no_text_file_names(forbidden: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        if path != SELF
        for number, line in enumerate(text(path).splitlines(), 1)
        if re.search(forbidden, line)
    ]
    assert not found, "\n".join(found)
