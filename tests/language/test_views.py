"""Views of a relation: which are found, and that their tiles never lie."""

from math import ceil

import numpy as np
import pytest

import patternc as pc
from patternc.analysis.members import attentions
from patternc.lower.plan import Tile, Walk
from patternc.lower.views import split
from patternc.relation import IDENTITY, MAX_FEW, View, nothing
from patternc.runtime.compile import plan_for
from patternc.scalar import TRUE, evaluate

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
    "where(q % 12 == 5) | local(3)",
    "where(q % 24 >= 20) & causal | where(k % 24 == 3) | global([1])",
    "rows([0..20, -5..-1]) | columns([7]) | summary(20, 2)",
]
LENGTHS = (1, 2, 4, 6, 7, 24, 25, 50, 131)


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


def sides(text):
    """The relation from queries to keys, and from keys to queries, as the gradients of keys and values see it."""
    return static(text), static(text).inverse()


def pairs_of(relation, n):
    q, k = np.arange(n)[:, None], np.arange(n)[None, :]
    return np.broadcast_to(np.asarray(evaluate(relation.predicate, {"q": q, "k": k, "n": n}, np)), (n, n))


def rows_with_pairs(relation, n):
    """The rows that have a pair, for an n that is too large for a table of pairs."""
    row = np.arange(n)
    return row[np.broadcast_to(np.asarray(evaluate(relation.queries().predicate, {"q": row, "k": 0, "n": n}, np)), n)]


def values_of(loops, **values):
    found = []
    for loop in loops:
        run = [evaluate(loop.start, values) + loop.step * t for t in range(max(0, evaluate(loop.count, values)))]
        found += [x for x in run if evaluate(loop.guard, {**values, "x": x})]
    return found


@pytest.mark.parametrize("splits", [False, True], ids=["every row", "shares"])
@pytest.mark.parametrize("text", EXPRESSIONS)
def test_split_is_a_partition(text, splits):
    for relation in sides(text):
        together, found = nothing(), split(relation, Tile(16, 16), splits=splits)
        for _, piece in found:
            assert (together & piece).is_empty()
            together = together | piece
        assert together.equals(relation)
        assert splits or not any(view.few or view.packs_rows for view, _ in found)
        for n in LENGTHS:
            assert (sum(pairs_of(piece, n).astype(int) for _, piece in found) == pairs_of(relation, n)).all()


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_views_re_index(text):
    """Different places of a view are different queries and keys, and each that the piece has is among them."""
    for relation in sides(text):
        for view, piece in relation.views():
            for n in LENGTHS:
                held = pairs_of(piece, n)
                seen = np.zeros(n, int)
                for r in range(min(view.stride, n)):
                    row = np.asarray(evaluate(view.query, {"t": np.arange(view.row_count(n)), "r": r}, np))
                    key = np.asarray(evaluate(view.key, {"u": np.arange(n), "r": r}, np))
                    assert (np.diff(row) > 0).all()
                    assert (np.diff(key) > 0).all()
                    row = row[row < n]
                    seen[row] += 1
                    assert set(np.flatnonzero(held[row].any(0))) <= set(key.tolist())
                assert (seen <= 1).all()
                assert (seen[held.any(1)] == 1).all()
                assert view.packs_rows or (seen == 1).all()


FEW = ["global([0, -1])", "rows([0..70, -3..-1])", "rows([5])", "where(q < 3000 and n % 2 == 0)", "where(q > n - 90)"]


