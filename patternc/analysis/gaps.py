"""Pairs that no number of layers connects, at one n, each with a set of positions that shows it."""

from __future__ import annotations

import math

import numpy as np

from patternc.analysis.bitsets import Bools, Ints, column, nonempty, only, singletons
from patternc.analysis.certificate import Runs
from patternc.analysis.stack import Stack
from patternc.analysis.targets import Targets
from patternc.dense import true_runs
from patternc.relation import Pair

_TRIED = 64


class Gap(Exception):
    """A pair of the target that no number of layers connects; no layer leads out of ``runs``, which hold q and not k."""

    def __init__(self, pair: Pair, runs: Runs):
        super().__init__(pair, runs)
        self.pair, self.runs = pair, runs


def look_for_gaps(stack: Stack, targets: Targets) -> float:
    """So many layers surely connect the target, if it is a default one; infinity where that is not known.

    Cheap, and not always sure to find a gap.

    Raises:
        Gap: there is one.
    """
    n = stack.n
    if stack.selects or targets.runs is not None or n == 1:
        return math.inf
    finite = len(stack.layers) * (n - 1)  # enough where every position reads its neighbours
    back = np.logical_or.reduce([layer.reads_at(-1) for layer in stack.distinct])[1:]
    if targets.causal:
        if not back.all():
            q = int(np.flatnonzero(~back)[0]) + 1
            raise Gap(Pair(n, q, q - 1), ((0, q - 2, 1), (q, q, 1)) if q > 1 else ((q, q, 1),))
        return finite
    forth = np.logical_or.reduce([layer.reads_at(1) for layer in stack.distinct])[:-1]
    if back.all() and forth.all():
        return finite
    reached = _closure(stack, 0)
    if not reached.all():
        missed = np.flatnonzero(~reached)
        check_keys(stack, targets, missed[np.linspace(0, len(missed) - 1, min(_TRIED, len(missed))).astype(np.intp)])
    check_keys(stack, targets, np.zeros(1, np.intp))
    return math.inf


def check_keys(stack: Stack, targets: Targets, keys: Ints) -> None:
    """Raises: Gap: some query that is to reach one of the keys never does; the one with the simplest set."""
    before, sets = None, singletons(keys, stack.n)
    while before is None or (sets != before).any():
        before = sets
        for index in range(len(stack.layers)):
            sets = stack.readers(index, sets, len(keys)) | sets
    todo = targets.of_keys(keys) & ~sets
    stuck = np.flatnonzero(nonempty(todo, len(keys)))
    if len(stuck):
        outside = [true_runs(~column(sets, int(j))) for j in stuck]
        best = min(range(len(stuck)), key=lambda i: len(outside[i]))
        q = int(np.flatnonzero(column(todo, int(stuck[best])))[0])
        raise Gap(Pair(stack.n, q, int(keys[stuck[best]])), outside[best])


def _closure(stack: Stack, q: int) -> Bools:
    """All that one query reads through any number of layers."""
    seen = front = only(q, stack.n)
    while front.any():
        front = stack.read_anywhere(front) & ~seen
        seen = seen | front
    return seen
