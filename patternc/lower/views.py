"""Which views a static relation is walked in: found from its shape, kept where they cost less.

Pairs that lie a stride apart become neighbours when queries and keys are sorted by residue; keys that are a few out of
every period become neighbours when the others are left out. The view is read off the relation, not off a primitive.
"""

from __future__ import annotations

from patternc.lower.cost import REFERENCE_LENGTH, TileCost, cost_of
from patternc.lower.plan import Tile
from patternc.relation import IDENTITY, Relation, TileSets, View, nothing

CHAIN = 3.0
"""What a pass over other rows adds for each row tile, in full tiles: it reads and writes the output once more."""


def split(relation: Relation, tile: Tile) -> list[tuple[View, Relation]]:
    """Disjoint pieces of a relation, each with its view; the identity comes first."""
    pieces = dict(relation.views())
    base = pieces.pop(IDENTITY, nothing())
    unit = TileCost(tile, 1, 2, 1)
    kept: list[tuple[View, Relation]] = []
    for view, piece in sorted(pieces.items(), key=lambda item: (item[0].stride, item[0].period)):
        rest = piece - base
        if rest.is_empty():
            continue
        merged = _tiles(base | rest, tile)
        alone = cost_of(_tiles(rest, tile, view), unit) + (CHAIN * cost_rows(tile) if view.stride > 1 else 0)
        if alone < cost_of(merged, unit) - cost_of(_tiles(base, tile), unit):
            kept.append((view, piece))
        else:
            base = base | piece
    found: list[tuple[View, Relation]] = [] if base.is_empty() else [(IDENTITY, base)]
    done = base
    for view, piece in kept:
        found.append((view, piece - done))
        done = done | piece
    return [(view, piece) for view, piece in found if not piece.is_empty()]


def cost_rows(tile: Tile) -> int:
    """Row tiles at the reference length."""
    return -(-REFERENCE_LENGTH // tile.rows)


def _tiles(relation: Relation, tile: Tile, view: View = IDENTITY) -> TileSets:
    return relation.tiles(tile.rows, tile.columns, view)
