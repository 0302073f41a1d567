"""What a query sees through several layers: the positions, and how many there are at each depth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patternc.analysis.certificate import Runs
from patternc.analysis.held import diagonal
from patternc.analysis.numeric import numeric_distances, numeric_field
from patternc.analysis.steps import Mode, steps
from patternc.pattern import MAX_N, Pattern
from patternc.random_edges import candidates
from patternc.relation import Positions, Relation

MAX_LAYERS = 4_096
MAX_ROWS = 1 << 22
_ROWS = 1 << 18  # rows counted at a time


def receptive_field(pattern: Pattern, layers: int, q: int, n: int, *, mode: Mode = "may") -> Runs:
    """The positions that query q of the top layer reads through so many layers, itself included, as ascending runs.

    That is {k : (q, k) in M_layers}, the layers counted from layer 0 at the bottom.

    Raises:
        ValueError: q, n or layers is out of range.
        Unaffordable: which keys are read is not decided by a relation (`random`, and in mode "must" `topk`), and finding out
            takes too long or too much memory.
        BudgetExceeded: the exact set computation is over its budget.
    """
    _check(layers, n, q)
    period = _relations(pattern, n, mode)
    if period is None:
        return _runs(numeric_field(pattern, layers, q, n, mode=mode))
    field = Positions.of([(q, q, 1)])
    for index in reversed(range(layers)):
        field = period[index % len(period)].image(field)
    return field.runs(n)


def field_sizes(pattern: Pattern, layers: int, n: int, q: int | None = None, *, mode: Mode = "may") -> tuple[int, ...]:
    """How many positions are read through 0, 1, ..., ``layers`` layers: by query q, or at most by any query.

    Raises:
        ValueError: as for `receptive_field`, or n is too large to look at every query.
        BudgetExceeded: the exact set computation is over its budget.
    """
    _check(layers, n, q)
    period = _relations(pattern, n, mode)
    if period is None:
        if q is None:
            raise ValueError("which keys are read is not described by a relation: name one query with q=")
        hops = numeric_distances(pattern, q, n, mode=mode)
        return tuple(int(((hops >= 0) & (hops <= depth)).sum()) for depth in range(layers + 1))
    if q is not None:
        if len(set(map(id, period))) > 1:  # the top layer, where the way starts, differs from depth to depth
            return tuple(_size(receptive_field(pattern, depth, q, n, mode=mode)) for depth in range(layers + 1))
        field = Positions.of([(q, q, 1)])
        sizes = [1]
        for _ in range(layers):
            field = period[0].image(field)
            sizes.append(_size(field.runs(n)))
        return tuple(sizes)
    if n > MAX_ROWS:
        raise ValueError(f"n = {n:,} is too large to look at every query (the limit is {MAX_ROWS:,}): name one with q=")
    reach, sizes = diagonal().at(n), [1]
    for index in range(layers):
        after = period[index % len(period)].then(reach)
        grown = not after.is_subset(reach)
        reach = after
        sizes.append(_widest(reach, n) if grown else sizes[-1])
    return tuple(sizes)


def _relations(pattern: Pattern, n: int, mode: Mode) -> list[Relation] | None:
    """What each layer holds; None if that is not a relation alone."""
    period = steps(pattern, mode)
    if not all(step.is_affine for step in period):
        return None
    known: dict[int, Relation] = {}
    return [known[id(s)] if id(s) in known else known.setdefault(id(s), s.relation.at(n)) for s in period]


def _check(layers: int, n: int, q: int | None) -> None:
    if not 0 <= layers <= MAX_LAYERS:
        raise ValueError(f"layers is a number from 0 to {MAX_LAYERS:,}, got {layers}")
    if not 1 <= n <= MAX_N:
        raise ValueError(f"n is a sequence length from 1 to {MAX_N:,}, got {n}")
    if q is not None and not 0 <= q < n:
        raise ValueError(f"q = {q} is not a position of a sequence of n = {n:,}")


def _runs(held: npt.NDArray[np.bool_]) -> Runs:
    edges = np.flatnonzero(np.diff(held.astype(np.int8), prepend=0, append=0))
    return tuple((int(first), int(end) - 1, 1) for first, end in edges.reshape(-1, 2))


def _size(runs: Runs) -> int:
    return sum((last - first) // step + 1 for first, last, step in runs)


def _widest(relation: Relation, n: int) -> int:
    blocks = (np.arange(first, min(n, first + _ROWS), dtype=np.int64) for first in range(0, n, _ROWS))
    return max(int(candidates(relation.rows, q, n, np).max()) for q in blocks)
