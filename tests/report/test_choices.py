"""The plans that are listed are those that are chosen from, and what is said of them is what they are."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from rich.console import Console

import patternc as pc
from patternc import backend
from patternc.analysis.members import attentions
from patternc.backend import Request
from patternc.lower.cost import TileCost, work
from patternc.lower.phases import lower
from patternc.lower.plan import Tile, Walk
from patternc.lower.views import Choice
from patternc.relation import IDENTITY, View
from patternc.report.choices import Choices, Time, Times, choices
from patternc.runtime.compile import DEFAULT_REQUEST, Candidate, HeadChoices, candidates, plan_for

STRIDED = "causal & (window(256) | stride(256))"
MIXED = "heads(2 * (causal & (chunk(256) | summary(256, 8))) + (local(512) | global([0])))"
CPU = Request("cpu", "float32", 64, 64, 1000)
REQUESTS = [("triton", DEFAULT_REQUEST), ("gluon", DEFAULT_REQUEST), ("torch", CPU), ("several", DEFAULT_REQUEST)]


class Several:
    """A backend with several tile shapes, the cheapest neither first nor last."""

    name = "several"
    rank = 0
    differentiable = False
    views = True
    splits = True

    def unsupported(self, request: Request) -> list[str]:  # noqa: ARG002
        return []

    def tiles(self, request: Request) -> tuple[TileCost, ...]:
        assert request.length == 0, "the choice may not depend on the length"
        return TileCost(Tile(32, 32), 1, 2, 1), TileCost(Tile(128, 64), 1, 2, 1), TileCost(Tile(64, 64), 1, 2, 1)

    def refused(self, plan: object, request: object) -> list[str]:  # noqa: ARG002
        return []

    def query_tile(self, request: Request) -> Tile:  # noqa: ARG002
        return Tile(16, 64)

    def key_tile(self, request: Request) -> Tile:  # noqa: ARG002
        return Tile(64, 32)

    def joint_tile(self, request: Request) -> None:  # noqa: ARG002
        return None

    def emit(self, plan: object) -> str:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    known = MappingProxyType({**backend.backends(), "several": Several()})
    monkeypatch.setattr(backend, "backends", lambda: known)


def rendered(found: Choices, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(found.render())
    return out.getvalue()


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.parametrize(("name", "request_"), REQUESTS, ids=[name for name, _ in REQUESTS])
@pytest.mark.parametrize("text", ["causal", STRIDED, MIXED, "causal & topk(s, 4)", "none"])
def test_the_first_is_what_runs(text: str, name: str, request_: Request) -> None:
    pattern = pc.parse(text)
    found = candidates(pattern, None, name, request_)
    plan = plan_for(pattern, None, name, request_)
    assert found[0].plan == replace(plan, key_tile=None, keys=(), query_tile=None, queries=(), joint_tile=None, joint=None)
    assert (plan.key_tile is None) == (name == "torch")
    assert name != "several" or plan.query_tile == Tile(16, 64)
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    for one in found:
        assert one.plan.tile == one.unit.tile
        assert one.cost == work(one.plan).cost(one.unit)
    units = backend.backend_named(name).tiles(replace(request_, length=0))
    assert sorted(map(repr, units)) == sorted(repr(one.unit) for one in found)


def test_the_cheapest_is_chosen() -> None:
    found = candidates(pc.parse("causal"), None, "several")
    assert [str(one.plan.tile) for one in found] == ["128x64", "64x64", "32x32"]


@pytest.mark.parametrize(
    ("text", "views"),
    [
        ("causal & window(4096)", []),
        ("causal & topk(s, 4)", []),
        (STRIDED, [(View(stride=256), True)]),
        ("local(512) | global([0])", [(View(few=True), True)]),
        ("causal & (chunk(256) | summary(256, 8))", [(View(period=256, width=8, first=248), True)]),
        ("causal & window(128) & stride(64)", [(View(stride=64), False)]),
        ("global([0]) | stride(9)", [(View(few=True), True), (View(stride=9), True)]),
    ],
)
def test_views_that_were_considered(text: str, views: list[tuple[View, bool]]) -> None:
    for one in candidates(pc.parse(text), None, "several"):
        (heads,) = one.choices
        assert (heads.heads, heads.period) == ((0,), 1)
        assert [(choice.view, choice.taken) for choice in heads.views] == views


@pytest.mark.parametrize("name", ["triton", "torch", "reference"])
@pytest.mark.parametrize("preset", pc.presets())
def test_the_views_taken_are_those_of_the_plan(preset: str, name: str) -> None:
    for pattern, _ in attentions(pc.preset(preset)):
        for one in candidates(pattern, None, name):
            for heads in one.choices:
                groups = [group for group in one.plan.heads if group.heads == heads.heads]
                walks = [phase.view for group in groups for phase in group.phases if isinstance(phase, Walk)]
                assert {choice.view for choice in heads.views if choice.taken} == {v for v in walks if v != IDENTITY}
            assert [heads.heads for heads in one.choices] == list(dict.fromkeys(group.heads for group in one.plan.heads))


def test_json_has_the_same_numbers() -> None:
    pattern = pc.parse(f"heads(({STRIDED}) + (causal & window(128) & stride(64)))")
    found = choices(pattern, "several", DEFAULT_REQUEST)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (data["backend"], data["dtype"], data["head_dim"], data["n"]) == ("several", "bfloat16", 128, 32_768)
    assert data["measured"] is None
    assert [one["chosen"] for one in data["candidates"]] == [True, False, False]
    for one, entry in zip(found.candidates, data["candidates"], strict=True):
        assert (entry["tile"], entry["cost"], entry["plan"]) == (str(one.plan.tile), one.cost, str(one.plan))
        assert entry["ratio"] == pytest.approx(one.cost / found.chosen.cost)
        views = [(heads.heads, c.alone, c.merged, c.taken) for heads in one.choices for c in heads.views]
        assert [(tuple(v["heads"]), v["apart"], v["together"], v["taken"]) for v in entry["views"]] == views
        assert [v["verdict"] for v in entry["views"]] == ["taken: a pass of its own", "left in the rows as they are"]
        assert [(p["rows"], p["chained"]) for p in entry["passes"]] == [
            ("all rows", False),
            ("rows 256 apart", True),
            ("all rows", False),
        ]
    shown = rendered(found)
    for one in found.candidates:
        assert f"{one.cost:,.0f}" in shown
        assert all(f"{c.alone:,.0f}" in shown and f"{c.merged:,.0f}" in shown for heads in one.choices for c in heads.views)


def test_costs_without_bound_are_left_out_of_json() -> None:
    found = choices(pc.parse("local(8) | global([0])"), "several", DEFAULT_REQUEST)
    unlisted = Choice(View(few=True), float("inf"), 7.0)
    odd = replace(found.chosen, cost=0.0, choices=(HeadChoices((0,), 1, (unlisted,)),))
    found = replace(found, candidates=(odd, replace(odd, cost=2.0)))
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [one["ratio"] for one in data["candidates"]] == [1.0, None]
    assert data["candidates"][0]["views"][0]["apart"] is None
    assert "left in the rows as they are: its row tiles are not a plain list" in rendered(found, 160)


def made(text: str, tile: Tile, cost: float, *views: Choice) -> Candidate:
    """A candidate with costs of its own, so that the text does not change with the model."""
    pattern = pc.parse(text)
    plan = lower(pattern, tile, views=True, splits=True)
    return Candidate(TileCost(tile, 1, 2, 1), plan, cost, (HeadChoices((0,), 1, views),))


TEXT = """\
plans: several backend, cuda 9.x, bfloat16, head_dim 128
  Predicted cost of one head at n = 32,768; 1 is what a full tile of 64x64 costs.
            tile    passes                                                                cost  ratio
  chosen    64x64   a few rows, split among programs; all rows; rows 256 apart, chained  5,000   1.00
  rejected  128x64  a few rows, split among programs; all rows; rows 256 apart, chained  8,125   1.62

  views considered
  A view sorts or picks queries and keys so that pairs fall into fewer tiles. Costs, in full tiles of the plan's shape,
  are those of its pairs and of the pairs in the rows as they are: apart, with what another pass adds, and all together;
  never less than 16 times the longest row tile that is not split.
  tile    view                                       apart  together
  64x64   a few queries near the ends                1,000     2,000  taken: a pass of its own, split among programs
  64x64   queries and keys a multiple of 256 apart   3,000    40,000  taken: a pass of its own
  128x64  queries and keys a multiple of 256 apart  90,000    50,000  left in the rows as they are
