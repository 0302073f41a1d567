"""Graphs of positions and of blocks against dense masks."""

from __future__ import annotations

import sys

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis import graph as module
from patternc.testing import oracle_mask, patterns, random_inputs

TEXTS = [
    "none",
    "causal & (window(4) | stride(5))",
    "local(4) | global([0, -1])",
    "causal & (window(3) | random(2))",
    "random(2, block=4)",
    "heads(window(3) + (causal & stride(4)) + random(2))",
    "layout(t, 4) | self",
    "window(3, dilation=4) & where(q % 5 != 1)",
]


def made(text: str, n: int) -> tuple[pc.Pattern, dict[str, np.ndarray], np.ndarray]:
    p = pc.parse(text)
    inputs = random_inputs(p, n)
    return p, inputs, np.logical_or.reduce([oracle_mask(p, n, head, **inputs) for head in range(p.heads)])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("n", [1, 9, 30])
def test_edges_are_pairs(text: str, n: int) -> None:
    p, inputs, mask = made(text, n)
    g = p.graph(n, **inputs)
    assert isinstance(g, nx.DiGraph)
    assert np.array_equal(nx.to_numpy_array(g, nodelist=range(n), weight=None).astype(bool), mask)
    assert [g.nodes[x]["reads"] for x in range(n)] == mask.sum(1).tolist()
    assert [g.nodes[x]["read_by"] for x in range(n)] == mask.sum(0).tolist()
    assert all(data["distance"] == q - k and data["terms"] and data["heads"] for q, k, data in g.edges(data=True))


def test_terms_and_heads_of_an_edge() -> None:
    g = pc.parse("causal & (window(3) | sinks(1)) | global([5])").graph(10)
    assert g.edges[4, 0]["terms"] == ("sinks(1)",)
    assert g.edges[1, 0]["terms"] == ("window(3)", "sinks(1)")
    assert g.edges[5, 4]["terms"] == ("window(3)", "global([5])")
    assert g.edges[0, 5]["terms"] == ("global([5])",)
    g = pc.parse("heads(2 * causal + window(2))").graph(6)
    assert g.edges[5, 1]["heads"] == (0, 1)
    assert g.edges[1, 0]["heads"] == (0, 1, 2)
    assert g.edges[0, 1]["terms"] == ("window(2)",)
    assert g.edges[1, 0]["terms"] == ("causal", "window(2)")
    assert set(pc.parse("heads(2 * causal + window(2))").graph(6, 2).edges) == set(pc.parse("window(2)").graph(6).edges)


def test_a_choice_beside_a_union_keeps_it_whole() -> None:
    scores = np.arange(36.0).reshape(6, 6)
    g = pc.parse("(window(2) | sinks(2)) & topk(s, 1)").graph(6, s=scores)
    assert {data["terms"] for *_, data in g.edges(data=True)} == {("(window(2) | sinks(2)) & topk(s, 1)",)}
    g = pc.parse("causal & (window(2) | topk(s, 1))").graph(6, s=-scores)
    assert g.edges[5, 0]["terms"] == ("topk(s, 1)",)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("n", "block"), [(1, 1), (9, 2), (30, 7), (30, 30), (31, 64), (32, 8)])
def test_block_edges_are_counts(text: str, n: int, block: int) -> None:
    p, inputs, mask = made(text, n)
    assert_counts(p.block_graph(n, block, **inputs), mask, block)


def assert_counts(g: nx.DiGraph, mask: np.ndarray, block: int) -> None:
    n = len(mask)
    spans = [(first, min(n, first + block)) for first in range(0, n, block)]
    assert [(g.nodes[i]["first"], g.nodes[i]["last"] + 1) for i in sorted(g.nodes)] == spans
    for i, (a, b) in enumerate(spans):
        for j, (c, d) in enumerate(spans):
            part = mask[a:b, c:d]
            assert g.has_edge(i, j) == part.any()
            if part.any():
                assert g.edges[i, j]["pairs"] == part.sum()
                assert g.edges[i, j]["full"] == part.all()
                assert g.edges[i, j]["weight"] == pytest.approx(part.mean())


@settings(max_examples=80, deadline=None)
@given(patterns(max_depth=3, choices=True, inputs=True), st.integers(1, 30), st.integers(1, 12))
def test_graphs_of_random_patterns(text: str, n: int, block: int) -> None:
    try:
        p = pc.parse(text)
    except pc.PatternError as error:
        assume(error.code not in ("too-complex", "too-many-terms"))
        raise
    inputs = random_inputs(p, n)
    mask = p.mask(n, **inputs)
    assert_counts(p.block_graph(n, block, **inputs), mask, block)
    g = p.graph(n, **inputs)
    assert set(g.edges) == set(map(tuple, np.argwhere(mask).tolist()))
    assert all(data["terms"] for *_, data in g.edges(data=True))


def test_pieces_and_closed_forms_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "causal & (window(4) | stride(5))"
    monkeypatch.setattr(module, "_PIECE", 8)
    assert_counts(pc.parse(text).block_graph(40, 6), oracle_mask(text, 40), 6)


def test_large_lengths() -> None:
    g = pc.parse("local(512) | global([0])").block_graph(131_072, 1024)
    assert len(g) == 128
    assert g.edges[1, 1]["pairs"] == 1024 * 513 - 2 * sum(range(1, 257))
    assert not g.edges[5, 0]["full"]
    assert (g.edges[5, 0]["pairs"], g.edges[0, 5]["pairs"]) == (1024, 1024)
    assert pc.parse("causal").block_graph(8_192, 128).edges[5, 2]["full"]


def test_limits_are_told() -> None:
    p = pc.parse("causal & window(3)")
    with pytest.raises(ValueError, match="see block_graph"):
        p.graph(5_000)
    with pytest.raises(ValueError, match="1,000,000 edges, over 200,000"):
        pc.parse("full").graph(1_000)
    with pytest.raises(ValueError, match="at least 1 position"):
        p.block_graph(10, 0)
    with pytest.raises(ValueError, match="over 4,096 blocks"):
        p.block_graph(10**6, 2)
    with pytest.raises(ValueError, match="too much to count"):
        p.block_graph(10**6, 1000)
    with pytest.raises(ValueError, match="too large for a dense"):
        pc.parse("random(2)").block_graph(10**5, 1000)
    with pytest.raises(ValueError, match="edges, over"):
        pc.parse("full").block_graph(4_000, 2)
    with pytest.raises(ValueError, match="from 1 to"):
        p.graph(0)
    with pytest.raises(pc.PatternError, match="no layer was chosen"):
        pc.parse("layers(causal + full)").graph(5)
    assert len(pc.parse("layers(causal + full)").graph(5, layer=1).edges) == 25


def test_networkx_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    for ask in (lambda: pc.parse("causal").graph(4), lambda: pc.parse("causal").block_graph(4, 2)):
        with pytest.raises(ImportError, match=r"pip install 'patternc\[graph\]'"):
            ask()


def test_an_empty_pattern_at_a_length_too_large_to_walk() -> None:
    with pytest.raises(ValueError, match="too much to count"):
        pc.parse("none").block_graph(10**9, 10**8)
