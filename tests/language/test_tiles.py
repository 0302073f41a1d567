"""Full and partial tiles of a relation, walked loop by loop, against the dense mask."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patternc import PatternError, parse
from patternc.relation import IDENTITY, Loop, Relation
from patternc.scalar import FALSE, TRUE, evaluate
from patternc.testing import oracle_mask, patterns

SHAPES = [(16, 16), (16, 8), (128, 64)]
LENGTHS = (1, 15, 16, 17, 40, 200)
KNOWN = [
    "causal",
    "full",
    "none",
    "causal & (window(100) | sinks(4))",
    "causal & (window(20) | stride(20))",
    "causal & (chunk(32) | summary(32, 4))",
    "local(64) | global([0, 3..9, -1])",
    "blocks(64, 1, 1) | rows([0..63, -64..-1]) | columns([0..63, -64..-1])",
    "causal & window(32, dilation=3)",
    "~(causal & chunk(24))",
    "where((3 * q + k) % 5 == 1 or q // 16 == k // 8)",
]


def walk(loops: tuple[Loop, ...], row: int, n: int) -> list[int]:
    found = []
    for loop in loops:
        start, count = (int(evaluate(e, {"I": row, "n": n})) for e in (loop.start, loop.count))
        for x in (start + loop.step * t for t in range(count)):
            if evaluate(loop.guard, {"I": row, "n": n, "x": x}):
                found.append(x)
    return found


def check(relation: Relation, dense: dict[int, np.ndarray], rows: int, columns: int) -> None:
    tiles = relation.tiles(rows, columns)
    for n, mask in dense.items():
        for i in range(-(-n // rows)):
            full, partial = walk(tiles.full, i, n), walk(tiles.partial, i, n)
            visited = full + partial
            assert len(visited) == len(set(visited)), "a tile is visited twice"
            width = -(-n // columns)
            assert all(0 <= j < width for j in visited), "a tile lies outside"
            held = [mask[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] for j in range(width)]
            assert all(held[j].all() and (j + 1) * columns <= n for j in full), "a full tile is not full"
            assert not any(held[j].any() for j in range(width) if j not in visited), "an empty tile is not empty"
            if tiles.exact:
                assert all(held[j].any() for j in partial), "a partial tile is empty"
                if (i + 1) * rows <= n:  # rows that n cuts short may keep their masks, for simpler loops
                    assert not any(held[j].all() for j in partial if (j + 1) * columns <= n), "a partial tile is full"


@settings(max_examples=70, deadline=None)
@given(patterns(3), st.sampled_from(SHAPES))
def test_random_relations(text: str, shape: tuple[int, int]) -> None:
    try:
        relation = parse(text).meaning().static
    except PatternError as error:
        assert error.code == "too-complex"
        assume(False)
        raise
    check(relation, {n: oracle_mask(text, n) for n in LENGTHS}, *shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", KNOWN)
def test_known_patterns(text: str, shape: tuple[int, int]) -> None:
    check(parse(text).meaning().static, {n: parse(text).mask(n) for n in (*LENGTHS, 300)}, *shape)


def test_causal_tiles_are_a_triangle() -> None:
    tiles = parse("causal").meaning().static.tiles(16, 16)
    assert tiles.exact
    assert [(walk(tiles.full, i, 100), walk(tiles.partial, i, 100)) for i in range(3)] == [([], [0]), ([0], [1]), ([0, 1], [2])]


def test_over_budget_is_inexact_and_safe() -> None:
    text = " | ".join(f"window(9, dilation={d})" for d in (3, 5, 7, 11, 13, 17))
    relation = parse(text).meaning().static
    tiles = relation._tiles(16, 16, IDENTITY, relation._map.remove_divs(), exact=False)
    assert not tiles.exact
    assert walk(tiles.full, 1, 100) == []
    mask = parse(text).mask(100)
    for i in range(7):
        held = {j for j in range(7) if mask[i * 16 : i * 16 + 16, j * 16 : j * 16 + 16].any()}
        assert held <= set(walk(tiles.partial, i, 100))


def tile_masks(mask: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Which tiles of a mask hold a pair, and which hold all pairs of their rows that exist with keys that all exist."""
    n = len(mask)
    places = [(i, j) for i in range(-(-n // rows)) for j in range(-(-n // columns))]
    some, every = (np.zeros((-(-n // rows), -(-n // columns)), bool) for _ in range(2))
    for i, j in places:
        tile = mask[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        some[i, j] = tile.any()
        every[i, j] = tile.all() and (j + 1) * columns <= n
    return some, every


@pytest.mark.parametrize("shape", [(16, 16), (8, 16), (64, 32)], ids=str)
@pytest.mark.parametrize("text", [*KNOWN, "causal - self", "where(q - k < 40 and n > 30)"])
def test_conditions_on_tiles(text: str, shape: tuple[int, int]) -> None:
    """`active_tiles` and `full_tiles` as conditions on I, J and n, which lists of tiles are cut down by."""
    rows, columns = shape
    relation = parse(text).meaning().static
    active, full = relation.active_tiles(rows, columns), relation.full_tiles(rows, columns)
    assert active != TRUE or text == "full"
    for n in (*LENGTHS, 300):
        some, every = tile_masks(parse(text).mask(n), rows, columns)
        i, j = np.indices(some.shape)
        for condition, wanted in ((active, some), (full, every)):
            found = np.asarray(evaluate(condition, {"I": i, "J": j, "n": n}, np))
            assert (np.broadcast_to(found, wanted.shape) == wanted).all()


@settings(max_examples=40, deadline=None)
@given(patterns(2), st.sampled_from(SHAPES))
def test_conditions_on_tiles_are_safe(text: str, shape: tuple[int, int]) -> None:
    """Whatever the pattern: no tile that holds a pair is left out, and none that lacks one is called full."""
    try:
        relation = parse(text).meaning().static
    except PatternError as error:
        assert error.code == "too-complex"
        assume(False)
        raise
    active, full = relation.active_tiles(*shape), relation.full_tiles(*shape)
    for n in LENGTHS:
        some, every = tile_masks(oracle_mask(text, n), *shape)
        i, j = np.indices(some.shape)
        values = {"I": i, "J": j, "n": n}
        assert not (some & ~np.broadcast_to(np.asarray(evaluate(active, values, np)).astype(bool), some.shape)).any()
        assert not (~every & np.broadcast_to(np.asarray(evaluate(full, values, np)).astype(bool), some.shape)).any()


def test_conditions_over_budget_are_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    relation = parse("causal & (window(20) | stride(20))").meaning().static
    assert relation.active_tiles(16, 16) != TRUE
    monkeypatch.setattr("patternc.relation.TILE_BUDGET", 10)
    assert (relation.active_tiles(16, 16), relation.full_tiles(16, 16)) == (TRUE, FALSE)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("causal & window(100)", (64, 64)),
        ("causal & chunk(90)", (64, 64)),
        ("causal & chunk(90)", (128, 64)),
        ("causal & (window(20) | chunk(90))", (64, 32)),
        ("chunk(100)", (128, 64)),
        ("blocks(20, 1, 1)", (64, 32)),
        ("local(40) | columns([0])", (64, 64)),
    ],
)
def test_neighbouring_tiles_are_closed_loops(text: str, shape: tuple[int, int]) -> None:
    """Nothing is tested tile by tile, for queries that walk keys and for keys that walk queries."""
    relation, mask = parse(text).meaning().static, parse(text).mask
    for one, turned in ((relation, False), (relation.inverse(), True)):
        assert one.tiles(*shape).guards == 0
        assert all(loop.guard == TRUE for loop in (*one.tiles(*shape).full, *one.tiles(*shape).partial))
        check(one, {n: mask(n).T if turned else mask(n) for n in (*LENGTHS, 300)}, *shape)
