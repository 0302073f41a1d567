"""Who works on which row tile: a choice by how evenly it spreads the work of a launch at the reference length."""

from __future__ import annotations

import numpy as np

from patternc.lower.cost import REFERENCE_LENGTH, visited
from patternc.lower.plan import HeadPlan, Tile, Walk

PROCESSORS, HEADS = 132, 16
"""Those of an H200, and the heads that plans are made for."""

SHIFT = 331
"""By how many thousandths of the programs those of one lap are shifted against those of the lap before.

Of shifts from 0.01 to 1, it is the best in the worst of six orders of lengths, with 8, 16 and 32 heads (strides, summaries,
chunks and causal rows, 132 and 264 programs): the longest program has 13 % more than its part, mostly 3 to 7 %.
"""

PARTS = 4
"""In how many parts long rows are split where programs take up one after another."""


def tiles_of_rows(group: HeadPlan, tile: Tile) -> np.ndarray:
    """How many tiles the row tiles of a pass walk, those of one residue, as far as that is known in closed form."""
    walks = [phase for phase in group.phases if isinstance(phase, Walk)]
    counts = [visited(walk.full + walk.partial, tile.rows, group.rows, REFERENCE_LENGTH) for walk in walks]
    return np.sum(counts, 0) if counts else np.zeros(1, np.int64)


def works_of(group: HeadPlan, tile: Tile, last_first: bool) -> np.ndarray:
    """The lengths of the works of a launch, in order: of row tiles, or of the parts of long rows, those of all heads together.

    Taking up a work counts as one tile.
    """
    counts = tiles_of_rows(group, tile) + 1
    ordered = counts if group.rows.few or group.rows.packs_rows or not last_first else counts[::-1]
    return np.repeat(ordered, PARTS * HEADS) if group.share else np.tile(np.repeat(ordered, max(1, group.rows.stride)), HEADS)


def shift_for(group: HeadPlan, tile: Tile, last_first: bool) -> int:
    """`SHIFT` where the program with most work then ends sooner than with turns to and fro, and 0 where not."""
    works, programs = works_of(group, tile, last_first), PROCESSORS * (1 if tile.rows > 64 else 2)
    return min((0, SHIFT), key=lambda shift: longest(works, programs, shift))


def longest(works: np.ndarray, programs: int, shift: int) -> int:
    """The work of the program that has most of it."""
    laps = -(-len(works) // programs)
    lap, own = np.arange(laps)[:, None], np.arange(programs)[None, :]
    to_and_fro = np.where(lap % 2 == 0, own, programs - 1 - own)
    place = (own + lap * (programs * shift // 1000)) % programs if shift else to_and_fro
    padded = np.zeros(laps * programs, np.int64)
    padded[: len(works)] = works
    return int(padded[lap * programs + place].sum(0).max())
