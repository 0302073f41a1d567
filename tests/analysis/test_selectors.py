"""Selections at best, at worst and for random scores."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patternc import parse
from patternc.analysis.allowance import Unaffordable
from patternc.analysis.numeric import numeric_diameter
from patternc.analysis.selectors import estimate, may, must, random_scores, sampled
from patternc.analysis.tracing import numeric_distances, numeric_field, numeric_path
from patternc.diagnostics import PatternError
from patternc.pattern import Pattern
from patternc.testing import patterns, random_inputs

Mask = npt.NDArray[np.bool_]


def selections() -> st.SearchStrategy[str]:
    """A set, and a selection from another one, in one or two layers."""
    one = st.builds(
        lambda a, b, k, block, causal: (
            f"{'causal & ' if causal else ''}(({a}) | (({b}) & topk(s{block}, {k}{f', block={block}' if block > 1 else ''})))"
        ),
        patterns(1), patterns(1), st.integers(1, 5), st.sampled_from([1, 1, 2, 3]), st.booleans(),
    )  # fmt: skip
    return st.one_of(one, st.builds(lambda a, b: f"layers(2 * ({a}) + ({b}))", one, one))


def reached_at_worst(static: Mask, allowed: Mask, k: int, block: int, layers: int) -> Mask:
    """By trying every set of blocks that scores may select, in every layer, for every query and key."""
    n = len(static)
    held = np.eye(n, dtype=bool)
    for _ in range(layers):
        now = held.copy()
        for q in range(n):
            groups = [g[allowed[q, g]] for g in (np.arange(b, min(n, b + block)) for b in range(0, n, block))]
            groups = [g for g in groups if len(g)]
            for key in range(n):
                sure = (static[q] & held[:, key]).any()
                picks = combinations(groups, min(k, len(groups)))
                forced = groups and all(any(held[x, key] for g in pick for x in g) for pick in picks)
                now[q, key] |= sure or bool(forced)
        held = now
    return held


def parsed_or_skip(text: str) -> Pattern:
    try:
        return parse(text)
    except PatternError:  # too complex
        assume(False)
        raise


@settings(max_examples=60, deadline=None)
@given(patterns(1), patterns(1), st.integers(1, 4), st.sampled_from([1, 1, 2, 3]), st.integers(1, 8), st.integers(0, 3))
def test_the_worst_case_is_exact(a: str, b: str, k: int, block: int, n: int, layers: int) -> None:
    p = parsed_or_skip(f"({a}) | (({b}) & topk(s, {k}, block={block}))")
    want = reached_at_worst(parse(a).mask(n), parse(b).mask(n), k, block, layers)
    assert np.array_equal(must(p, layers, n), want)


def test_two_selections_leave_out_what_either_does() -> None:
    p, n = parse("(causal & topk(a, 6) & topk(b, 5)) | self"), 8
    held = np.eye(n, dtype=bool)
    for layers in range(4):
        assert np.array_equal(must(p, layers, n), held)
        now = held.copy()
        for q in range(n):
            keys = range(q + 1)
            picks = [set(x) & set(y) for x in combinations(keys, min(6, q + 1)) for y in combinations(keys, min(5, q + 1))]
            for key in range(n):
                now[q, key] |= all(any(held[x, key] for x in pick) for pick in picks)
        held = now
    assert np.array_equal(must(parse("causal & topk(a, 6) & topk(a, 2)"), 1, n), must(parse("causal & topk(a, 2)"), 1, n))


@settings(max_examples=80, deadline=None)
@given(selections(), st.integers(1, 24), st.integers(0, 4), st.integers(0, 99))
def test_worst_within_random_within_best(text: str, n: int, layers: int, seed: int) -> None:
    p = parsed_or_skip(text)
    low, middle, high = must(p, layers, n), sampled(p, layers, n, seed=seed), may(p, layers, n)
    assert (low <= middle).all()
    assert (middle <= high).all()
    best, worst = numeric_diameter(p, n).value, numeric_diameter(p, n, mode="must").value
    guess = estimate(p, n, seed=seed, samples=2)
    assert None not in (best, worst, guess.value)
    assert best <= guess.value <= worst
    assert guess.status == "estimated"
    assert f"seed {seed}" in guess.reason


@pytest.mark.parametrize("draws", ["random(4)", "random(2, block=3)"])
def test_selections_among_draws(draws: str) -> None:
    n = 12
    drawn = parse(f"causal & {draws}").mask(n)
    for layers in range(4):
        want = reached_at_worst(np.zeros((n, n), bool), drawn, 3, 1, layers)
        assert np.array_equal(must(parse(f"causal & {draws} & topk(s, 3)"), layers, n), want)


def test_distances_and_fields_at_worst() -> None:
    p, n = parse("layers((causal & (window(2) | topk(s, 3))) + (causal & topk(s, 9)))"), 20
    distances = numeric_distances(p, 15, n, mode="must")
    for layers in range(8):
        held = must(p, layers, n)[15]
        assert np.array_equal(numeric_field(p, layers, 15, n, mode="must"), held)
        assert np.array_equal((distances >= 0) & (distances <= layers), held)
    with pytest.raises(Unaffordable, match="scores"):
        numeric_path(p, 15, 0, n, mode="must")


def test_given_scores_are_used() -> None:
    p, n = parse("causal & topk(s, 2) & document(ids)"), 30
    inputs = random_inputs(p, n)
    assert np.array_equal(may(p, 1, n, **inputs), p.mask(n, **inputs) | np.eye(n, dtype=bool))
    assert np.array_equal(must(p, 1, n, **inputs), may(p, 1, n, **inputs))
    only_ids = {"ids": inputs["ids"]}
    assert (must(p, 1, n) <= must(p, 1, n, **only_ids)).all()
    assert must(p, 1, n, **only_ids).sum() > n


def test_estimates_are_repeatable_and_limited() -> None:
    p = parse("causal & (window(2) | topk(s, 4))")
    assert estimate(p, 60, seed=3) == estimate(p, 60, seed=3)
    assert len({estimate(p, 60, seed=seed, samples=1).value for seed in range(8)}) > 1
    assert estimate(p, 40_000).status == "unknown"
    assert estimate(p, 20_000, limit_bytes=1 << 20).status == "unknown"
    with pytest.raises(ValueError, match="samples must be"):
        estimate(p, 8, samples=0)
    scores = random_scores(parse("heads(topk(a, 2) + (topk(b, 2) & topk(c, 1)))"), 9, np.random.default_rng(0), {"c": 1})
    assert {name: x.shape for name, x in scores.items()} == {"a": (2, 9, 9), "b": (2, 9, 9)}