@pytest.mark.parametrize("text", [*FEW, "rows([0..20, -5..-1]) | columns([7]) | summary(20, 2)"])
def test_few_rows_are_few(text):
    """However long the sequence, and the tiles that are visited are those of these rows."""
    found = [(view, piece) for relation in sides(text) for view, piece in relation.views() if view.few]
    assert found
    for view, piece in found:
        counts = []
        for n in (1, 63, 64, 65, 1000, 2 * MAX_FEW, 50_000, 50_001, 300_000, 300_001):
            rows = rows_with_pairs(piece, n)
            assert ((rows < MAX_FEW) | (rows >= n - MAX_FEW)).all()
            for size in (16, 128):
                tiles = piece.tiles(size, 16, view)
                assert all(loop.guard == TRUE for loop in tiles.visits)
                assert values_of(tiles.visits, n=n) == sorted(set((rows // size).tolist()))
            counts.append(len(rows))
        assert counts[-4:-2] == counts[-2:]


@pytest.mark.parametrize("text", ["causal", "where(q % 32 == 0)", "where(q < n // 2)", "stride(7)", "where(q >= 5000)", "none"])
def test_many_rows_are_not_few(text):
    assert not any(view.few for relation in sides(text) for view, _ in relation.views())


@pytest.mark.parametrize("rows_columns", [(16, 16), (8, 4), (64, 32)], ids=str)
@pytest.mark.parametrize("text", EXPRESSIONS)
def test_tiles_never_lie(text, rows_columns):
    """Every pair lies in one tile, full tiles hold every pair and all of their keys exist."""
    rows, columns = rows_columns
    for relation in sides(text):
        for view, piece in relation.views():
            tiles = piece.tiles(rows, columns, view)
            for n in LENGTHS:
                pairs, held = np.zeros((n, n), int), pairs_of(piece, n)
                for r in range(min(view.stride, n)):
                    visited = values_of(tiles.visits, n=n) if view.few else range(ceil(view.row_count(n) / rows))
                    for index in visited:
                        row = np.asarray(evaluate(view.query, {"t": index * rows + np.arange(rows), "r": r}, np))
                        if (row < n).any():
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
                    assert len(row)
                    assert held[np.ix_(row, keys)].all()
                keys = keys[keys < n]
                pairs[np.ix_(row, keys)] += held[np.ix_(row, keys)]


GUARDED = {"bigbird_etc": "blocks of 84 do not fall on tiles"}


@pytest.mark.parametrize("name", sorted(pc.presets()))
def test_loops_of_presets_have_no_guards(name):
    """A loop that tests each tile it comes to is for patterns of odd sizes."""
    pattern = pc.preset(name)
    loops = []
    for one, _ in attentions(pattern):
        plan = plan_for(one)
        for group in (*plan.heads, *plan.keys):
            walks = [phase for phase in group.phases if isinstance(phase, Walk)]
            assert all(walk.exact for walk in walks)
            assert all(loop.guard == TRUE for loop in group.visits)
            loops += [loop for walk in walks for loop in (*walk.full, *walk.partial)]
    assert any(loop.guard != TRUE for loop in loops) == (name in GUARDED)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("stride(96)", "where((q - k) % 96 == 0)"),
        ("stride(96)", "where((k - q) % 96 == 0)"),
        ("causal & stride(96)", "where(q >= k and (k + 96 - q) % 96 == 0)"),
        ("causal & window(512, dilation=4)", "where(0 <= q - k and q - k < 2048 and (q - k) % 4 == 0)"),
        ("summary(256, 8)", "where(k % 256 >= 248)"),
        ("causal & (chunk(64) | summary(64, 4))", "where(q >= k and (q // 64 == k // 64 or k % 64 >= 60))"),
        ("local(512) | global([0])", "where(q - k <= 256 and k - q <= 256 or q == 0 or k == 0)"),
        ("global([0])", "where(q < 1 or k < 1)"),
        ("where(q % 32 == 0) | local(8)", "local(8) | where((q + 32) % 32 < 1)"),
    ],
)
def test_spelling_does_not_matter(text, other):
    """A pattern is what it holds: the same views, loops, masks and tiles however it is written."""
    mine, its = (plan_for(pc.parse(one)) for one in (text, other))
    assert (mine.heads, mine.keys, mine.tile, mine.key_tile) == (its.heads, its.keys, its.tile, its.key_tile)


def test_several_moduli_are_several_passes():
    plan = plan_for(pc.parse("causal & (stride(96) | stride(130) | stride(200)) | window(100) | rows([0])"))
    for passes in (plan.heads, plan.keys):
        every = [one for one in passes if not one.share]
        assert [one.stride for one in every] == [1, 96, 130, 200]
        assert [one.chained for one in passes] == [False] * (len(passes) - 3) + [True] * 3
        assert [one.last for one in passes] == [False] * (len(passes) - 1) + [True]
    assert [one.rows.few for one in plan.heads] == [True, False, False, False, False]
