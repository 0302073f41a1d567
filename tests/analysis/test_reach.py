"""Distances and diameters by exact composition equal those of dense products and of breadth-first search."""

from __future__ import annotations

import math
import time

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis import doubling, reach
from patternc.analysis.coverage import coverage
from patternc.analysis.doubling import cover
from patternc.analysis.held import causal_pairs, diagonal
from patternc.analysis.reach import distance, hop_diameter, reachable
from patternc.analysis.steps import steps, target_pairs
from patternc.analysis.verify import verify
from patternc.diagnostics import PatternError
from patternc.relation import BudgetExceeded, everything
from patternc.testing import patterns

Bools = npt.NDArray[np.bool_]

MILLION = 1_000_000
KNOWN = [
    ("causal & window(4096)", 245),
    ("causal & (window(1024) | sinks(4))", 978),
    ("local(512) | global([0])", 2),
    ("causal & (window(1024) | stride(1024))", 2),
    ("causal & (chunk(1024) | summary(1024, 8))", 2),
    ("causal & window(512, dilation=4)", math.inf),
    ("causal & (window(512, dilation=4) | window(8))", 491),
    ("layers(5 * (causal & window(1024)) + causal)", 6),
    ("layers((causal & stride(1024)) + (causal & window(1024)))", 2),
    ("layers(1000 * (causal & window(3)) + causal)", 1001),
    ("stride(1024) | window(256)", 4),
    ("causal & window(2)", MILLION - 1),
    ("causal", 1),
    ("none", math.inf),
]


def layers_of(pattern: pc.Pattern, n: int, residual: bool = True) -> list[Bools]:
    """The dense step of every layer of the period."""
    self_ = np.eye(n, dtype=bool) & residual
    return [
        np.logical_or.reduce([self_, *(pattern.mask(n, head, layer=layer) for head in range(pattern.layer(layer).heads))])
        for layer in range(pattern.layers)
    ]


def product(upper: Bools, lower: Bools) -> Bools:
    return (upper.astype(np.float32) @ lower.astype(np.float32)) > 0


def stacked(pattern: pc.Pattern, n: int, start: int = 0, residual: bool = True) -> list[Bools]:
    """M_0, M_1, ...: far enough to see every period that there is."""
    period = layers_of(pattern, n, residual)
    found = [np.eye(n, dtype=bool)]
    for index in range(len(period) * (n + 1)):
        found.append(product(period[(start + index) % len(period)], found[-1]))
    return found


def default_target(pattern: pc.Pattern, n: int) -> Bools:
    full = np.ones((n, n), bool)
    return np.tril(full) if all(step.possible.is_subset(causal_pairs()) for step in steps(pattern, "may", False)) else full


def expected(pattern: pc.Pattern, n: int, start: int = 0) -> float:
    target = default_target(pattern, n)
    return next((hops for hops, m in enumerate(stacked(pattern, n, start)) if not (target & ~m).any()), math.inf)


def schedules() -> st.SearchStrategy[str]:
    """One pattern, or a schedule of two or three."""
    single = patterns(max_depth=2)
    part = st.tuples(st.integers(1, 3), single).map(lambda p: f"{p[0]} * ({p[1]})")
    mixed = st.tuples(st.sampled_from(["layers", "heads"]), st.lists(part, min_size=2, max_size=3))
    causal = single.map(lambda text: f"causal & (window(2) | ({text}))")
    return st.one_of(single, causal, mixed.map(lambda m: f"{m[0]}({' + '.join(m[1])})"))


def parsed(text: str) -> pc.Pattern:
    try:
        return pc.parse(text)
    except (PatternError, BudgetExceeded):
        assume(False)
        raise


# The known numbers


@pytest.mark.parametrize(("expression", "hops"), KNOWN)
def test_a_million_positions(expression: str, hops: float) -> None:
    pattern = pc.parse(expression)
    verdict = pattern.hop_diameter(MILLION)
    assert verdict.status == ("refuted" if hops == math.inf else "proved")
    assert verdict.value == hops
    assert verify(pattern, verdict) == []


