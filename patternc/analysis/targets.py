"""Which pairs are to be connected at one n, as packed sets: for each key, the queries that are to reach it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patternc.analysis.bitsets import Bools, Ints, Reader, Runs, Words, singletons
from patternc.analysis.edges import Layer
from patternc.analysis.tiles import reads_diagonal, some_tiles


@dataclass(frozen=True, eq=False)
class Targets:
    """The pairs of ``runs``; or, where that is None, those with k <= q if ``causal``, and all pairs if not."""

    n: int
    causal: bool
    runs: tuple[Runs, ...] | None = None

    def of_keys(self, keys: Ints) -> Words:
        """For each key, the queries other than itself that are to reach it."""
        own = singletons(keys, self.n)
        wanted = self._wanted(own, self.runs)
        wanted &= ~own
        return wanted

    def of_blocks(self, blocks: Ints, size: int, settled: Bools) -> Words:
        """For each key block, the query blocks that hold a query which is to reach some key of it (or seem to).

        Of the blocks that are ``settled``, nothing is to reach itself.
        """
        own = singletons(blocks, -(-self.n // size))
        runs = None
        if self.runs is not None:  # a run without its gaps covers no fewer blocks
            runs = tuple(r for one in self.runs for r in some_tiles(Runs(one.rows, one.first, one.last), self.n, size))
        wanted = self._wanted(own, runs)
        wanted[:-1][settled] &= ~own[:-1][settled]
        return wanted

    def settled(self, layer: Layer, size: int) -> Bools:
        """The blocks in which one layer connects all pairs that are to be connected."""
        q = np.arange(self.n)
        wanted = self.runs
        if wanted is None:
            wanted = (Runs(q, np.zeros(self.n, np.intp), q if self.causal else np.full(self.n, self.n - 1)),)
        found = np.ones(-(-self.n // size), bool)
        for one in wanted:
            found &= reads_diagonal(layer.runs, Runs(one.rows, one.first, one.last), self.n, size)
        return found

    def _wanted(self, own: Words, runs: tuple[Runs, ...] | None) -> Words:
        wanted = np.zeros_like(own)
        if runs is not None:
            Reader.of(runs, len(own) - 1).read(own, wanted)
        elif self.causal:
            np.bitwise_or.accumulate(own[:-1], axis=0, out=wanted[:-1])
        else:
            wanted[:-1] = np.bitwise_or.reduce(own, axis=0)
        return wanted
