"""Pictures say what masks say: parts cover the pattern, codes are pairs, cells are shares of pairs."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.report import picture as module
from patternc.report.parts import MAX_PARTS, parts
from patternc.report.picture import natural_length, picture, tile_classes

SPLITS = [
    ("causal", ["causal"]),
    ("causal & window(4)", ["causal & window(4)"]),
    ("window(4) | stride(8)", ["window(4)", "stride(8)"]),
    ("causal & (window(4) | global([0]) | stride(8))", ["window(4)", "global([0])", "stride(8)"]),
    ("(self | window(3)) - sinks(1)", ["self", "window(3)"]),
    ("causal & (self | chunk(8) & (sinks(1) | stride(2)))", ["self", "sinks(1)", "stride(2)"]),
    ("(self | sinks(1)) & (chunk(2) | stride(3))", [
        "self & chunk(2)", "self & stride(3)", "sinks(1) & chunk(2)", "sinks(1) & stride(3)",
    ]),
    # a choice picks from the whole of a union beside it: that union is one part
    ("(window(4) | stride(3)) & topk(s, 2)", ["(window(4) | stride(3)) & topk(s, 2)"]),
    ("(window(4) | stride(3) | random(1)) & topk(s, 2)", ["window(4) | stride(3)", "random(1)"]),
    ("causal & (window(4) | topk(s, 2))", ["window(4)", "topk(s, 2)"]),
    ("~(self | sinks(1))", ["~(self | sinks(1))"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "labels"), SPLITS)
def test_parts(text: str, labels: list[str]) -> None:
    assert [part.label for part in parts(pc.parse(text).expression)] == labels


def test_parts_of_a_sum_are_their_whole_expressions() -> None:
    found = parts(pc.parse("causal & (window(4) | stride(8))").expression)
    assert [part.text for part in found] == ["causal & window(4)", "causal & stride(8)"]


def test_a_long_union_has_as_many_parts_as_colours() -> None:
    found = parts(pc.parse(" | ".join(f"columns([{i}])" for i in range(20))).expression)
    assert len(found) == MAX_PARTS
    assert found[-1].label == f"{20 - MAX_PARTS + 1} more parts"


STATIC = st.sampled_from(
    ["causal", "self", "window(3)", "stride(3)", "chunk(4)", "sinks(2)", "columns([0, -1])", "where(2 * k < q)"]
)
LEAVES = STATIC | st.sampled_from(["random(2)", "random(1, seed=7)", "topk(s, 2)", "document(ids)", "layout(t, 2)"])
MIXED = st.recursive(
    LEAVES, lambda p: st.tuples(p, st.sampled_from("|&"), p).map(lambda t: f"({t[0]} {t[1]} {t[2]})"), max_leaves=6
)


def inputs_of(p: pc.Pattern, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    half = -(-n // 2)
    made = {"ids": np.sort(rng.integers(0, 3, n)), "t": rng.random((half, half)) < 0.5, "s": rng.standard_normal((n, n))}
    return {name: made[name] for name in p.inputs}


@settings(max_examples=80, deadline=None)
@given(MIXED, st.integers(1, 14), st.integers(0, 2**32 - 1))
def test_the_parts_hold_what_the_pattern_holds(text: str, n: int, seed: int) -> None:
    p = pc.parse(text)
    inputs = inputs_of(p, n, np.random.default_rng(seed))
    whole = np.zeros((n, n), bool)
    for part in parts(p.expression):
        one = pc.Pattern(part.expression)
        whole |= one.mask(n, **{name: inputs[name] for name in one.inputs})
    np.testing.assert_array_equal(whole, p.mask(n, **inputs))


@settings(max_examples=80, deadline=None)
@given(MIXED, st.integers(1, 14), st.integers(0, 2**32 - 1))
def test_codes_bound_every_mask(text: str, n: int, seed: int) -> None:
    p = pc.parse(text)
    codes, mask = picture(p, n).codes(), p.mask(n, **inputs_of(p, n, np.random.default_rng(seed)))
    assert not ((codes > 0) & ~mask).any()
    assert not (mask & (codes == 0)).any()
    if not p.inputs:
        np.testing.assert_array_equal(codes > 0, mask)


def test_the_first_part_gives_the_colour() -> None:
    codes = picture(pc.parse("causal & (window(2) | stride(3) | topk(s, 1))"), 7).codes()
    assert codes[6].tolist() == [2, -3, -3, 2, -3, 1, 1]


def test_heads_and_layers_are_chosen() -> None:
    p = pc.parse("layers(causal + heads(self + full))")
    assert (picture(p, 4, layer=1, head=1).codes() > 0).all()
    assert (picture(p, 4, layer=1, head=2).codes() > 0).sum() == 4
    assert (picture(p, 4, layer=2).codes() > 0).sum() == 10


@pytest.mark.parametrize("text", ["causal & (window(300) | stride(64))", "bigbird", "sparse_fixed", "longformer", "flagship"])
def test_sampled_cells_are_near_the_counted_ones(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = pc.parse(text)
    counted = picture(p, 1500).cells(100, 50)
    monkeypatch.setattr(module, "MAX_EXACT", 1)
    sampled = picture(p, 1500).cells(100, 50)
    for a, b in ((counted.held, sampled.held), (counted.may, sampled.may)):
        assert np.abs(a.sum(0) - b.sum(0)).max() < 0.16
        assert np.abs(a.sum(0) - b.sum(0)).mean() < 0.02
    if "random" in str(p):
        return  # draws are counted on some rows only
    held = sampled.held.sum(0)
    assert (held[counted.held.sum(0) == 1] > 0.999).all()
    assert (held[counted.held.sum(0) < 1] < 1).all()
    shown, exists = sampled.held.sum(0) + sampled.may.sum(0) > 0, counted.held.sum(0) + counted.may.sum(0) > 0
    np.testing.assert_array_equal(shown, exists)


def test_a_thin_part_of_a_long_sequence_is_seen() -> None:
    cells = picture(pc.parse("causal & (window(16) | columns([700_000]))"), 1 << 20).cells(1 << 14, 1 << 13)
    assert cells.strongest(held=True)[0][60, 700_000 >> 13] == 1


def test_a_cell_with_a_hole_is_not_full() -> None:
    held = picture(pc.parse("full - where(q == 5000 and k == 5000)"), 8192).cells(512, 512).held.sum(0)
    assert held[9, 9] < 1
    assert (held == 1).sum() == held.size - 1


def test_long_sequences_take_no_quadratic_work() -> None:
    start = time.monotonic()
    cells = picture(pc.preset("flagship"), 1 << 24).cells(1 << 18, 1 << 17)
    assert cells.held.shape == (5, 64, 128)
    assert time.monotonic() - start < 20


def test_tile_classes() -> None:
    classes = tile_classes(pc.parse("causal & window(8)").meaning().static, 16, 4, 4)
    assert classes is not None
    assert classes.tolist() == [[1, 0, 0, 0], [2, 1, 0, 0], [1, 2, 1, 0], [0, 1, 2, 1]]


def test_natural_length() -> None:
    assert natural_length(pc.parse("causal")) == 64
    assert natural_length(pc.parse("window(4096)")) == 16384


def test_too_many_pairs_for_an_exact_picture() -> None:
    with pytest.raises(ValueError, match="too large"):
        picture(pc.parse("causal"), 5000).codes()
