"""The notebook card: escaped, balanced, and there for every pattern."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.report.html import pattern_card

VOID = {"br", "rect", "path"}


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(html: str) -> str:
    reader = Balanced()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return " ".join(reader.words)


@pytest.mark.parametrize("name", pc.presets())
def test_presets(name: str) -> None:
    shown = read(pc.preset(name)._repr_html_())
    assert shown.startswith(f"{name} = ")
    assert "density" in shown


def test_facts() -> None:
    shown = read(pattern_card(pc.parse("causal & (window(1024) | topk(indexer, 16))")))
    for wanted in ("1 to at most 1,040", "density", "indexer", "(batch, heads, n, n)", "window(1024)", "topk(indexer, 16)"):
        assert wanted in shown
    assert "4,096 on average" in read(pattern_card(pc.parse("full"))).replace(".0", "")


def test_members_are_told_apart() -> None:
    shown = read(pattern_card(pc.preset("gemma3")))
    assert "layers 0-4 of every 6" in shown
    assert "layer 5 of every 6" in shown
    many = read(pattern_card(pc.parse("heads(" + " + ".join(f"window({i})" for i in range(1, 10)) + ")")))
    assert "and 5 more" in many


def test_text_is_escaped() -> None:
    html = pattern_card(pc.Pattern(pc.parse("where(k <= q and q - k < 5)").expression, "<script>alert(1)</script>"))
    assert "<script>" not in html
    assert "q - k < 5" not in html
    assert "q - k < 5" in read(html)


STATIC = st.sampled_from(
    ["causal", "self", "window(3)", "stride(3)", "sinks(2)", "none", "full", "columns([0, -1])", "chunk(100)"]
)
LEAVES = STATIC | st.sampled_from(["random(2)", "topk(s, 2, block=8)", "document(ids)", "layout(t, 2)", "heads(self + causal)"])
MIXED = st.recursive(
    LEAVES, lambda p: st.tuples(p, st.sampled_from("|&"), p).map(lambda t: f"({t[0]} {t[1]} {t[2]})"), max_leaves=5
)


@settings(max_examples=25, deadline=None)
@given(MIXED)
def test_nothing_raises(text: str) -> None:
    read(pattern_card(pc.parse(text)))
