"""Runs of keys between blocks of positions: which key blocks a query block reads in full, and of which it reads something."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from patternc.analysis.bitsets import Bools, Ints, Runs


def full_tiles(runs: Runs, n: int, size: int) -> Iterator[Runs]:
    """Key blocks of which every query of a block reads every key, by these runs (of step 1) alone."""
    if runs.step > 1:
        return
    first, last, some = _by_block(runs, n, size)
    low, end = -(-first.max(1) // size), last.min(1)
    high = np.where(end == n - 1, len(first) - 1, (end + 1) // size - 1)
    found = Runs.of(np.arange(len(first)), low, np.where(some.all(1), high, -1))
    if len(found.rows):
        yield found


def some_tiles(runs: Runs, n: int, size: int) -> Iterator[Runs]:
    """Key blocks of which some query of a block reads some key: all of them, if the step does not exceed or divides by size."""
    step = 1 if runs.step <= size else runs.step // size
    if runs.step > size and runs.step % size:
        return
    first, last, some = _by_block(runs, n, size)
    joined: Bools = np.zeros(len(first), bool)
    if runs.step == 1 and runs.longest > 1:
        touching = (first[:, 1:] <= last[:, :-1] + 1) & (first[:, :-1] <= last[:, 1:] + 1)
        joined = np.asarray(some.all(1) & touching.all(1))
        joined[-1] &= n % size == 0
        at = np.flatnonzero(joined)
        if len(at):
            yield Runs(at, first[at].min(1) // size, last[at].max(1) // size)
    rest = np.flatnonzero(~joined[runs.rows // size])
    place = runs.rows[rest] % size
    order = rest[np.argsort(place, kind="stable")]
    ends = np.searchsorted(np.sort(place), np.arange(size + 1))
    for x, y in pairwise(ends):
        mine = order[x:y]
        if len(mine):
            yield Runs(runs.rows[mine] // size, runs.first[mine] // size, runs.last[mine] // size, step)


def squared(runs: Runs, n: int) -> Runs | None:
    """The runs of what all queries read by these runs twice, where that is one run for each; None where it may not be.

    If first and last keys never fall from one query to the next and the runs of neighbours touch, the runs of a run of queries
    unite to one from the first of the first to the last of the last.
    """
    if runs.step > 1 or len(runs.rows) < n:
        return None
    rising = bool((np.diff(runs.first) >= 0).all() and (np.diff(runs.last) >= 0).all())
    touching = bool((runs.first[1:] <= runs.last[:-1] + 1).all())
    return Runs(runs.rows, runs.first[runs.first], runs.last[runs.last]) if rising and touching else None


def reads_diagonal(runs: Iterable[Runs], wanted: Runs, n: int, size: int) -> Bools:
    """For which blocks every query reads, in one of the runs, all that it wants of its own block, itself aside."""
    own = np.arange(n)
    low, high = np.full(n, n), np.full(n, -1)
    low[wanted.rows] = np.maximum(wanted.first, wanted.rows // size * size)
    high[wanted.rows] = np.minimum(wanted.last, wanted.rows // size * size + size - 1)
    low, high = low + (low == own), high - (high == own)
    read = low > high
    for one in runs:
        if one.step == 1:
            read[one.rows] |= (one.first <= low[one.rows]) & (high[one.rows] <= one.last)
    return np.asarray(np.logical_and.reduceat(read, np.arange(0, n, size)))


def share_of_full(runs: Iterable[Runs], n: int, size: int) -> float:
    """The share of key blocks that every query of some block reads in full."""
    keys = np.zeros(-(-n // size), bool)
    every = np.ones_like(keys)
    for one in runs:
        for full in full_tiles(one, n, size):
            full.mark(every, keys)
    return float(keys.mean())


def _by_block(runs: Runs, n: int, size: int) -> tuple[Ints, Ints, Bools]:
    """The first and last key of every query, a row for each block, and which queries have a run or do not exist."""
    blocks = -(-n // size)
    first, last, some = np.zeros(blocks * size, np.intp), np.full(blocks * size, n - 1), np.zeros(blocks * size, bool)
    first[runs.rows], last[runs.rows], some[runs.rows] = runs.first, runs.last, True
    some[n:] = True
    shape = (blocks, size)
    return first.reshape(shape), last.reshape(shape), some.reshape(shape)
