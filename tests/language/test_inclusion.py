"""`is_subset` and `equivalent`: right answers, and witnesses that are real pairs."""

import numpy as np
import pytest
from hypothesis import assume, given, settings

from patternc import PatternError, parse
from patternc.pattern import Inclusion, Pattern
from patternc.testing import oracle_mask, patterns, random_inputs

LENGTHS = (1, 2, 5, 12, 30)


def parse_simple(text: str) -> Pattern:
    try:
        return parse(text)
    except PatternError as error:
        assert error.code in ("too-complex", "too-many-terms")
        assume(False)
        raise


@settings(max_examples=120, deadline=None)
@given(patterns(2), patterns(2))
def test_static_patterns_are_decided(text: str, other: str) -> None:
    answer = parse_simple(text).is_subset(parse_simple(other))
    assert answer.holds is not None
    extra = {n: oracle_mask(text, n) & ~oracle_mask(other, n) for n in LENGTHS}
    if answer:
        assert not any(pairs.any() for pairs in extra.values())
    else:
        assert answer.witness is not None
        n, q, k = answer.witness.n, answer.witness.q, answer.witness.k
        assert oracle_mask(text, n)[q, k]
        assert not oracle_mask(other, n)[q, k]
        # The witness is the smallest: no shorter sequence has one.
        assert not any(pairs.any() for length, pairs in extra.items() if length < n)
        if n in extra:
            assert (q, k) == tuple(np.argwhere(extra[n])[0])


@settings(max_examples=40, deadline=None)
@given(patterns(2))
def test_ways_to_write_a_pattern(text: str) -> None:
    pattern = parse_simple(text)
    assert pattern.equivalent(f"~~({text})")
    assert pattern.equivalent(f"({text}) & causal | ({text}) - causal")
    changed = parse_simple(f"(({text}) - where(q == 3 and k == 1)) | where(q == 3 and k == 1) - ({text})")
    answer = pattern.equivalent(changed)
    assert answer.holds is False
    assert answer.witness is not None
    assert (answer.witness.q, answer.witness.k) == (3, 1)
    assert str(answer.witness) == f"query 3 and key 1 at n = {answer.witness.n}"


@settings(max_examples=60, deadline=None)
@given(patterns(2, choices=True, inputs=True), patterns(2, choices=True, inputs=True))
def test_answers_hold_for_drawn_runtime_inputs(text: str, other: str) -> None:
    answer = parse_simple(text).is_subset(parse_simple(other))
    if answer.holds is None:
        assert answer.reason
    for n in LENGTHS if answer else ():
        inputs = random_inputs(f"({text}) | ({other})", n, seed=n)
        assert not (oracle_mask(text, n, 0, **inputs) & ~oracle_mask(other, n, 0, **inputs)).any()
    if answer.holds is False and answer.witness is not None:
        n, q, k = answer.witness.n, answer.witness.q, answer.witness.k
        inputs = random_inputs(f"({text}) | ({other})", n, seed=n)
        assert oracle_mask(text, n, 0, **inputs)[q, k]
        assert not oracle_mask(other, n, 0, **inputs)[q, k]


@pytest.mark.parametrize(
    ("pattern", "other", "holds"),
    [
        ("causal & window(4096)", "window(left=4095)", True),
        ("causal & window(4096)", "window(left=4094)", False),
        ("chunk(4)", "chunk(8)", True),
        ("chunk(8)", "chunk(4)", False),
        ("stride(96)", "where((q - k) % 96 == 0)", True),
        ("stride(96)", "stride(32)", True),
        ("causal & topk(s, 4)", "causal", True),
        ("causal & random(2)", "causal", True),
        ("causal & random(2)", "causal & random(2)", True),
        ("causal & random(2)", "causal & random(2, seed=1)", None),
        ("causal & topk(s, 4)", "causal & topk(s, 8)", None),
        ("causal & document(ids)", "document(ids)", True),
        ("causal & document(ids)", "document(other)", None),
        ("document(ids)", "causal", None),
        ("causal & random(2) | self", "causal", True),
        ("heads(causal + window(2))", "full", True),
        ("heads(causal + window(2))", "causal", False),
        ("causal", "heads(causal + full)", True),
        ("layers(causal + sinks(2))", "layers(full + columns([0..1]))", True),
        ("layers(causal + sinks(2))", "layers(full + columns([0]))", False),
    ],
)
def test_known(pattern: str, other: str, holds: bool | None) -> None:
    answer = parse(pattern).is_subset(other)
    assert answer.holds is holds
    assert bool(answer) is (holds is True)
    assert (answer.witness is not None) is (holds is False)


def test_equivalence_is_not_equality() -> None:
    assert parse("causal | self") != parse("causal")
    assert parse("causal | self").equivalent("causal")
    assert parse("causal  |(self)") == parse("causal | self")
    assert isinstance(parse("causal").equivalent("full"), Inclusion)
    assert hash(parse("causal|self")) == hash(parse("causal | self"))


def test_a_difference_in_the_last_of_many_heads_is_found() -> None:
    answer = parse("heads(63 * causal + full)").is_subset("causal")
    assert answer.holds is False
    assert answer.witness is not None
    assert (answer.witness.q, answer.witness.k) == (0, 1)
