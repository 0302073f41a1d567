"""Degrees against dense masks, at lengths and of kinds that take each of the ways to count."""

from __future__ import annotations

import json
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc import dense
from patternc.analysis import degrees as module
from patternc.analysis import universality
from patternc.analysis.degrees import Degrees, Distribution, degrees
from patternc.relation import BudgetExceeded
from patternc.testing import oracle_mask, patterns, random_inputs

TEXTS = [
    "full",
    "none",
    "causal",
    "causal & window(5)",
    "window(3, dilation=4)",
    "causal & (window(4) | stride(5))",
    "causal & (chunk(8) | summary(8, 2))",
    "local(6) | global([0, 3, -1])",
    "where(q % 3 == k % 2)",
    "random(3)",
    "causal & random(2)",
    "causal & (window(4) | random(3))",
    "random(2) | random(3, seed=1) | sinks(1)",
    "causal & random(4) & random(4, seed=1)",
    "random(2, block=4)",
    "causal & random(1, block=5)",
    "window(7) & random(2, block=8)",
    "blocks(4, 1, 1) | random(2, block=4) | rows([0..3]) | columns([0..3])",
    "random(2, block=4) | random(1, block=3, seed=5) | window(2)",
    "random(3, block=4, pool=2)",
]


def assert_matches(found: Degrees, mask: np.ndarray) -> None:
    assert found.n == len(mask)
    assert np.array_equal(found.keys_per_query, mask.sum(1))
    assert np.array_equal(found.queries_per_key, mask.sum(0))
    assert found.nnz == mask.sum()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("n", [1, 2, 7, 16, 61])
def test_degrees_are_those_of_the_mask(text: str, n: int) -> None:
    assert_matches(degrees(pc.parse(text), n), oracle_mask(text, n))


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_no_difference(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 8)
    assert_matches(degrees(pc.parse(text), 37), oracle_mask(text, 37))


@settings(max_examples=150, deadline=None)
@given(patterns(max_depth=3, choices=True, inputs=True), st.integers(1, 40), st.integers(0, 2))
def test_degrees_of_random_patterns(text: str, n: int, head: int) -> None:
    try:
        p = pc.parse(text)
    except pc.PatternError as error:
        assert error.code in ("too-complex", "too-many-terms")
        return
    inputs = random_inputs(p, n, heads=3)
    assert_matches(p.degrees(n, head, **inputs), p.mask(n, head, **inputs))


def test_rows_without_a_closed_form_are_counted_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BudgetExceeded

    monkeypatch.setattr(module, "row_counts", refuse)
    monkeypatch.setattr(dense, "_ROWS", 700)
    assert_matches(
        degrees(pc.parse("causal & (window(3) | random(2))"), 50), oracle_mask("causal & (window(3) | random(2))", 50)
    )
    with pytest.raises(ValueError, match="too large for a dense"):
        degrees(pc.parse("causal"), 40_000)


def test_work_is_bounded() -> None:
    with pytest.raises(ValueError, match="too large"):
        degrees(pc.parse("window(5) & random(1, block=30000)"), 10**6)
    with pytest.raises(ValueError, match="the limit is 16,777,216"):
        degrees(pc.parse("causal"), 2**30)
    with pytest.raises(ValueError, match="from 1 to"):
        pc.parse("causal").degrees(0)


def test_layers_are_chosen() -> None:
    p = pc.parse("layers((causal & window(4)) + causal)")
    with pytest.raises(pc.PatternError) as error:
        p.degrees(8)
    assert error.value.code == "which-layer"
    assert p.degrees(8, layer=1).out.maximum == 8


@pytest.mark.parametrize(
    ("text", "least", "most", "nnz"),
    [
        ("causal & window(4096)", 1, 4096, 4096 * 10**6 - 4096 * 4095 // 2),
        ("local(512) | global([0])", 258, 10**6, None),
        ("causal & (window(1024) | random(3))", 1, 1027, None),
        ("bigbird", 448, 10**6, None),
        ("causal & (window(1024) | stride(1024))", 1, 2000, None),
    ],
)
def test_a_million_positions(text: str, least: int, most: int, nnz: int | None) -> None:
    start = time.process_time()
    found = degrees(pc.parse(text), 10**6)
    assert time.process_time() - start < 10
    assert (found.out.minimum, found.out.maximum) == (least, most)
    assert found.nnz == found.queries_per_key.sum()
    assert nnz is None or found.nnz == nnz


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12), st.floats(0, 1))
def test_distributions(values: list[int], bins: int, share: float) -> None:
    d = Distribution.of(np.array(values))
    assert (d.minimum, d.maximum, d.total, d.positions) == (min(values), max(values), sum(values), len(values))
    assert d.mean == pytest.approx(np.mean(values))
    quantile = d.quantile(share)
    assert quantile in values
    assert sum(v <= quantile for v in values) >= share * len(values) - 1e-9
    assert all(sum(v <= smaller for v in values) < share * len(values) + 1e-9 for smaller in set(values) if smaller < quantile)
    entries = d.histogram(bins)
    assert 1 <= len(entries) <= bins
    assert [sum(a <= v <= b for v in values) for a, b, _ in entries] == [count for *_, count in entries]
    assert sum(count for *_, count in entries) == len(values)


def test_quantiles_where_shares_meet() -> None:
    d = Distribution.of(np.array([1, 2, 3, 4]))
    assert [d.quantile(share) for share in (0, 0.25, 0.5, 0.51, 1)] == [1, 1, 2, 3, 4]


def test_shares_and_bins_are_checked() -> None:
    d = Distribution.of(np.array([1, 2]))
    with pytest.raises(ValueError, match="share"):
        d.quantile(1.5)
    with pytest.raises(ValueError, match="bin"):
        d.histogram(0)


def test_what_is_shown() -> None:
    found = pc.parse("causal & window(3)").degrees(100)
    assert str(found) == "at n = 100: keys per query 1 to 3, mean 2.97, median 3; queries per key 1 to 3, mean 2.97, median 3"
    data = json.loads(json.dumps(found.to_json()))
    assert data["n"] == 100
    assert data["keys_per_query"]["histogram"] == [[1, 1, 1], [2, 2, 1], [3, 3, 98]]
    assert data["queries_per_key"]["quantiles"]["0.5"] == 3


def test_many_draws_are_counted_in_little_memory() -> None:
    pattern, n = pc.parse("random(256)"), 1 << 15
    for ask in (lambda: pattern.degrees(n).nnz == 256 * n, lambda: not universality.reads_itself(pattern, n)):
        tracemalloc.start()
        assert ask()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200 << 20, "one array of all draws is 64 MiB, and several were made of each"
