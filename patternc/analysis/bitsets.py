"""Many sets of positions at once, packed: bit j of row x says whether set j holds position x.

One layer maps such sets to their readers: row q of the result is the OR of the rows of all keys of q. Keys come as runs
(first, first + step, ..., last), so each row is an OR over a few ranges, after the positions are sorted by residue where the
step is over 1. Ranges are read from tables that one pass builds: the ORs of every block of positions from its start (``pre``)
and to its end (``suf``), of whole blocks, and of 1, 2, 4 or 8 neighbours. A range of at least a block is ``suf`` at its start,
``pre`` at its end, and the blocks between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]
"""Rows of packed sets, one more than there are positions; the last is zero, for "no position"."""
Ints: TypeAlias = npt.NDArray[np.intp]
Bools: TypeAlias = npt.NDArray[np.bool_]

RADIX = 16
_CHUNK = 1 << 19  # words of a temporary


@dataclass(frozen=True, eq=False)
class Runs:
    """Query ``rows[i]`` reads the keys first[i], first[i] + step, ..., last[i]. Rows ascend, and no run is empty."""

    rows: Ints
    first: Ints
    last: Ints
    step: int = 1

    @staticmethod
    def of(rows: Ints, first: Ints, last: Ints, step: int = 1) -> Runs:
        """The runs that are not empty; ``last`` need not be hit."""
        kept = first <= last
        if not kept.all():
            rows, first, last = rows[kept], first[kept], last[kept]
        return Runs(rows, first, last - (last - first) % step if step > 1 else last, step)

    def clipped(self, low: Any, high: Any) -> Runs:
        """What lies in low <= k <= high, for each row or for all."""
        first = np.maximum(self.first, low)
        if self.step > 1:
            first = first + (self.first - first) % self.step
        return Runs.of(self.rows, first, np.minimum(self.last, high), self.step)

    def where(self, kept: Bools) -> Runs:
        """The runs of some of the rows."""
        return Runs(self.rows[kept], self.first[kept], self.last[kept], self.step)

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.first.nbytes + self.last.nbytes

    @cached_property
    def longest(self) -> int:
        """Keys of the longest run."""
        return int(((self.last - self.first) // self.step).max()) + 1 if len(self.rows) else 0

    @cached_property
    def is_constant(self) -> bool:
        """Whether every row has the same run (or there is none)."""
        return not len(self.rows) or bool((self.first == self.first[0]).all() and (self.last == self.last[0]).all())

    def keys(self, q: int) -> Ints:
        """The keys of one query."""
        at = int(np.searchsorted(self.rows, q))
        if at == len(self.rows) or self.rows[at] != q:
            return np.zeros(0, np.intp)
        return np.arange(self.first[at], self.last[at] + 1, self.step)

    def holds(self, keys: Ints) -> Bools:
        """Whether each row's run holds a key: one key a row."""
        inside = (self.first <= keys) & (keys <= self.last)
        return inside if self.step == 1 else inside & ((keys - self.first) % self.step == 0)

    def mark(self, readers: Bools, out: Bools) -> None:
        """Add the keys of every query of ``readers`` to ``out``."""
        kept = readers[self.rows]
        first, last = self.first[kept], self.last[kept]
        if self.longest == 1:
            out[first] = True
            return
        if not len(first):
            return
        n = len(out)
        height = -(-n // self.step)
        begins = np.bincount(_by_residue(first, self.step, height), minlength=self.step * height + 1)
        begins -= np.bincount(_by_residue(last, self.step, height) + 1, minlength=self.step * height + 1)
        inside = np.cumsum(begins)[:-1] > 0
        out |= inside if self.step == 1 else inside.reshape(self.step, height).T.reshape(-1)[:n]


def _by_residue(position: Ints, step: int, height: int) -> Ints:
    """Where a position stands when positions are sorted by their residue modulo ``step``."""
    return position if step == 1 else position % step * height + position // step


@dataclass(frozen=True)
class _Table:
    """A table of ORs over positions sorted by residue: of ``width`` neighbours, or by blocks of ``block`` positions."""

    step: int
    kind: str
    block: int = 1
    width: int = 1


@dataclass(frozen=True, eq=False)
class _Gather:
    """Row ``low + i`` (or ``rows[i]``) of the result takes in row ``index[i]`` of a table (or ``start + i``)."""

    low: int
    high: int
    rows: Ints | None = None
    index: Ints | None = None
    start: int = 0

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.rows, self.index) if a is not None)


