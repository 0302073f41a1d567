"""What a plan costs, in units of one full tile of 64 x 64: how views and tile shapes are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.lower.plan import Plan, Tile, Walk
from patternc.relation import Loop, TileSets, View
from patternc.scalar import evaluate

REFERENCE_LENGTH = 32_768
LANES = 16
"""Row tiles of one head that a GPU works on at a time, at the reference of 16 heads."""

Counts: TypeAlias = npt.NDArray[np.int64]


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
        rows += share * row_tiles(plan.tile.rows, group.rows, n)
        for walk in (phase for phase in group.phases if isinstance(phase, Walk)):
            full += share * group.stride * int(visited(walk.full, plan.tile.rows, group.rows, n).sum())
            partial += share * group.stride * int(visited(walk.partial, plan.tile.rows, group.rows, n).sum())
    return Work(rows, full, partial)


@dataclass(frozen=True)
class Spent:
    """What walking some tiles costs: all together, and the longest row tile alone. Costs of the same rows add up."""

    total: float
    longest: float

    @property
    def time(self) -> float:
        """The cost where no row tile is split: a long one holds up the end."""
        return max(self.total, LANES * self.longest)


def spent(tiles: TileSets, unit: TileCost, n: int = REFERENCE_LENGTH) -> Spent:
    """What walking the tiles of a relation costs at n."""
    full, partial = (visited(loops, tiles.rows, tiles.view, n) for loops in (tiles.full, tiles.partial))
    each = full * unit.full + partial * unit.partial
    rows = row_tiles(tiles.rows, tiles.view, n) if tiles.view.stride > 1 else 0
    return Spent(tiles.view.stride * float(each.sum()) + rows * unit.row, float(each.max()))


def row_tiles(rows: int, view: View, n: int) -> int:
    """Row tiles of all residues together."""
    return view.stride * ceil(view.row_count(n) / rows)


def visited(loops: tuple[Loop, ...], rows: int, view: View, n: int) -> Counts:
    """Key tiles that loops visit for each row tile; every residue is taken to visit as many as the first."""
    index = np.arange(row_tiles(rows, view, n) // view.stride, dtype=np.int64)
    values = {"I": index, "n": n, "r": 0}
    counts = [np.maximum(evaluate(loop.count, values, np) + 0 * index, 0) for loop in loops]
    return np.sum(counts, 0) if counts else 0 * index
