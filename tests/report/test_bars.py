"""The bar chart: well formed, to scale, inside its picture, and calm about times that are missing."""

from __future__ import annotations

from math import inf, nan
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patternc.report.bars import Bar, Bars, bars_svg, milliseconds

SVG = "{http://www.w3.org/2000/svg}"


def root(*groups: Bars, title: str = "causal", subtitle: str = "a device") -> ElementTree.Element:
    return ElementTree.fromstring(bars_svg(title, groups, subtitle))


def words(found: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in found.iter(f"{SVG}text")]


def widths(found: ElementTree.Element) -> list[float]:
    return [float(rect.attrib["width"]) for rect in found.iter(f"{SVG}rect")]


def test_bars_are_to_scale_and_labelled() -> None:
    found = root(Bars("n = 4,096", (Bar("patternc", 2.0), Bar("flex", 3.0), Bar("sdpa-mask", 4.0)), floor_ms=1.0))
    first, second, third = widths(found)
    assert second / first == pytest.approx(1.5, rel=1e-3)
    assert third / first == pytest.approx(2, rel=1e-3)
    shown = words(found)
    for wanted in ("causal", "a device", "n = 4,096", "patternc", "2.000 ms", "3.000 ms  1.50\u00d7", "4.000 ms  2.00\u00d7"):
        assert wanted in shown
    assert found.attrib["aria-label"] == "causal"


def test_the_floor_is_a_line_in_the_scale_of_its_group() -> None:
    found = root(Bars("one", (Bar("patternc", 2.0),), floor_ms=1.0))
    (bar,) = found.iter(f"{SVG}rect")
    line, legend = (path.attrib["d"] for path in found.iter(f"{SVG}path"))
    x = float(line[1:].split()[0])
    assert x - float(bar.attrib["x"]) == pytest.approx(float(bar.attrib["width"]) / 2, rel=1e-3)
    assert legend != line
    assert "floor: no kernel can be faster" in words(found)
    assert not list(root(Bars("one", (Bar("patternc", 2.0),))).iter(f"{SVG}path"))


@pytest.mark.parametrize("missing", [None, nan, inf, -inf, -1.0])
def test_missing_times_are_told(missing: float | None) -> None:
    found = root(Bars("one", (Bar("patternc", 1.0), Bar("flex", missing, "needs a GPU")), floor_ms=missing))
    assert len(widths(found)) == 1
    assert "not measured: needs a GPU" in words(found)
    assert not list(found.iter(f"{SVG}path"))


def test_without_a_first_time_there_are_no_ratios() -> None:
    shown = words(root(Bars("one", (Bar("patternc", None), Bar("flex", 2.0)))))
    assert "not measured" in shown
    assert "2.000 ms" in shown


def test_zero_and_nothing() -> None:
    assert widths(root(Bars("one", (Bar("patternc", 0.0), Bar("flex", 0.0)), floor_ms=0.0))) == [0, 0]
    assert widths(root(Bars("one", ()))) == []
    assert words(root()) == ["causal", "a device"]


def test_names_have_one_colour_everywhere() -> None:
    found = root(Bars("one", (Bar("a", 1.0), Bar("b", 2.0))), Bars("two", (Bar("b", 3.0), Bar("a", 1.0))))
    fills = [rect.attrib["fill"] for rect in found.iter(f"{SVG}rect")]
    assert fills[0] == fills[3] != fills[1] == fills[2]


def test_text_is_escaped_and_fits() -> None:
    title = "where(q - k < 5 and k <= q) & layout(t, 2)"
    note = "\x1b[31merror\x00 <b> & " + "x" * 1000
    found = root(Bars("<&>", (Bar("a&b", 1.0), Bar("c", None, note))), title=title, subtitle="y" * 1000)
    shown = words(found)
    assert title in shown
    assert "<&>" in shown
    assert "a&b" in shown
    assert max(map(len, shown)) < 140


@pytest.mark.parametrize(
    ("ms", "shown"), [(0.0, "0.000"), (0.26476, "0.265"), (12.3456, "12.346"), (350.12, "350.1"), (12345.6, "12,346")]
)
def test_milliseconds(ms: float, shown: str) -> None:
    assert milliseconds(ms) == shown


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.none() | st.floats(), max_size=4), max_size=4), st.text(max_size=30), st.none() | st.floats())
def test_anything_is_well_formed_and_inside(times: list[list[float | None]], text: str, floor: float | None) -> None:
    bars = [Bars(text, tuple(Bar(f"{text}{i}", ms, text) for i, ms in enumerate(row)), floor) for row in times]
    found = root(*bars, title=text, subtitle=text)
    for rect in found.iter(f"{SVG}rect"):
        assert 0 <= float(rect.attrib["width"]) <= float(found.attrib["width"]) - float(rect.attrib["x"])
        assert float(rect.attrib["y"]) + float(rect.attrib["height"]) <= float(found.attrib["height"])
