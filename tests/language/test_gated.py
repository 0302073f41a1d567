"""Patterns with branches: what `gated(...)` means, and where it may stand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis.members import attentions
from patternc.testing import oracle_mask, patterns, random_inputs

TEXT = "causal & gated(far=stride(4), near=window(3)) - self"


def test_branches_are_named_and_taken() -> None:
    pattern = pc.parse(TEXT)
    assert pattern.branches == ("far", "near")
    assert [str(pattern.branch(name)) for name in pattern.branches] == [
        "causal & stride(4) - self",
        "causal & window(3) - self",
    ]
    assert pattern.branch("far").branches == ()
    assert pc.parse("causal").branches == ()
    with pytest.raises(pc.PatternError, match="did you mean 'near'"):
        pattern.branch("naer")
    with pytest.raises(pc.PatternError, match=r"gated\(\.\.\.\) makes branches"):
        pc.parse("causal").branch("near")


@pytest.mark.parametrize(
    ("text", "far", "near"),
    [
        ("gated(far=stride(4), near=window(3))", "stride(4)", "window(3)"),
        ("gated(far=stride(4), near=window(3)) | self", "stride(4) | self", "window(3) | self"),
        (
            "causal & (gated(far=stride(4), near=window(3)) - self)",
            "causal & (stride(4) - self)",
            "causal & (window(3) - self)",
        ),
        ("let f = stride(4)\ngated(far=f, near=heads(full + self))", "stride(4)", "heads(full + self)"),
        ("layers(2 * gated(far=self, near=full) + causal)", "layers(2 * self + causal)", "layers(2 * full + causal)"),
    ],
)
def test_what_stands_beside_it_goes_to_every_branch(text: str, far: str, near: str) -> None:
    pattern = pc.parse(text)
    for name, wanted in (("far", far), ("near", near)):
        assert pattern.branch(name) == pc.parse(wanted)
    for layer in range(pattern.layers):
        for head in range(pattern.heads):
            union = pc.parse(f"({far}) | ({near})") if pattern.layers == 1 else None
            masks = [pattern.branch(name).mask(9, head, layer=layer) for name in pattern.branches]
            assert np.array_equal(pattern.mask(9, head, layer=layer), np.logical_or(*masks))
            assert np.array_equal(pattern.mask(9, head, layer=layer), oracle_mask(pattern, 9, head, layer))
            assert union is None or np.array_equal(pattern.mask(9, head), union.mask(9, head))


@settings(max_examples=60, deadline=None)
@given(patterns(max_depth=2, choices=True), patterns(max_depth=2, choices=True), patterns(max_depth=1), st.integers(1, 20))
def test_any_branches(a: str, b: str, beside: str, n: int) -> None:
    try:
        pattern = pc.parse(f"gated(x={a}, y={b}) & ({beside})")
        wanted = [pc.parse(f"({one}) & ({beside})") for one in (a, b)]
    except pc.PatternError as error:
        assert error.code in ("too-complex", "too-many-terms")
        return
    assert [pattern.branch(name) for name in pattern.branches] == wanted
    assert pc.parse(str(pattern)) == pattern
    inputs = random_inputs(pattern, n)
    mask = pattern.mask(n, **inputs)
    assert np.array_equal(mask, oracle_mask(pattern, n, **inputs))
    parts = [one.mask(n, **{name: inputs[name] for name in one.inputs}) for one in wanted]
    if not any("topk" in text or "random" in text for text in (a, b)):
        assert np.array_equal(mask, np.logical_or(*parts))


def test_proofs_are_about_what_the_branches_read_together() -> None:
    pattern = pc.parse("causal & gated(far=stride(4), near=window(3))")
    assert pattern.equivalent("causal & (stride(4) | window(3))")
    assert pattern.hop_diameter().value == pc.parse("causal & (stride(4) | window(3))").hop_diameter().value
    assert pc.parse("gated(a=causal, b=rows([0]))").prove_self_loops()
    assert not pc.parse("gated(a=causal, b=rows([0]))").prove_causal()


def test_parts_are_redundant_in_a_branch_not_beside_another() -> None:
    assert len(pc.parse("gated(a=causal, b=causal & window(4))").redundant_terms()) == 0
    (found,) = pc.parse("gated(a=causal | self, b=causal & window(4))").redundant_terms()
    assert found.text == "self"


def test_every_branch_of_a_layer_is_an_attention() -> None:
    pattern = pc.parse("layers(2 * gated(a=causal, b=full) + causal)")
    assert [(str(one), where) for one, where in attentions(pattern)] == [
        ("causal", "layers 0-1 of every 3, branch a"),
        ("full", "layers 0-1 of every 3, branch b"),
        ("causal", "layer 2 of every 3"),
    ]


def test_native_sparse_attention() -> None:
    pattern = pc.preset("nsa")
    assert pattern.branches == ("compressed", "selected", "window")
    assert pattern.branch("selected").equivalent(pc.preset("nsa_selected"))
    assert pattern.branch("window").equivalent("causal & window(512)")
    assert pattern.branch("compressed").mask(50)[49].nonzero()[0].tolist() == [31, 47]
