"""The demo compiles and runs what it is given, and agrees with the reference."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import patternc as pc
from patternc.cli import FLAGSHIP_DEMO, main

torch = pytest.importorskip("torch")

PATTERNS = [
    FLAGSHIP_DEMO,
    "causal & window(8)",
    "packed",
    "layout(t, 16)",
    "gemma3",
    "heads(causal + topk(s, 2, block=4))",
    "none",
]


@pytest.mark.parametrize("text", PATTERNS)
def test_the_demo_agrees_with_the_reference(text: str) -> None:
    from patternc.runtime.demo import run_demo

    found = run_demo(pc.parse(text), n=48)
    assert found.error < 1e-4
    assert found.backend in ("torch", "triton")
    assert json.loads(json.dumps(found.to_json()))["n"] == 48


def test_the_command() -> None:
    result = CliRunner().invoke(main, ["demo", "--n", "64"])
    assert result.exit_code == 0, result.output
    for wanted in ("k = 0 .. 63", "A window(32)", "plan", "largest difference", "dense reference"):
        assert wanted in result.stdout
    assert CliRunner().invoke(main, ["demo", "--n", "1M"]).exit_code == 2