@dataclass(frozen=True, eq=False)
class Reader:
    """The runs of one layer, ready to be read for many sets at once."""

    n: int
    plan: tuple[tuple[_Table, tuple[_Gather, ...]], ...]
    constant: tuple[tuple[Runs, slice | Ints], ...] = ()

    @staticmethod
    def of(runs: Iterable[Runs], n: int) -> Reader:
        gathers: dict[_Table, list[_Gather]] = {}
        constant: list[tuple[Runs, slice | Ints]] = []
        for one in runs:
            if not len(one.rows):
                continue
            if one.longest > 1 and one.is_constant:
                constant.append((one, _as_slice(one.rows)))
                continue
            for table, rows, index in _lookups(one, n):
                gathers.setdefault(table, []).extend(_gathers(rows, index, _rows_of(table, n)))
        plan = sorted(gathers.items(), key=lambda item: (item[0].step, item[0].kind, item[0].block, item[0].width))
        return Reader(n, tuple((table, tuple(found)) for table, found in plan), tuple(constant))

    @property
    def nbytes(self) -> int:
        return sum(gather.nbytes for _, gathers in self.plan for gather in gathers)

    def read(self, sets: Words, out: Words) -> None:
        """OR into row q of ``out`` the rows of ``sets`` of every key of q."""
        for one, rows in self.constant:
            out[rows] |= np.bitwise_or.reduce(sets[one.first[0] : one.last[0] + 1 : one.step], axis=0)
        for step, of_step in groupby(self.plan, key=lambda item: item[0].step):
            sorted_sets = sets if step == 1 else _sorted(sets, step)
            for kind, same in groupby(of_step, key=lambda item: (item[0].kind, item[0].block)):
                wanted = [(table.width, gathers) for table, gathers in same]
                for words, gathers in _tables(sorted_sets, *kind, wanted):
                    for gather in gathers:
                        _take(words, gather, out)


