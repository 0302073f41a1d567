"""Upper bounds from blocks: what every query of a block surely reaches, without looking at single positions.

Positions are put into blocks of ``size``. For a block G of keys, F(I) says that every query of block I reaches every key of
G, and E(I) that some query of I does. If every query of I reads every key of J, then F(I) follows from E(J) one layer later:
all read the one that does. If some query of I reads some key of J, then E(I) follows from F(J). F at one layer is that every
query of I reads all of G. So if F holds after L layers for every block that has a query to serve, the eccentricity of every
key of G is at most L. What m layers surely connect serves the same way, m layers later: runs of neighbours, composed with
themselves, fill larger blocks than one layer does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from patternc.analysis.allowance import Allowance, Unaffordable
from patternc.analysis.bitsets import Ints, Reader, Runs, nonempty, singletons
from patternc.analysis.edges import Layer
from patternc.analysis.targets import Targets
from patternc.analysis.tiles import full_tiles, share_of_full, some_tiles, squared

NEVER = np.iinfo(np.intp).max
_WORDS = 1 << 17  # of one matrix of a batch


Power: TypeAlias = tuple[int, Runs]
"""Keys that every query surely reads through so many equal layers."""


@dataclass(frozen=True, eq=False)
class _Tiles:
    """One layer between blocks: the tiles in which every pair is read, and those in which some pair is."""

    full: Reader
    some: Reader


class Quotient:
    """The layers of one period between blocks of ``size`` positions.

    Raises:
        Unaffordable: it would take too long or too much memory.
    """

    def __init__(self, layers: tuple[Layer, ...], targets: Targets, size: int, powers: tuple[Power, ...], allowance: Allowance):
        self.size, self._allowance, self._targets = size, allowance, targets
        self._blocks = -(-layers[0].n // size)
        known = {id(layer): layer for layer in layers}
        tiles = {key: self._tiles(layer) for key, layer in known.items()}
        self._layers = [tiles[id(layer)] for layer in layers]
        self._powers = [(m, Reader.of(full_tiles(runs, layers[0].n, size), self._blocks)) for m, runs in powers]
        self._delay, widest = powers[-1] if powers else (1, None)
        first = layers[0] if widest is None else Layer(layers[0].n, (widest,))
        self._settled = targets.settled(first, size)

    def _tiles(self, layer: Layer) -> _Tiles:
        full = Reader.of((r for one in layer.runs for r in full_tiles(one, layer.n, self.size)), self._blocks)
        parts: list[Runs] = []
        for one in layer.runs:
            self._allowance.check()
            parts += some_tiles(one, layer.n, self.size)
        some = Reader.of(parts, self._blocks)
        self._allowance.hold(full.nbytes + some.nbytes)
        return _Tiles(full, some)

    def depths(self, blocks: Ints, cap: int) -> Ints:
        """After how many layers, at most ``cap``, every query surely reaches every key of each block (else `NEVER`).

        Raises:
            Unaffordable: it would take too long or too much memory.
        """
        width = 64 * max(4, min(_WORDS // self._blocks, -(-len(blocks) // 64)))
        self._allowance.fits(8 * self._blocks * width)
        parts: list[Ints] = []
        for at in range(0, len(blocks), width):
            begun = self._allowance.left
            parts.append(self._batch(blocks[at : at + width], cap))
            if (begun - self._allowance.left) * ((len(blocks) - at - 1) // width) > self._allowance.left:
                raise Unaffordable(f"blocks of {self.size} take longer than {self._allowance.seconds:g} seconds")
        return np.concatenate(parts) if parts else np.zeros(0, np.intp)

    def _batch(self, blocks: Ints, cap: int) -> Ints:
        count, period = len(blocks), len(self._layers)
        own = singletons(blocks, self._blocks)
        todo = self._targets.of_blocks(blocks, self.size, self._settled)
        depth = np.full(count, NEVER)
        depth[~nonempty(todo, count)] = self._delay
        every = np.zeros_like(own)
        some = [own]  # E after 0 (the block itself), 1, ... layers; what does not grow is one object
        quiet = 0
        for level in range(1, cap + 1):
            self._allowance.check()
            tiles = self._layers[(level - 1) % period]
            before, every = every, every.copy()
            for m, full in [(1, tiles.full), *self._powers]:
                if m == level or (m < level and (period > 1 or some[level - m] is not some[level - m - 1])):
                    full.read(some[level - m], every)
            found = every if level == 1 else some[-1] | every
            if level > 1 and (period > 1 or quiet == 0):
                tiles.some.read(before, found)
            grew = level == 1 or bool((found != some[-1]).any())
            quiet = 0 if grew or bool((every != before).any()) else quiet + 1
            some.append(found if grew else some[-1])
            if level > self._delay:
                some[level - self._delay - 1] = own
            todo &= ~every
            left = nonempty(todo, count)
            depth[~left & (depth == NEVER)] = max(level, self._delay)
            if not left.any() or quiet >= max(period, self._delay):
                break
        return depth


def powers_for(layers: tuple[Layer, ...], n: int, most: int) -> tuple[tuple[Power, ...], int]:
    """The largest size of blocks that are mostly read in full, and the powers of a layer that make them at most ``most``.

    The size is 0 if there is none.
    """
    runs = layers[0].runs
    powers: tuple[Power, ...] = ()
    wide = max((one for one in runs if one.step == 1 and len(one.rows) == n), key=lambda one: one.longest, default=None)
    while True:
        size = _full_size((*runs, *(one for _, one in powers)), n)
        if size * most >= n:
            return powers, size
        further = squared(wide, n) if wide is not None and len(layers) == 1 else None
        if further is None or wide is None or further.longest <= wide.longest:
            return (), 0
        powers, wide = (*powers, (2 << len(powers), further)), further


def _full_size(runs: tuple[Runs, ...], n: int) -> int:
    """The largest size of blocks of which nearly all are read in full by every query of some block; 1 if there is none."""
    spans = [one.longest for one in runs if one.step == 1 and not one.is_constant]
    size = 1 << max(0, min(max(spans, default=1), n // 64).bit_length() - 1)
    while size > 1 and share_of_full(runs, n, size) <= 0.9:
        size //= 2
    return size


def keys_of(blocks: Ints, size: int, n: int, most: int | None = None) -> Ints:
    """The positions of blocks; of at most ``most`` of them, spread evenly."""
    keys = (blocks[:, None] * size + np.arange(size)).reshape(-1)
    keys = keys[keys < n]
    return keys if most is None or len(keys) <= most else keys[np.linspace(0, len(keys) - 1, most).astype(np.intp)]
