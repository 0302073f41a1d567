"""The spectral gap against dense eigenvalues, and its product against dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis import spectrum
from patternc.analysis.spectrum import _band, _graph, _prefix_sums, spectral_gap
from patternc.relation import BudgetExceeded
from patternc.testing import patterns

TEXTS = [
    "full",
    "window(4)",
    "causal & window(4)",
    "local(4) | global([0])",
    "stride(5) | window(3)",
    "rows([1, -1]) | blocks(4, 1, 0)",
    "causal & (chunk(6) | summary(6, 2))",
    "window(3, dilation=2) | self",
    "random(3)",
    "causal & (window(3) | random(2))",
    "blocks(4, 1, 1) | random(2, block=4)",
    "heads(random(2) + window(2) + random(1, seed=3))",
    "where(q % 3 == 0)",
]


def both_ways(text: str, n: int) -> np.ndarray:
    p = pc.parse(text)
    mask = np.logical_or.reduce([p.mask(n, head) for head in range(p.heads)])
    return mask | mask.T


def dense_gap(adjacency: np.ndarray) -> float:
    degree = adjacency.sum(1)
    if not degree.all():
        return 0.0
    values = np.linalg.eigvalsh(adjacency / np.sqrt(np.outer(degree, degree)))
    return 1 - values[-2]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("shortest", [1, 256])
@pytest.mark.parametrize("n", [2, 9, 40])
def test_the_product_is_that_of_the_matrix(text: str, n: int, shortest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "SHORTEST", shortest)  # slices where they are cheap, or gathered rows
    x = np.random.default_rng(n).standard_normal(n)
    assert np.allclose(_graph(pc.parse(text), n).product(x), both_ways(text, n) @ x)


@settings(max_examples=100, deadline=None)
@given(patterns(max_depth=3, choices=True), st.integers(1, 40), st.sampled_from([1, 4, 10**9]))
def test_products_of_random_patterns(text: str, n: int, shortest: int) -> None:
    x = np.random.default_rng(n).standard_normal(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrum, "SHORTEST", shortest)
        try:
            found = _graph(pc.parse(text), n)
        except (pc.PatternError, BudgetExceeded):
            return
        assert np.allclose(found.product(x), both_ways(text, n) @ x)


@given(st.integers(1, 20), st.integers(1, 25))
def test_prefix_sums(n: int, step: int) -> None:
    x = np.arange(1.0, n + 1)
    sums = _prefix_sums(x, step)
    assert all(sums[i + step] == x[i::-step].sum() for i in range(n))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("n", [2, 17, 60])
def test_small_gaps_are_exact(text: str, n: int) -> None:
    verdict = spectral_gap(pc.parse(text), n, symmetrise=True)
    assert verdict.status == "bounded"
    assert verdict.lower <= dense_gap(both_ways(text, n)) + 1e-12
    assert verdict.upper >= dense_gap(both_ways(text, n)) - 1e-12
    assert verdict.upper - verdict.lower < 1e-9


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize("steps", [1, 8, 100])
def test_the_interval_of_lanczos_holds_the_gap(text: str, n: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "MAX_EXACT", 1)
    verdict = spectral_gap(pc.parse(text), n, steps=steps, symmetrise=True)
    gap = dense_gap(both_ways(text, n))
    assert verdict.status in ("estimated", "bounded")
    assert verdict.lower - 1e-9 <= gap <= verdict.upper + 1e-9
    if steps == 100:
        assert verdict.upper == pytest.approx(gap, abs=1e-6)
        assert verdict.lower > gap - 0.03


def test_more_steps_narrow_the_interval_and_seeds_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    p = pc.parse("random(3)")
    first, second = (p.spectral_gap(3000, steps=steps) for steps in (20, 80))
    assert second.upper <= first.upper
    assert second.lower >= first.lower
    assert p.spectral_gap(3000, steps=20) == first
    assert p.spectral_gap(3000, steps=20, seed=1).upper != first.upper
    assert "seed 0" in first.reason


def test_windows_have_a_closed_form() -> None:
    for text, width in (("window(9)", 8), ("causal & window(9)", 8), ("local(16)", 8), ("window(9) - where(q - k == 3)", 8)):
        assert _band(pc.parse(text)) == width
    for text in (
        "window(9) & where(q < 3 or k < 3 or q == k)",
        "window(9, dilation=2)",
        "window(9) | sinks(1)",
        "window(9) | random(1)",
        "causal",
        "none",
    ):
        assert _band(pc.parse(text)) is None
    verdict = pc.parse("window(9)").spectral_gap(1000)
    assert verdict.status == "estimated"
    assert verdict.value == pytest.approx(dense_gap(both_ways("window(9)", 1000)), rel=0.03)
    assert verdict.value == math.pi**2 * 72 / 6e6
    assert verdict.lower <= verdict.value <= verdict.upper


def test_a_causal_pattern_is_refused() -> None:
    p = pc.parse("causal & (window(4) | random(2))")
    refused = p.spectral_gap(100)
    assert refused.status == "unknown"
    assert "causal" in refused.reason
    assert "symmetrise=True" in refused.reason
    assert p.spectral_gap(100, symmetrise=True).status == "bounded"


def test_a_graph_that_falls_apart_has_no_gap() -> None:
    assert pc.parse("where(q == k and q > 0)").spectral_gap(600, symmetrise=True).upper == 0
    apart = pc.parse("stride(2)").spectral_gap(1000)
    assert apart.upper == pytest.approx(0, abs=1e-12)
    assert pc.parse("full").spectral_gap(1).value == 1


def test_what_cannot_be_done_is_told() -> None:
    p = pc.parse("topk(s, 2)")
    assert p.spectral_gap(1000).status == "unknown"
    scores = np.random.default_rng(0).standard_normal((20, 20))
    mask = p.mask(20, s=scores)
    assert p.spectral_gap(20, s=scores).upper == pytest.approx(dense_gap(mask | mask.T))
    assert pc.parse("bigbird").spectral_gap(10**6).status == "unknown"
    assert pc.parse("full").spectral_gap(2**30).status == "unknown"
    layered = pc.parse("layers(window(3) + full)")
    with pytest.raises(pc.PatternError, match="no layer was chosen"):
        layered.spectral_gap(10)
    assert layered.spectral_gap(10, layer=1).value == pytest.approx(1)
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="steps"):
            p.spectral_gap(10, steps=steps)


def test_a_million_positions() -> None:
    verdict = pc.parse("local(512) | global([0])").spectral_gap(10**6, steps=5)
    assert verdict.status == "estimated"
    assert 0 <= verdict.lower <= verdict.upper <= 1
