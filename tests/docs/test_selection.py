"""docs/SELECTION.md: its Python blocks run, one after the other."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "SELECTION.md").read_text()


def test_python_blocks_run() -> None:
    pytest.importorskip("torch").manual_seed(0)
    namespace: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "SELECTION.md", "exec"), namespace)


def test_links_lead_somewhere() -> None:
    folder = Path(__file__).resolve().parents[2] / "docs"
    assert not [target for target in re.findall(r"\]\(([^)#]+)", PAGE) if not (folder / target).exists()]
