"""Redundant operands: that the rest means the same, that nothing is missed, and that the words are the user's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis import redundancy
from patternc.analysis.differ import surely_differ
from patternc.analysis.inclusion import prove_equivalent
from patternc.analysis.redundancy import redundant_terms
from patternc.relation import BudgetExceeded
from patternc.testing import patterns, random_inputs

TABLE = [
    # expression, what is redundant, the rest
    ("window(8) | window(4) | sinks(2)", ["window(4)"], "window(8) | sinks(2)"),
    ("window(4) | window(4)", ["window(4)"], "window(4)"),
    ("causal & (window(8) | ~causal)", ["~causal"], "causal & window(8)"),
    ("causal & (causal & window(4))", ["causal"], "causal & window(4)"),
    ("causal & window(left=3, right=0)", ["causal"], "window(left=3, right=0)"),
    ("causal - ~causal", ["~causal"], "causal"),
    ("causal - sinks(2) - sinks(1)", ["sinks(1)"], "causal - sinks(2)"),
    ("~(window(3) | window(2))", ["window(2)"], "~window(3)"),
    ("stride(2) | (stride(4) & causal)", ["(stride(4) & causal)"[1:-1]], "stride(2)"),
    ("heads(4 * (full & causal) + (causal | self))", ["full", "self"], "heads(4 * causal + causal)"),
    ("layers(causal + full) & full", ["full"], "layers(causal + full)"),
    ("layers(causal + full) & causal", ["layers(causal + full)"], "causal"),
    ("layers(causal + full) & window(4)", [], "layers(causal + full) & window(4)"),
    (
        "(window(4) | (stride(40) & where(q - k == 40))) & window(5)",
        ["(stride(40) & where(q - k == 40))"[1:-1], "window(5)"],
        "window(4)",
    ),
    ("window(2 * 8 - 1) & where(q - k < 3 or q < 2)", [], "window(2 * 8 - 1) & where(q - k < 3 or q < 2)"),
    ("def f(w) = window(w) | window(2)\nf(8) & causal", ["window(2)"], "window(8) & causal"),
    ("def f(x) = x | full\nf(sinks(2))", ["sinks(2)"], "full"),
    ("let w = 4\n(window(w) | window(  # ( in a comment\n  2 * w - 6)) & causal", None, "window(4) & causal"),
    ("document(a) & causal | document(a)", ["document(a) & causal"], None),
    ("layout(t, 2) | layout(t, 2) & causal", ["layout(t, 2) & causal"], "layout(t, 2)"),
    ("causal & topk(s, 3) & full", ["full"], "causal & topk(s, 3)"),
    ("causal & (window(4) | (topk(s, 4) & causal))", ["causal"], "causal & (window(4) | topk(s, 4))"),
    ("causal & random(3) | causal & random(3)", ["causal & random(3)"], "causal & random(3)"),
    ("random(3) | full", ["random(3)"], "full"),
]


@pytest.mark.parametrize(("text", "found", "rest"), TABLE)
def test_table(text: str, found: list[str] | None, rest: str | None) -> None:
    answer = pc.parse(text).redundant_terms()
    if found is not None:
        assert [operand.text for operand in answer] == found
    if rest is not None:
        assert str(answer.rest) == rest
        assert answer.undecided == ()


@pytest.mark.parametrize("name", sorted(pc.presets()))
def test_presets_have_no_redundant_terms(name: str) -> None:
    answer = pc.preset(name).redundant_terms()
    assert answer.found == ()
    # MoBA leaves keys out only where there are more than 12 blocks of 4,096, which no small run shows.
    undecided = ["topk(meanpool(b), count, block=b, force=chunk(b))"] if name in ("moba", "moba_layers") else []
    assert [operand.text for operand in answer.undecided] == undecided


def test_the_words_are_those_that_were_written() -> None:
    text = "let w = 4\n(window(w) | window(  # ( in a comment\n  2 * w - 6)) & causal"
    (operand,) = pc.parse(text, "mine.pat").redundant_terms()
    assert operand.text == "window(  # ( in a comment\n  2 * w - 6)"
    assert str(operand).endswith("(mine.pat:2:14) adds no pair that the rest does not hold")
    assert operand.operator == "|"
    text = "causal & (window(9) | ((sinks(1)) & (window(2))))"
    (operand,) = pc.parse(text).redundant_terms()
    assert operand.text in text
    assert operand.text.count("(") == operand.text.count(")")
    (operand,) = pc.parse("longformer & full").redundant_terms()
    assert (operand.text, operand.operator) == ("full", "&")
    (last,) = pc.parse("window(4) | window(4)").redundant_terms()
    assert last.span.position == (1, 13)
    assert operand.reason == "restricts nothing"


def test_as_data() -> None:
    answer = pc.parse("window(8) | window(4)").redundant_terms()
    data = json.loads(json.dumps(answer.to_json()))
    assert data["rest"] == "window(8)"
    assert data["found"][0]["text"] == "window(4)"
    assert (data["found"][0]["line"], data["found"][0]["column"]) == (1, 13)
    assert len(answer) == 1
    assert str(pc.parse("causal").redundant_terms()) == "every operand counts"


CHOICES = patterns(max_depth=3, choices=True, inputs=True)
REPEATED = st.tuples(patterns(max_depth=2), patterns(max_depth=2)).map(lambda t: f"({t[0]}) | ({t[1]}) | (({t[0]}) & ({t[1]}))")


@settings(max_examples=120, deadline=None)
@given(patterns(max_depth=3) | CHOICES | REPEATED, st.integers(1, 20))
def test_the_rest_means_the_same(text: str, n: int) -> None:
    try:
        p = pc.parse(text)
    except pc.PatternError as error:
        assume(error.code not in ("too-complex", "too-many-terms"))
        raise
    answer = redundant_terms(p)
    inputs = random_inputs(p, n)
    left = {name: value for name, value in inputs.items() if name in answer.rest.inputs}
    assert np.array_equal(p.mask(n, **inputs), answer.rest.mask(n, **left))


@settings(max_examples=60, deadline=None)
@given(patterns(max_depth=2) | REPEATED)
def test_nothing_is_missed(text: str) -> None:
    p = pc.parse(text)
    rest = redundant_terms(p).rest
    again = redundant_terms(rest)
    assert again.found == ()
    assert again.undecided == ()


@settings(max_examples=100, deadline=None)
@given(patterns(max_depth=2, choices=True, inputs=True), patterns(max_depth=2, choices=True, inputs=True))
def test_what_surely_differs_is_not_equivalent(a: str, b: str) -> None:
    try:
        first, second = pc.parse(a), pc.parse(b)
    except pc.PatternError:
        assume(False)
    assert not surely_differ(first, first)
    if surely_differ(first, second):
        assert not prove_equivalent(first, second)
        assert not prove_equivalent(second, first)


@pytest.mark.parametrize(
    ("a", "b", "differ"),
    [
        ("causal & topk(s, 3)", "causal & topk(s, 4)", False),  # what one may pick, the other may as well
        ("causal & topk(s, 3)", "causal", True),
        ("self & topk(s, 3)", "self", False),  # the one candidate is always picked
        ("chunk(3) & topk(s, 3)", "chunk(3)", False),
        ("chunk(4) & topk(s, 3)", "chunk(4)", True),
        ("chunk(4) & topk(s, 2, block=2)", "chunk(4)", False),
        ("chunk(4) & topk(s, 1, block=2)", "chunk(4)", True),
        ("topk(s, 3) | topk(t, 3)", "topk(s, 3)", True),
        ("document(a)", "none", False),  # not looked at
        ("full", "layout(t, 2) | ~layout(t, 2)", False),
        ("random(5) & topk(s, 2)", "random(5)", False),
        ("random(2)", "random(2, seed=1)", True),
        ("random(2) & layout(t, 2)", "none", False),
    ],
)
def test_surely_differ(a: str, b: str, differ: bool) -> None:
    assert surely_differ(pc.parse(a), pc.parse(b)) is differ
    assert surely_differ(pc.parse(b), pc.parse(a)) is differ


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redundancy, "MAX_TRIED", 3)
    answer = pc.parse(" | ".join(f"sinks({i})" for i in range(1, 8))).redundant_terms()
    assert len(answer.undecided) + len(answer) >= 4
    assert "was not tried" in str(answer)

    def refuse(*_: object) -> None:
        raise BudgetExceeded

    monkeypatch.setattr(redundancy, "surely_differ", refuse)
    answer = pc.parse("window(8) | window(4)").redundant_terms()
    assert answer.found == ()
    assert "operation budget" in str(answer)
