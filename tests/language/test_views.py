"""Views of a relation: which are found, and that their tiles never lie."""

from math import ceil

import numpy as np
import pytest

import patternc as pc
from patternc.lower.plan import Tile
from patternc.lower.views import split
from patternc.relation import IDENTITY, View, nothing
from patternc.scalar import evaluate

EXPRESSIONS = [
    "stride(5)",
    "causal & stride(6)",
    "causal & (window(7) | stride(8))",
    "causal & window(5, dilation=3)",
    "where((q - k) % 7 == 3)",
    "where((k - q) % 7 == 3) & rows([4..30])",
    "causal & (chunk(16) | summary(16, 3))",
    "summary(12, 2, slot=1)",
    "stride(4) | stride(6) | window(2)",
    "global([0, -1]) | stride(9)",
    "where(q % 5 == 0 and (q - k) % 5 == 0)",
]


def static(text):
    return pc.parse(text).meaning().static


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("stride(96)", View(stride=96)),
        ("where((q - k) % 96 == 0)", View(stride=96)),
        ("where((q - k) % 96 == 5)", View(stride=96, offset=5)),
        ("where((k - q) % 96 == 5)", View(stride=96, offset=91)),
        ("causal & window(512, dilation=4)", View(stride=4)),
        ("where(0 <= q - k and q - k < 2048 and (q - k) % 4 == 0)", View(stride=4)),
        ("summary(256, 8)", View(period=256, width=8, first=248)),
        ("where(k % 256 >= 248)", View(period=256, width=8, first=248)),
    ],
)
def test_found_from_the_relation(text, view):
    assert [v for v, _ in static(text).views()] == [view]


@pytest.mark.parametrize("text", ["causal", "window(4096)", "chunk(100)", "sinks(4)", "blocks(64, 1, 1)"])
def test_dense_patterns_stay_as_they_are(text):
    assert [v for v, _ in split(static(text), Tile(64, 64))] == [IDENTITY]


def test_each_stride_has_a_pass():
    found = [v for v, _ in split(static("causal & (window(256) | stride(256) | stride(400))"), Tile(64, 64))]
    assert found == [IDENTITY, View(stride=256), View(stride=400)]


def test_narrow_strides_join_the_identity():
    """Two keys a row are not worth a pass over the rows."""
    assert [v for v, _ in split(static("causal & window(128) & stride(64)"), Tile(64, 64))] == [IDENTITY]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_split_is_a_partition(text):
    relation = static(text)
    together = nothing()
    for _, piece in split(relation, Tile(16, 16)):
        assert (together & piece).is_empty()
        together = together | piece
    assert together.equals(relation)


@pytest.mark.parametrize("rows_columns", [(16, 16), (8, 4)], ids=str)
@pytest.mark.parametrize("text", EXPRESSIONS)
def test_tiles_never_lie(text, rows_columns):
    """Every pair lies in one tile, full tiles hold every pair and all of their keys exist."""
    rows, columns = rows_columns
    for view, piece in static(text).views():
        tiles = piece.tiles(rows, columns, view)
        for n in (1, 7, 50, 131):
            pairs = np.zeros((n, n), int)
            q, k = np.arange(n)[:, None], np.arange(n)[None, :]
            held = np.broadcast_to(np.asarray(evaluate(piece.predicate, {"q": q, "k": k, "n": n}, np)), (n, n))
            for r in range(min(view.stride, n)):
                for index in range(ceil((n - r) / view.stride / rows)):
                    row = view.stride * (index * rows + np.arange(rows)) + r
                    visit(tiles, view, n, r, index, row[row < n], columns, held, pairs)
            assert (pairs == held).all()


def visit(tiles, view, n, r, index, row, columns, held, pairs):
    for loops, full in ((tiles.full, True), (tiles.partial, False)):
        for loop in loops:
            values = {"I": index, "n": n, "r": r}
            for t in range(max(0, evaluate(loop.count, values))):
                tile = evaluate(loop.start, values) + loop.step * t
                if not evaluate(loop.guard, {**values, "x": tile}):
                    continue
                keys = np.asarray(evaluate(view.key, {"u": tile * columns + np.arange(columns), "r": r}, np))
                if full:
                    assert (keys < n).all()
                    assert held[np.ix_(row, keys)].all()
                keys = keys[keys < n]
                pairs[np.ix_(row, keys)] += held[np.ix_(row, keys)]
