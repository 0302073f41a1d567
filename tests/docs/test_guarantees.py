"""docs/GUARANTEES.md stays true: its table, its code, its links and the names that it uses."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, get_args

from patternc.analysis.certificate import Certificate
from patternc.analysis.verdict import Status

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "GUARANTEES.md").read_text("utf-8")


def facts() -> Any:
    spec = importlib.util.spec_from_file_location("facts", ROOT / "tests" / "docs" / "facts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_column(title: str) -> list[str]:
    rows = [line for line in TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0].splitlines() if line.startswith("| ")]
    return [row.split("|")[1].strip(" `") for row in rows[2:]]


def test_the_table_is_current() -> None:
    assert facts().written(TEXT) == TEXT, "run: python tests/docs/facts.py"


def test_the_code_runs() -> None:
    namespace: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(compile(block, "GUARANTEES.md", "exec"), namespace)
    assert namespace["never"].witness is not None


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)", TEXT)
    assert targets
    assert all((ROOT / "docs" / target).exists() for target in targets)


def test_every_status_and_certificate_is_explained() -> None:
    assert first_column("Statuses") == list(get_args(Status))
    assert set(first_column("Certificates")) == {kind.__name__ for kind in get_args(Certificate)} - {"Joint"}
