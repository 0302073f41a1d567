"""The SVG file: well formed, exact for small n, modest in size, and legible text."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.report.colours import PALETTE
from patternc.report.picture import picture
from patternc.report.svg import mask_svg, merged

SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg: str, n: int) -> np.ndarray:
    """The codes of a picture, read back from its rectangles; no two of them may overlap."""
    codes = np.zeros((n, n), int)
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        if "data-part" not in group.attrib:
            continue
        part, sign = int(group.attrib["data-part"]), 1 if group.attrib["data-kind"] == "held" else -1
        assert group.attrib["fill"] == PALETTE[part]
        assert ("fill-opacity" in group.attrib) == (sign < 0)
        for rect in group.iter(f"{SVG}rect"):
            x, y, width, height = (int(rect.attrib[a]) for a in ("x", "y", "width", "height"))
            assert min(width, height) > 0
            assert max(x + width, y + height) <= n
            assert not codes[y : y + height, x : x + width].any()
            codes[y : y + height, x : x + width] = sign * (part + 1)
    return codes


STATIC = st.sampled_from(
    ["causal", "self", "window(3)", "stride(3)", "chunk(4)", "sinks(2)", "none", "full", "columns([0, -1])"]
)
LEAVES = STATIC | st.sampled_from(["random(2)", "topk(s, 2)", "document(ids)", "layout(t, 2)"])
MIXED = st.recursive(
    LEAVES, lambda p: st.tuples(p, st.sampled_from("|&"), p).map(lambda t: f"({t[0]} {t[1]} {t[2]})"), max_leaves=6
)


@settings(max_examples=60, deadline=None)
@given(MIXED, st.integers(1, 24))
def test_the_rectangles_are_the_mask(text: str, n: int) -> None:
    p = pc.parse(text)
    codes = drawn(mask_svg(p, n), n)
    np.testing.assert_array_equal(codes, picture(p, n).codes())
    if not p.inputs:
        np.testing.assert_array_equal(codes > 0, p.mask(n))


def test_heads_are_drawn_apart() -> None:
    p = pc.parse("heads(random(2) + full)")
    np.testing.assert_array_equal(drawn(mask_svg(p, 9, head=2), 9) > 0, p.mask(9, head=2))
    assert (drawn(mask_svg(p, 9, head=1), 9) > 0).all()


def test_runs_are_merged() -> None:
    mask = np.zeros((6, 6), bool)
    mask[1:4, 2:5] = True
    mask[5, 0] = True
    assert [(r.x, r.y, r.width, r.height) for r in merged(mask)] == [(2, 1, 3, 3), (0, 5, 1, 1)]
    assert len(merged(np.ones((50, 50), bool))) == 1


@pytest.mark.parametrize(("text", "n"), [("flagship", 16384), ("bigbird", 4096), ("causal & (window(8) | stride(16))", 128)])
def test_files_are_small(text: str, n: int) -> None:
    assert len(mask_svg(pc.parse(text), n)) < 120_000


def test_cells_of_a_long_sequence() -> None:
    root = ElementTree.fromstring(mask_svg(pc.parse("causal & (window(1024) | sinks(512))"), 8192))
    groups = [g for g in root.iter(f"{SVG}g") if "data-part" in g.attrib]
    cells = np.zeros((128, 128))
    for group in groups:
        for rect in group.iter(f"{SVG}rect"):
            x, y, width, height = (int(rect.attrib[a]) for a in ("x", "y", "width", "height"))
            cells[y : y + height, x : x + width] = float(group.attrib.get("fill-opacity", 1))
    assert (cells[np.triu_indices(128, 1)] == 0).all()
    assert (cells[16:, :8] == 1).all()
    assert (cells[np.arange(30, 128), np.arange(20, 118)] == 1).all()
    assert (cells[60:, 10:40] == 0).all()
    assert 0 < cells[64, 64] < 1


def words(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_title_axes_and_legend() -> None:
    shown = words(mask_svg(pc.parse("causal & (window(4) | stride(8) | topk(indexer, 2))"), 32))
    assert "causal & (window(4) | stride(8) | topk(indexer, 2))" in shown
    for wanted in (
        "window(4)",
        "stride(8)",
        "topk(indexer, 2)",
        "possible; chosen at run time",
        "key k \u2192",
        "n = 32",
        "0",
        "28",
    ):
        assert wanted in shown
    assert "mistral = causal & window(4096)" in words(mask_svg(pc.preset("mistral")))


def test_text_is_escaped() -> None:
    text = "where(q - k < 5 and k <= q) & layout(t, 2)"
    svg = mask_svg(pc.parse(text), 8)
    assert text in words(svg)
    assert "q - k < 5" not in svg


def test_the_picture_of_the_readme_is_current() -> None:
    """Made by: patternc show "causal & (window(8) | ...)" --n 64 --svg examples/flagship.svg, with the text below."""
    p = pc.parse("causal & (window(8) | global([0]) | stride(16) | random(2) | topk(indexer, 4))")
    path = Path(__file__).resolve().parents[2] / "examples" / "flagship.svg"
    assert path.read_text("utf-8") == mask_svg(p, 64)


def test_bare_pictures_have_no_text() -> None:
    assert words(mask_svg(pc.parse("causal"), 16, bare=True, side=100)) == []


@pytest.mark.parametrize("name", pc.presets())
@pytest.mark.parametrize("n", [1, 100, 3000])
def test_presets(name: str, n: int) -> None:
    ElementTree.fromstring(mask_svg(pc.preset(name), n, head=5, layer=1))


def test_a_long_expression_stays_in_its_box() -> None:
    p = pc.parse(" | ".join(f"where(k == {i} and q >= {i + 1000})" for i in range(0, 24, 3)))
    assert max(map(len, words(mask_svg(p, 64)))) <= 110
