"""Coverage of a schedule is the hop diameter from its worst starting layer."""

from __future__ import annotations

import math

import pytest

import patternc as pc
from patternc.analysis import coverage as coverage_module
from patternc.analysis.coverage import coverage
from patternc.analysis.verdict import Verdict, bounded, proved, refuted, unknown
from patternc.relation import Pair

GEMMA = "layers(5 * (causal & window(1024)) + causal)"


def test_a_schedule_of_local_and_global_layers() -> None:
    for n in (None, 10**6, 10**9):
        verdict = pc.parse(GEMMA).coverage(n)
        assert (verdict.status, verdict.value, verdict.where) == ("proved", 6, "from layer 0 on")


def test_the_worst_start_need_not_be_the_first_layer() -> None:
    verdict = pc.parse("layers(causal + 3 * (causal & window(2)))").coverage(1000)
    assert (verdict.value, verdict.where) == (4, "from layer 1 on")


def test_one_layer_has_one_start() -> None:
    verdict = pc.parse("causal & window(4096)").coverage(10**6)
    assert (verdict.value, verdict.where) == (245, "")


def test_a_schedule_that_never_connects() -> None:
    verdict = pc.parse("layers(2 * (causal & window(3, dilation=2)) + (causal & stride(4)))").coverage(100)
    assert (verdict.status, verdict.value, verdict.witness) == ("refuted", math.inf, Pair(100, 1, 0))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([proved("", "", value=2), proved("", "", value=5)], ("proved", 5, None, None, "from layer 1 on")),
        (
            [unknown("", ""), refuted("", Pair(2, 1, 0), str, value=math.inf)],
            ("refuted", math.inf, None, None, "from layer 1 on"),
        ),
        ([proved("", "", value=9), unknown("", "")], ("unknown", None, 9, None, "")),
        ([bounded("", 1, 3, ""), proved("", "", value=2)], ("bounded", None, 2, 3, "")),
        ([bounded("", 4, 8, ""), bounded("", 1, 9, "")], ("bounded", None, 4, 9, "")),
    ],
)
def test_what_is_known_of_each_start_is_combined(
    found: list[Verdict], expected: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage_module, "hop_diameter", lambda *_, start_layer, **__: found[start_layer])
    verdict = coverage(pc.parse("layers(causal + full)"), 10)
    assert (verdict.status, verdict.value, verdict.lower, verdict.upper, verdict.where) == expected


def test_long_periods_are_refused() -> None:
    assert coverage(pc.parse("layers(300 * causal + full)"), 10).status == "unknown"
