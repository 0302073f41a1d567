"""What a plan costs, in units of one full tile of 64 x 64: how tile shapes are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.lower.plan import HeadPlan, Plan, Tile, Walk
from patternc.relation import Loop
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

    rows: int
    full: float
    partial: float

    def cost(self, unit: TileCost) -> float:
        return self.rows * unit.row + self.full * unit.full + self.partial * unit.partial


def work(plan: Plan, n: int = REFERENCE_LENGTH) -> Work:
    """The tiles of one head at n. What is listed or gathered at run time is left out: it is the same for all tile shapes."""
    index = np.arange(-(-n // plan.tile.rows), dtype=np.int64)
    share = [len(group.heads) / group.period for group in plan.heads]
    full, partial = (
        sum(s * _tiles(group, index, n, kind) for s, group in zip(share, plan.heads, strict=True)) for kind in (0, 1)
    )
    return Work(len(index), full, partial)


def _tiles(group: HeadPlan, index: Indices, n: int, kind: int) -> float:
    walks = [phase for phase in group.phases if isinstance(phase, Walk)]
    return float(sum(_visited(loop, index, n) for walk in walks for loop in (walk.full, walk.partial)[kind]))


def _visited(loop: Loop, index: Indices, n: int) -> int:
    count = np.maximum(evaluate(loop.count, {"I": index, "n": n}, np) + 0 * index, 0)
    return int(count.sum())
