"""What a plan costs, in units of one full tile of 64 x 64: how tile shapes are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.lower.plan import Plan, Tile, Walk
from patternc.relation import Loop, TileSets
from patternc.scalar import evaluate

REFERENCE_LENGTH = 32_768

Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TileCost:
    """A tile shape with what a backend spends on it: for a full tile, a partial one, and once a row tile."""

    tile: Tile
    full: float
    partial: float
    row: float


@dataclass(frozen=True)
class Work:
    """The key tiles that the walks of a plan visit at some n, summed over row tiles; heads of a period on average."""

    rows: float
    full: float
    partial: float

    def cost(self, unit: TileCost) -> float:
        return self.rows * unit.row + self.full * unit.full + self.partial * unit.partial


def work(plan: Plan, n: int = REFERENCE_LENGTH) -> Work:
    """The tiles of one head at n. What is listed or gathered at run time is left out: it is the same for all tile shapes."""
    rows, full, partial = 0.0, 0.0, 0.0
    for group in plan.heads:
        share = len(group.heads) / group.period
        rows += share * row_tiles(plan.tile.rows, group.stride, n)
        for walk in (phase for phase in group.phases if isinstance(phase, Walk)):
            full += share * visited(walk.full, plan.tile.rows, group.stride, n)
            partial += share * visited(walk.partial, plan.tile.rows, group.stride, n)
    return Work(rows, full, partial)


def cost_of(tiles: TileSets, unit: TileCost, n: int = REFERENCE_LENGTH) -> float:
    """What walking the tiles of a relation costs at n."""
    stride = tiles.view.stride
    full, partial = (visited(loops, tiles.rows, stride, n) for loops in (tiles.full, tiles.partial))
    rows = row_tiles(tiles.rows, stride, n) if stride > 1 else 0
    return full * unit.full + partial * unit.partial + rows * unit.row


def row_tiles(rows: int, stride: int, n: int) -> int:
    """Row tiles of all residues together."""
    return stride * ceil(ceil(n / stride) / rows)


def visited(loops: tuple[Loop, ...], rows: int, stride: int, n: int) -> int:
    """Key tiles that loops visit, over all row tiles; every residue is taken to visit as many as the first."""
    index: Indices = np.arange(row_tiles(rows, stride, n) // stride, dtype=np.int64)
    values = {"I": index, "n": n, "r": 0}
    return stride * sum(int(np.maximum(evaluate(loop.count, values, np) + 0 * index, 0).sum()) for loop in loops)
