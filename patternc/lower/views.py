"""Which views a static relation is walked in: found from its shape, kept where they cost less.

Pairs that lie a stride apart become neighbours when queries and keys are sorted by residue; keys (or queries) that are a
few out of every period become neighbours when the others are left out; a few long rows are best shared out among many
programs. The view is read off the relation, not off a primitive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from patternc.lower.cost import LANES, REFERENCE_LENGTH, Spent, TileCost, row_tiles, spent
from patternc.lower.plan import Tile
from patternc.relation import IDENTITY, Relation, TileSets, View, nothing
from patternc.scalar import TRUE

CHAIN = 3.0
"""What a pass over other rows adds for each row tile, in full tiles: it reads and writes the output once more."""

LAUNCH = 8.0
"""What another kernel adds, in full tiles of one lane: its launch, and merging what it leaves."""


@dataclass(frozen=True)
class Choice:
    """A view that a piece of a relation could be walked in, with what it costs there and in the view of the rest."""

    view: View
    alone: float
    merged: float

    @property
    def taken(self) -> bool:
        return self.alone < self.merged


def split(relation: Relation, tile: Tile, *, splits: bool = False) -> list[tuple[View, Relation]]:
    """Disjoint pieces of a relation, each with its view; rows that are `View.few` or packed come first, then the identity.

    ``splits`` allows views of some rows only.
    """
    return list(search(relation, tile, splits=splits)[0])


@lru_cache(maxsize=512)
def search(
    relation: Relation, tile: Tile, *, splits: bool = False
) -> tuple[tuple[tuple[View, Relation], ...], tuple[Choice, ...]]:
    """The pieces of `split`, and the choices that led to them, costs at the reference length."""
    pieces: dict[View, Relation] = {}
    for view, piece in relation.views():
        allowed = view if splits or view.rows.stride > 1 or view.rows == IDENTITY else IDENTITY
        pieces[allowed] = pieces.get(allowed, nothing()) | piece
    base = pieces.pop(IDENTITY, nothing())
    unit = TileCost(tile, 1, 2, 1)
    choices: list[Choice] = []
    kept: list[tuple[View, Relation]] = []
    for view, piece in sorted(pieces.items(), key=lambda item: _order(item[0])):
        rest = piece - base
        if rest.is_empty():
            continue
        choice = _choice(view, base, rest, unit, chained=not base.is_empty() or bool(kept))
        choices.append(choice)
        if choice.taken:
            kept.append((view, rest))
        else:
            base = base | piece
    found: list[tuple[View, Relation]] = [] if base.is_empty() else [(IDENTITY, base)]
    done = base
    for view, piece in kept:
        found.append((view, _without(piece, done)))
        done = done | piece
    found = [(view, piece) for view, piece in found if not piece.is_empty()]
    return tuple(sorted(found, key=lambda item: _order(item[0]))), tuple(choices)


def _without(piece: Relation, done: Relation) -> Relation:
    return piece - done if not (piece & done).is_empty() else piece  # the same object again, with its tiles


def _order(view: View) -> tuple[bool, bool, int, int]:
    return not view.few, not view.packs_rows, view.stride, view.period


def _choice(view: View, base: Relation, rest: Relation, unit: TileCost, *, chained: bool) -> Choice:
    tile = unit.tile
    tiles = _tiles(rest, tile, view)
    before, beside = (spent(_tiles(r, tile), unit) for r in (base, rest))
    own = spent(tiles, unit)
    merged = Spent(before.total + beside.total, before.longest + beside.longest)
    if view.few or view.packs_rows:
        readable = not view.few or all(loop.guard == TRUE for loop in tiles.visits)
        alone = Spent(before.total + own.total, before.longest).time + LANES * LAUNCH
        return Choice(view, alone if readable else float("inf"), merged.time)
    if view.stride == 1:
        return Choice(view, Spent(before.total + own.total, before.longest + own.longest).time, merged.time)
    chain = CHAIN * row_tiles(tile.rows, IDENTITY, REFERENCE_LENGTH) if chained else 0
    return Choice(view, before.time + own.time + chain, merged.time)


def _tiles(relation: Relation, tile: Tile, view: View = IDENTITY) -> TileSets:
    return relation.tiles(tile.rows, tile.columns, view)