def _rows_of(table: _Table, n: int) -> int:
    """Rows of a table without the zero row."""
    size = n if table.step == 1 else table.step * -(-n // table.step)
    if table.kind == "near":
        return size
    blocks = -(-size // table.block)
    return blocks if table.kind == "blocks" else blocks * table.block


def _lookups(runs: Runs, n: int) -> Iterator[tuple[_Table, Ints, Ints]]:
    """Which tables hold the ORs of the runs: (table, rows of the result, rows of the table)."""
    step, height = runs.step, -(-n // runs.step)
    rows, a, b = runs.rows, _by_residue(runs.first, step, height), _by_residue(runs.last, step, height)
    at_end = runs.last + step >= n
    length = b - a + 1
    if runs.longest > 1:
        counts = np.bincount(length)
        common = int(counts.argmax())
        sizes = [common] if common >= RADIX and 2 * counts[common] >= len(rows) else []
        for block in [*sizes, height]:
            if block <= 1 or not len(rows):
                continue
            of_a, of_b = a // block, b // block
            ends = ((b + 1) % block == 0) | (at_end if step == 1 or block == height else False)
            from_start = (of_a == of_b) & (a % block == 0)
            to_end = (of_a == of_b) & ends & ~from_start
            across = of_b == of_a + 1
            done = from_start | to_end | across
            if block == height and 8 * done.sum() < len(rows):
                continue
            pre, suf = from_start | across, to_end | across
            yield _Table(step, "pre", block), rows[pre], b[pre]
            yield _Table(step, "suf", block), rows[suf], a[suf]
            left = ~done
            rows, a, b, length, at_end = rows[left], a[left], b[left], length[left], at_end[left]
    block = 1
    while len(rows):
        mine = length < block * RADIX
        yield from _ranges(step, block, rows[mine], a[mine], b[mine])
        left = ~mine
        rows, a, b, length = rows[left], a[left], b[left], length[left]
        block *= RADIX


def _ranges(step: int, block: int, rows: Ints, a: Ints, b: Ints) -> Iterator[tuple[_Table, Ints, Ints]]:
    """The lookups of ranges of at least ``block`` positions and less than `RADIX` blocks."""
    kind, low, high = "near", a, b
    if block > 1:
        yield _Table(step, "suf", block), rows, a
        yield _Table(step, "pre", block), rows, b
        kind, low, high = "blocks", a // block + 1, b // block - 1
    width = 1
    while width < RADIX:
        mine = (high - low + 1 >= width) & (high - low + 1 < 2 * width)
        if mine.any():
            yield _Table(step, kind, block, width), rows[mine], low[mine]
            further = mine & (high - low + 1 > width)
            yield _Table(step, kind, block, width), rows[further], high[further] - width + 1
        width *= 2


def _gathers(rows: Ints, index: Ints, size: int) -> list[_Gather]:
    """The same lookups as few slices and arrays; ``size`` is the zero row of the table."""
    if not len(rows):
        return []
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(index) != 1)) + 1
    edges = np.concatenate([[0], breaks, [len(rows)]])
    longest = int(np.diff(edges).argmax())
    x, y = int(edges[longest]), int(edges[longest + 1])
    if y - x > 64 and 4 * (y - x) >= len(rows):
        low, start = int(rows[x]), int(index[x])
        band = _Gather(low, low + y - x, start=start)
        return [band, *_gathers(rows[:x], index[:x], size), *_gathers(rows[y:], index[y:], size)]
    low, high = int(rows[0]), int(rows[-1]) + 1
    if high - low == len(rows):
        return [_Gather(low, high, index=np.ascontiguousarray(index))]
    if high - low <= 8 * len(rows):
        spread = np.full(high - low, size, np.intp)
        spread[rows - low] = index
        return [_Gather(low, high, index=spread)]
    return [_Gather(low, high, rows=rows, index=index)]


def _as_slice(rows: Ints) -> slice | Ints:
    low, high = int(rows[0]), int(rows[-1]) + 1
    return slice(low, high) if high - low == len(rows) else rows


def _take(table: Words, gather: _Gather, out: Words) -> None:
    if gather.rows is not None:
        out[gather.rows] |= table[gather.index]
        return
    if gather.index is None:
        out[gather.low : gather.high] |= table[gather.start : gather.start + gather.high - gather.low]
        return
    size = max(1, _CHUNK // table.shape[1])
    found = np.empty((min(size, len(gather.index)), table.shape[1]), np.uint64)
    for x in range(0, len(gather.index), size):
        index = gather.index[x : x + size]
        part = found[: len(index)]
        np.take(table, index, axis=0, out=part, mode="clip")
        out[gather.low + x : gather.low + x + len(index)] |= part


def _sorted(sets: Words, step: int) -> Words:
    n, width = len(sets) - 1, sets.shape[1]
    height = -(-n // step)
    padded = np.zeros((height * step, width), np.uint64)
    padded[:n] = sets[:n]
    out = np.zeros((step * height + 1, width), np.uint64)
    out[:-1].reshape(step, height, width)[:] = padded.reshape(height, step, width).swapaxes(0, 1)
    return out


def _tables(
    sets: Words, kind: str, block: int, wanted: list[tuple[int, tuple[_Gather, ...]]]
) -> Iterator[tuple[Words, tuple[_Gather, ...]]]:
    """The tables of one kind and block, each with what is to be taken from it."""
    n, width = len(sets) - 1, sets.shape[1]
    if kind == "near":
        yield from _doubled(sets, wanted)
        return
    blocks = -(-n // block)
    if kind == "blocks":
        whole = np.zeros((blocks + 1, width), np.uint64)
        np.bitwise_or.reduceat(sets[:n], np.arange(0, n, block), axis=0, out=whole[:blocks])
        yield from _doubled(whole, wanted)
        return
    table = np.zeros((blocks * block + 1, width), np.uint64)
    full = n // block * block
    backwards = slice(None, None, -1 if kind == "suf" else 1)
    parts = table[: blocks * block].reshape(blocks, block, width)[:, backwards]
    given = sets[:full].reshape(full // block, block, width)[:, backwards]
    np.bitwise_or.accumulate(given, axis=1, out=parts[: full // block])
    if full < n:
        table[full:n] = sets[full:n]
        np.bitwise_or.accumulate(parts[-1:], axis=1, out=parts[-1:])
    for _, gathers in wanted:
        yield table, gathers


def _doubled(sets: Words, wanted: list[tuple[int, tuple[_Gather, ...]]]) -> Iterator[tuple[Words, tuple[_Gather, ...]]]:
    """Row x of each table is the OR of ``width`` rows from x on; widths ascend and are powers of two."""
    have, table = 1, sets
    for width, gathers in wanted:
        if width > 1 and table is sets:
            table = sets.copy()
        while have < width:
            np.bitwise_or(table[:-have], table[have:], out=table[:-have])
            have *= 2
        yield table, gathers


# Sets


def singletons(positions: Ints, n: int) -> Words:
    """Set j holds ``positions[j]`` alone."""
    sets = np.zeros((n + 1, -(-len(positions) // 64)), np.uint64)
    j = np.arange(len(positions))
    np.bitwise_or.at(sets, (positions, j // 64), np.uint64(1) << (j % 64).astype(np.uint64))
    return sets


def only(position: int, n: int) -> Bools:
    """The set of one position, not packed."""
    found = np.zeros(n, bool)
    found[position] = True
    return found


def some(words: npt.NDArray[np.uint64], count: int) -> Bools:
    """Which of the sets the bits of one row stand for."""
    return np.unpackbits(words.view(np.uint8), bitorder="little")[:count].astype(bool)


def nonempty(sets: Words, count: int) -> Bools:
    """Which of the sets hold any position."""
    return some(np.bitwise_or.reduce(sets[:-1], axis=0), count)


def column(sets: Words, j: int) -> Bools:
    """The positions of one set."""
    found: Bools = (sets[:-1, j // 64] >> np.uint64(j % 64)) & np.uint64(1) != 0
    return found