"""


def test_the_text() -> None:
    text = f"{STRIDED} | global([0])"
    few, far = Choice(View(few=True), 1_000, 2_000), Choice(View(stride=256), 3_000, 40_000)
    first = made(text, Tile(64, 64), 5_000, few, far)
    second = made(text, Tile(128, 64), 8_125, replace(far, alone=90_000, merged=50_000))
    found = Choices(text, "several", DEFAULT_REQUEST, (first, second), first.plan)
    assert lines(rendered(found)) == TEXT.splitlines()
    timed = Times("a device", 1, 16, 4096, (Time(0.25), Time(None, "OutOfMemory: it is too large")))
    measured = rendered(replace(found, times=timed))
    assert "Measured: the forward kernels on a device, batch 1, 16 heads, n = 4,096; medians." in measured
    assert [line.split()[-1] for line in lines(measured) if line.startswith(("  chosen", "  rejected"))] == ["0.250", "-"]
    assert "  128x64: OutOfMemory: it is too large" in lines(measured)
    data = replace(found, times=timed).to_json()
    assert data["measured"] == {"batch": 1, "heads": 16, "n": 4096, "device": "a device"}
    assert [(one["forward_ms"], one["note"]) for one in data["candidates"]] == [(0.25, ""), (None, timed.each[1].note)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("none", "all rows, no keys"),
        ("causal & stride(64)", "rows 64 apart"),
        ("where((q - k) % 96 == 5)", "queries and keys 5 plus a multiple of 96 apart"),
        ("causal & (chunk(256) | summary(256, 8))", "all rows (with keys 248-255 of every 256)"),
        ("causal & (chunk(256) | summary(256, 8))", "taken: a phase of the pass over all rows"),
        ("where(q % 64 < 2) | local(8)", "rows 0-1 of every 64, split among programs; all rows"),
        ("where(q % 64 < 2) | local(8)", "queries 0-1 of every 64"),
        ("causal & (window(8) | topk(s, 4))", "all rows; keys listed for each query, chained"),
        ("causal & (window(8) | random(4))", "all rows (with gathered keys)"),
        ("causal & layout(t, 64)", "all rows (with listed tiles)"),
        ("causal & layout(t, 64)", "none: rows and keys are walked as they are"),
        ("causal & (window(8) | topk(s, 4))", "Keys that are listed or gathered at run time are left out"),
        (MIXED, "heads 0-1 of every 3: all rows (with keys 248-255 of every 256)"),
        (MIXED, "head 2 of every 3: a few rows, split among programs; all rows"),
    ],
)
def test_words(text: str, wanted: str) -> None:
    assert wanted in rendered(choices(pc.parse(text), "several", DEFAULT_REQUEST), 200)


def test_a_backend_without_views_says_so() -> None:
    shown = rendered(choices(pc.parse(STRIDED), "reference", DEFAULT_REQUEST))
    assert "none: the reference backend walks rows and keys as they are" in shown
    assert "The backend has one tile shape for such calls." in shown


@pytest.mark.parametrize("width", [40, 60, 100])
def test_narrow_terminals(width: int) -> None:
    for text in (STRIDED, MIXED):
        found = choices(pc.parse(text), "several", DEFAULT_REQUEST)
        shown = rendered(found, width)
        assert max(map(len, shown.splitlines())) <= width
        assert sorted("".join(shown.split())) == sorted("".join(rendered(found, 300).split())), "nothing is cut off"


@pytest.mark.parametrize("text", [STRIDED, "causal & (window(8) | topk(s, 4) | document(ids) & window(64))"])
def test_measuring(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from patternc.report.choices import measured
    from patternc.runtime import bench

    called = []

    def timer(call: bench.Call) -> float:
        called.append(call())
        if len(called) == 2:
            raise RuntimeError("the second stops")
        return float(len(called))

    monkeypatch.setattr(bench, "timer_for", lambda device: timer)
    found = measured(pc.parse(text), "torch", n=300, head_dim=16, device="cpu")
    assert found.request == Request("cpu", "float32", 16, 16, 300, 0)
    assert found.candidates == candidates(pc.parse(text), None, "torch", found.request)
    assert found.times is not None
    assert (found.times.batch, found.times.heads, found.times.n) == (1, 16, 300)
    assert found.times.each[:2] == (Time(1.0), Time(None, "RuntimeError: the second stops"))
    assert len(found.times.each) == len(found.candidates) == len(called)
    for out, lse in called:
        assert (tuple(out.shape), tuple(lse.shape)) == ((1, 16, 300, 16), (1, 16, 300))
        assert bool((out - called[0][0]).abs().max() < 1e-5)


def test_a_call_that_the_backend_cannot_serve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from patternc.report.choices import measured

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="the triton backend cannot run this call"):
        measured(pc.parse("causal"), "triton", n=64, device="cpu")
