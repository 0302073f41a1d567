"""The laws of the language: a Boolean algebra of sets, and choices that pick among the sets beside them."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patternc import PatternError, parse
from patternc.testing import patterns, random_inputs

BOOLEAN = [
    ("{a} | {b}", "{b} | {a}"),
    ("{a} & {b}", "{b} & {a}"),
    ("{a} | ({b} | {c})", "({a} | {b}) | {c}"),
    ("{a} & ({b} & {c})", "({a} & {b}) & {c}"),
    ("{a} & ({b} | {c})", "({a} & {b}) | ({a} & {c})"),
    ("{a} | ({b} & {c})", "({a} | {b}) & ({a} | {c})"),
    ("{a} | {a}", "{a}"),
    ("{a} & {a}", "{a}"),
    ("{a} | ({a} & {b})", "{a}"),
    ("{a} & ({a} | {b})", "{a}"),
    ("~~{a}", "{a}"),
    ("~({a} | {b})", "~{a} & ~{b}"),
    ("~({a} & {b})", "~{a} | ~{b}"),
    ("{a} - {b}", "{a} & ~{b}"),
    ("{a} - {b} - {c}", "{a} - ({b} | {c})"),
    ("{a} | ~{a}", "full"),
    ("{a} & ~{a}", "none"),
    ("{a} | none", "{a}"),
    ("{a} & full", "{a}"),
    ("{a} - full", "none"),
    ("~full", "none"),
]


def small(**kwargs: bool) -> st.SearchStrategy[str]:
    return patterns(max_depth=1, **kwargs).map("({})".format)


def mask(text: str, n: int, source: str, head: int = 1) -> np.ndarray:
    """The mask, with the runtime inputs of ``source`` (the same for both sides of a law)."""
    return parse(text).mask(n, head, **random_inputs(source, n, heads=2, seed=3))


@pytest.mark.parametrize(("left", "right"), BOOLEAN)
@settings(max_examples=6, deadline=None)
@given(a=small(), b=small(), c=small(), n=st.sampled_from([1, 5, 12]))
def test_boolean_algebra(left: str, right: str, a: str, b: str, c: str, n: int) -> None:
    left, right = left.format(a=a, b=b, c=c), right.format(a=a, b=b, c=c)
    assert parse(left).equivalent(right)
    assert np.array_equal(parse(left).mask(n), parse(right).mask(n))


@pytest.mark.parametrize(("left", "right"), BOOLEAN)
@settings(max_examples=4, deadline=None)
@given(a=small(inputs=True), b=small(inputs=True), c=small(inputs=True), n=st.sampled_from([1, 5, 12]))
def test_boolean_algebra_with_runtime_inputs(left: str, right: str, a: str, b: str, c: str, n: int) -> None:
    left, right, source = left.format(a=a, b=b, c=c), right.format(a=a, b=b, c=c), f"{a} | {b} | {c}"
    assert np.array_equal(mask(left, n, source), mask(right, n, source))


@pytest.mark.parametrize(
    "choice", ["topk(scores, 2)", "topk(scores, 1, block=3)", "random(2)", "random(1, block=2, seed=4, pool=3)"]
)
@settings(max_examples=10, deadline=None)
@given(a=small(inputs=True), b=small(inputs=True), n=st.sampled_from([1, 6, 11]))
def test_choices(choice: str, a: str, b: str, n: int) -> None:
    source = f"{a} | {b} | {choice}"

    def same(left: str, right: str) -> None:
        try:
            masks = mask(left, n, source), mask(right, n, source)
        except PatternError as error:
            assert error.code == "too-complex"  # a draw needs its candidates in closed form
            assume(False)
        assert np.array_equal(*masks)

    # Among the sets, an expression is one set: what is picked depends on the pairs, not on how they are written.
    same(f"({a} | {b}) & {choice}", f"({b} | ({a} | {b})) & {choice}")
    same(f"({a} | ~{a}) & {choice}", f"full & {choice}")
    # A choice flattens the conjunction it stands in.
    same(f"{a} & ({b} & {choice})", f"({a} & {b}) & {choice}")
    same(f"{choice} & {a}", f"{a} & {choice}")
    same(f"({a} - {b}) & {choice}", f"{a} & {choice} - {b}")
    # '&' distributes over a union in which choices are involved.
    same(f"{a} & ({b} | {choice})", f"({a} & {b}) | ({a} & {choice})")
    same(f"{a} & ({choice} | {choice})", f"{a} & {choice}")
    same(f"none & {choice}", "none")
    # What is picked is part of what may be picked.
    assert not (mask(f"{a} & {choice}", n, source) & ~mask(a, n, source)).any()


def test_top_of_a_union_is_not_the_union_of_tops() -> None:
    scores = np.array([[[5.0, 4, 1, 0]] * 4])
    both = parse("(columns([0..1]) | columns([2..3])) & topk(s, 2)").mask(4, s=scores)
    each = parse("columns([0..1]) & topk(s, 2) | columns([2..3]) & topk(s, 2)").mask(4, s=scores)
    assert both[3].tolist() == [True, True, False, False]
    assert each[3].tolist() == [True, True, True, True]


def test_union_counts_each_key_once() -> None:
    scores = np.zeros((1, 30, 30))
    text = "window(3) | (causal & random(4)) | (causal & topk(s, 5)) | window(2) | (causal & random(4, seed=1))"
    pattern = parse(text)
    assert pattern.nnz(30, s=scores) == pattern.mask(30, s=scores).sum()
    assert parse("causal & random(6) | causal & random(6)").nnz(50) == parse("causal & random(6)").nnz(50)


def test_fewer_candidates_are_all_taken() -> None:
    scores = np.random.default_rng(0).normal(size=(12, 12))
    for choice in ("topk(s, 4)", "random(4)"):
        found = parse(f"causal & {choice}").mask(12, s=scores)
        assert found.sum(1).tolist() == [min(q + 1, 4) for q in range(12)]


def test_ties_go_to_the_lowest_key_and_dead_scores_are_never_picked() -> None:
    scores = np.array([[np.nan, 1.0, 2.0, 1.0, -np.inf, 1.0]] * 6)
    assert np.flatnonzero(parse("topk(s, 2)").mask(6, s=scores)[0]).tolist() == [1, 2]
    assert np.flatnonzero(parse("topk(s, 9)").mask(6, s=scores)[0]).tolist() == [1, 2, 3, 5]
    assert not parse("columns([0, 4]) & topk(s, 2)").mask(6, s=scores).any()


def test_block_scores() -> None:
    of_keys = np.array([[0.0, 9, 5, 6, 1, 1, 7]] * 7)
    # Key 1 holds the best score of block 0, but may not be read: the block is worth what its allowed keys are.
    found = parse("~columns([1]) & topk(s, 2, block=2)").mask(7, s=of_keys)
    assert np.flatnonzero(found[0]).tolist() == [2, 3, 6]
    of_blocks = np.array([[3.0, 2, 1, 2]] * 7)
    found = parse("~columns([0..1]) & topk(s, 2, block=2)").mask(7, s=of_blocks)
    assert np.flatnonzero(found[0]).tolist() == [2, 3, 6]


def test_two_choices_in_one_conjunction() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(2, 20, 20))
    both = parse("causal & topk(a, 6) & topk(b, 6)").mask(20, a=a, b=b)
    assert np.array_equal(both, parse("causal & topk(a, 6)").mask(20, a=a) & parse("causal & topk(b, 6)").mask(20, b=b))
    # A selection beside a draw picks among the drawn keys.
    drawn = parse("causal & random(6)").mask(20)
    picked = parse("causal & random(6) & topk(a, 2)").mask(20, a=a)
    assert picked.sum(1).tolist() == [min(q + 1, 2) for q in range(20)]
    for q in range(20):
        best = sorted(np.flatnonzero(drawn[q]), key=lambda key: -a[q, key])[:2]
        assert sorted(best) == np.flatnonzero(picked[q]).tolist()


def test_draws_look_past_runtime_filters() -> None:
    ids = np.repeat([0, 1], 10)
    drawn = parse("causal & random(3)").mask(20)
    kept = parse("causal & document(ids) & random(3)").mask(20, ids=ids)
    assert np.array_equal(kept, drawn & (ids[:, None] == ids[None, :]))


@settings(max_examples=25, deadline=None)
@given(text=patterns(max_depth=2), other=patterns(max_depth=2), n=st.sampled_from([1, 9]))
def test_mixtures_are_their_items(text: str, other: str, n: int) -> None:
    mixed = parse(f"heads(2 * ({text}) + ({other}))")
    assert mixed.heads == 3
    for head, item in enumerate([text, text, other, text]):
        assert np.array_equal(mixed.mask(n, head), parse(item).mask(n))
        assert mixed.head(head) == parse(item)
    layered = parse(f"layers(({other}) + heads(({text}) + none)) | self")
    assert (layered.layers, layered.heads) == (2, 2)
    assert np.array_equal(layered.mask(n, 0, layer=3), parse(f"({text}) | self").mask(n))
    assert np.array_equal(layered.mask(n, 1, layer=1), parse("self").mask(n))
    assert layered.layer(0) == parse(f"({other}) | self")
