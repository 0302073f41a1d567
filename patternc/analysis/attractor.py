"""What a selection by unknown scores cannot avoid reading.

Let A be the positions that surely reach a key. Scores can keep query q away from A as long as they can fill what q must read
with candidates outside of A. A selector that takes k of c candidates leaves c - min(k, c) out, and selectors that are joined
leave out at most the sum; so with m = max(0, c - sum of what each leaves out), q surely reads A if fewer than m of its
candidates are not in A. With blocks, candidates are blocks, and a block is in A if any of its allowed keys is. Scores are
chosen anew for every layer, head and query, so repeating this from A = {key} gives exactly the pairs that no scores prevent.
"""

from __future__ import annotations

import numpy as np

from patternc.analysis.allowance import Allowance
from patternc.analysis.bitsets import Bools, Ints, Runs, Words, column
from patternc.analysis.edges import Selection, check_dense, mask_of


def forced(selection: Selection, sets: Words, count: int, out: Words, allowance: Allowance) -> None:
    """Add to each of the first ``count`` sets of ``out`` the queries that surely read a position of that set of ``sets``.

    Raises:
        Unaffordable: it takes too long, or blocks are selected and n is large.
    """
    n = len(sets) - 1
    if selection.block > 1:
        check_dense(n, "a selection of blocks is dense", allowance)
        allowed = mask_of(selection.candidates, n)
        total = _blocks(allowed, selection.block)
    else:
        total = _counted(selection.candidates, np.ones(n, bool))
    needed = selection.fewest(total)
    for j in range(count):
        allowance.check()
        here = column(sets, j)
        inside = _blocks(allowed & here, selection.block) if selection.block > 1 else _counted(selection.candidates, here)
        out[:-1, j // 64] |= (total - inside < needed).astype(np.uint64) << np.uint64(j % 64)


def _blocks(held: Bools, block: int) -> Ints:
    """How many key blocks of each row hold a pair."""
    found = np.logical_or.reduceat(held, np.arange(0, held.shape[1], block), axis=1)
    return np.asarray(found.sum(axis=1, dtype=np.intp))


def _counted(runs: tuple[Runs, ...], wanted: Bools) -> Ints:
    """How many keys of each query's runs are wanted."""
    n = len(wanted)
    total = np.zeros(n, np.intp)
    for one in runs:
        up_to = np.zeros(n + one.step, np.intp)
        up_to[one.step :] = wanted
        for residue in range(one.step):
            up_to[residue :: one.step] = np.cumsum(up_to[residue :: one.step])
        total[one.rows] += up_to[one.last + one.step] - up_to[one.first]
    return total