def test_dilation_alone_never_connects_neighbours() -> None:
    verdict = pc.parse("causal & window(512, dilation=4)").hop_diameter(MILLION)
    assert verdict.witness == pc.relation.Pair(MILLION, 1, 0)
    everywhere = pc.parse("causal & window(512, dilation=4)").hop_diameter()
    assert (everywhere.status, everywhere.value, everywhere.witness) == ("refuted", math.inf, pc.relation.Pair(2, 1, 0))


@pytest.mark.parametrize("w", [2, 3, 7, 64, 4096])
@pytest.mark.parametrize("n", [1, 2, 5, 64, 65, 10**6, 2**31 - 1])
def test_windows_take_n_minus_1_over_w_minus_1(w: int, n: int) -> None:
    assert pc.parse(f"causal & window({w})").hop_diameter(n).value == -(-(n - 1) // (w - 1))


@pytest.mark.parametrize(
    ("expression", "hops"),
    [
        ("local(512) | global([0])", 2),
        ("causal & (window(1024) | stride(1024))", 2),
        ("causal & (chunk(1024) | summary(1024, 8))", 2),
        ("layers(5 * (causal & window(1024)) + causal)", 6),
        ("full", 1),
        ("causal", 1),
    ],
)
def test_one_number_for_every_n(expression: str, hops: int) -> None:
    pattern = pc.parse(expression)
    verdict = pattern.hop_diameter()
    assert (verdict.status, verdict.value) == ("proved", hops)
    assert verify(pattern, verdict) == []
    assert verdict.witness is not None
    assert pattern.hop_diameter(verdict.witness.n).value == hops, "the number is reached where the witness says"
    for n in (1, 2, 3, 100, 1023, 1024, 1025, 1026, 5117, 10**5, 10**9):
        assert (pattern.hop_diameter(n).value or 0) <= hops


def test_a_number_that_grows_with_n_is_not_called_one() -> None:
    verdict = pc.parse("causal & window(4096)").hop_diameter()
    assert verdict.status == "unknown"
    assert "ask for one n" in verdict.reason
    assert verdict.witness is not None
    at = pc.parse("causal & window(4096)").hop_diameter(verdict.witness.n)
    assert isinstance(at.value, int)
    assert at.value == verdict.lower
    assert verdict.witness.n == 2**31 - 1, "the longest sequence needs the most layers"


# Against dense products


@settings(max_examples=60, deadline=None)
@given(text=schedules(), n=st.integers(1, 20), data=st.data())
def test_diameters_equal_dense_products(text: str, n: int, data: st.DataObject) -> None:
    pattern = parsed(text)
    start = data.draw(st.integers(0, pattern.layers - 1))
    verdict = hop_diameter(pattern, n, start_layer=start)
    wanted = expected(pattern, n, start)
    assert verdict.value == wanted, f"{text} at n = {n} from layer {start}: {verdict}"
    assert verdict.status == ("refuted" if wanted == math.inf else "proved")
    if verdict.certificate is not None:
        assert verify(pattern, verdict) == []


@settings(max_examples=50, deadline=None)
@given(text=schedules(), n=st.integers(1, 14), data=st.data())
def test_distances_equal_dense_products_and_paths_are_real(text: str, n: int, data: st.DataObject) -> None:
    pattern = parsed(text)
    q, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    powers = stacked(pattern, n)
    wanted = next((hops for hops, m in enumerate(powers) if m[q, k]), math.inf)
    verdict = distance(pattern, q, k, n)
    assert verdict.value == wanted
    assert verdict.certificate is None or verify(pattern, verdict) == []
    depth = data.draw(st.integers(0, 5))
    answer = reachable(pattern, q, k, depth, n)
    assert answer.status == ("proved" if powers[min(depth, len(powers) - 1)][q, k] else "refuted")


@settings(max_examples=30, deadline=None)
@given(text=schedules(), n=st.integers(1, 12))
def test_coverage_is_the_worst_start(text: str, n: int) -> None:
    pattern = parsed(text)
    found = [expected(pattern, n, start) for start in range(pattern.layers)]
    verdict = coverage(pattern, n)
    assert verdict.value == max(found)
    if pattern.layers > 1:
        assert verdict.where == f"from layer {found.index(max(found))} on"


@settings(max_examples=60, deadline=None)
@given(text=schedules(), n=st.integers(1, 9))
def test_walks_without_a_residual_stream(text: str, n: int) -> None:
    pattern = parsed(text)
    target = default_target(pattern, n)
    exact = [not (target & ~m).any() for m in stacked(pattern, n, residual=False)]
    verdict = hop_diameter(pattern, n, residual=False)
    if verdict.status == "proved":
        assert exact.index(True) == verdict.value
        assert verdict.certificate is None or verify(pattern, verdict) == []
    elif verdict.status == "refuted":
        assert not any(exact)
    else:
        assert verdict.lower is None or not any(exact[: verdict.lower])


@settings(max_examples=40, deadline=None)
@given(text=schedules(), n=st.integers(2, 24))
def test_one_layer_equals_breadth_first_search(text: str, n: int) -> None:
    pattern = parsed(text)
    assume(pattern.layers == 1)
    graph = nx.from_numpy_array(layers_of(pattern, n)[0].astype(int), create_using=nx.DiGraph)
    lengths = dict(nx.all_pairs_shortest_path_length(graph))
    pairs = np.argwhere(default_target(pattern, n)).tolist()
    assert hop_diameter(pattern, n).value == max(lengths[q].get(k, math.inf) for q, k in pairs)


@settings(max_examples=25, deadline=None)
@given(text=schedules())
def test_what_is_said_of_every_n_holds_at_each(text: str) -> None:
    pattern = parsed(text)
    verdict = hop_diameter(pattern)
    numbers = {n: expected(pattern, n) for n in (1, 2, 3, 5, 8, 13, 20)}
    if verdict.certificate is not None:
        assert verify(pattern, verdict) == []
    if verdict.status == "proved":
        assert max(numbers.values()) <= (verdict.value or 0)
        if verdict.witness is not None and verdict.witness.n <= 40:
            assert expected(pattern, verdict.witness.n) == verdict.value
    elif verdict.status == "refuted":
        assert verdict.witness is not None
        assert verdict.witness.n > 40 or expected(pattern, verdict.witness.n) == math.inf
    else:
        assert verdict.value is None


@settings(max_examples=30, deadline=None)
@given(text=patterns(max_depth=2), more=patterns(max_depth=1), n=st.integers(1, 40))
def test_more_pairs_never_take_more_layers(text: str, more: str, n: int) -> None:
    one, both = parsed(text), parsed(f"({text}) | ({more})")
    few, many = (hop_diameter(p, n, target="full").value for p in (one, both))
    assert few is not None
    assert many is not None
    assert many <= few


# Schedules, targets, modes


def test_the_starting_layer_matters() -> None:
    pattern = pc.parse("layers(5 * (causal & window(1024)) + causal)")
    assert [hop_diameter(pattern, MILLION, start_layer=start).value for start in range(6)] == [6, 5, 4, 3, 2, 1]
    verdict = pattern.coverage(MILLION)
    assert (verdict.value, verdict.where) == (6, "from layer 0 on")


def test_one_layer_that_reads_ahead_makes_all_pairs_the_target() -> None:
    assert pc.parse("layers(causal + full)").hop_diameter(10).value == 2
    assert pc.parse("layers(causal + causal)").hop_diameter(10).value == 1


def test_fewer_layers_of_a_schedule_have_another_top() -> None:
    pattern = pc.parse("layers(2 * (causal & window(3)) + (causal & stride(10)))")
    verdict = pattern.distance(50, 26, 100)
    assert verdict.value == 3
    assert verify(pattern, verdict) == []


def test_a_target_may_be_given() -> None:
    packed = pc.parse("causal & chunk(100) & window(10)")
    assert packed.hop_diameter(MILLION).value == math.inf
    assert packed.hop_diameter(MILLION, target="causal & chunk(100)").value == 11
    assert target_pairs(packed, everything()) is everything()


def test_runtime_inputs_are_counted_for_and_against() -> None:
    pattern = pc.parse("causal & (window(64) | layout(t, 64))")
    assert hop_diameter(pattern, 6400, mode="may").value == 1
    assert hop_diameter(pattern, 6400, mode="must").value == -(-6399 // 63)
    documents = pc.parse("causal & document(ids)")
    assert hop_diameter(documents, 100, mode="must").value == math.inf
    assert "all runtime inputs allow" in hop_diameter(documents, 100, mode="must").claim


def test_draws_that_cannot_help_are_decided_without_drawing() -> None:
    pattern = pc.parse("(causal & stride(2)) & random(3)")
    verdict = hop_diameter(pattern)
    assert (verdict.status, verdict.value) == ("refuted", math.inf)
    hub = pc.parse("local(2) | global([0]) | (window(3) & random(1))")
    assert hop_diameter(hub).value == 2


def test_draws_that_may_help_are_not_guessed_for_every_n() -> None:
    verdict = hop_diameter(pc.parse("local(2) | global([0]) | random(3)"))
    assert (verdict.status, verdict.lower, verdict.upper) == ("bounded", 1, 2)


# Limits


def test_a_search_over_its_budget_ends_in_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "SYMBOLIC_BUDGET", 3_000)
    verdict = hop_diameter(pc.parse("stride(1024) | window(256)"))
    assert verdict.status == "unknown"
    assert verdict.value is None
    monkeypatch.setattr(doubling, "COVER_BUDGET", 100)
    assert hop_diameter(pc.parse("causal & window(5) - self"), 9, residual=False).status in ("unknown", "refuted")


def test_hard_patterns_end_in_time() -> None:
    start = time.perf_counter()
    verdict = hop_diameter(pc.parse("stride(7) | stride(11) | where((q * 3 + k) % 5 == 0)"))
    assert (verdict.status, verdict.value) == ("refuted", math.inf), "query 0 of two never reads key 1"
    assert time.perf_counter() - start < 30


def test_long_paths_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = pc.parse("causal & window(2)")
    monkeypatch.setattr(reach, "MAX_PATH", 10)
    verdict = distance(pattern, 99, 0, 100)
    assert verdict.value == 99
    assert verify(pattern, verdict) == []


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": 2**31}, {"n": 5, "start_layer": -1}])
def test_numbers_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"n is a sequence length|start_layer"):
        hop_diameter(pc.parse("causal"), **arguments)


def test_positions_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="not a position"):
        distance(pc.parse("causal"), 5, 0, 5)
    with pytest.raises(ValueError, match="layers must be at least 0"):
        reachable(pc.parse("causal"), 1, 0, -1, 5)


def test_the_least_number_is_found_wherever_it_lies() -> None:
    """The refinement inside runs of equal layers: every length of run, and every place in it."""
    window, wide = (pc.parse(text).meaning().static for text in ("causal & window(2)", "causal & window(5)"))
    for count in range(1, 9):
        for n in range(1, 40):
            layers = [window.at(n)] * count + [wide.at(n)]
            period, spans = count + 1, [1] * count + [4]
            hops = next(h for h in range(n) if sum(spans[i % period] for i in range(h)) >= n - 1)
            found = cover([layers[0]] * count + [layers[-1]], causal_pairs().at(n))
            assert found.hops == hops
            assert diagonal().at(n).is_subset(found.covering.relation if found.covering else diagonal())
