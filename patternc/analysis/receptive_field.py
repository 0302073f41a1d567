"""What a query sees through several layers: the positions, and how many there are at each depth."""

from __future__ import annotations

from typing import Any

import numpy as np

from patternc.analysis.arguments import check_arguments
from patternc.analysis.certificate import Runs
from patternc.analysis.held import diagonal
from patternc.analysis.steps import Mode, at_length, steps
from patternc.analysis.tracing import numeric_distances, numeric_field
from patternc.dense import true_runs
from patternc.pattern import Pattern
from patternc.random_edges import candidates
from patternc.relation import Positions, Relation

MAX_LAYERS = 4_096
MAX_ROWS = 1 << 22
_ROWS = 1 << 18  # rows counted at a time


def receptive_field(
    pattern: Pattern,
    layers: int,
    q: int,
    n: int,
    *,
    residual: bool = True,
    mode: Mode = "may",
    start_layer: int = 0,
    **inputs: Any,
) -> Runs:
    """The positions that query q of the top layer reads through so many layers, as ascending runs.

    That is {k : (q, k) in M_layers}, the layers counted from the starting layer at the bottom. The options are those of
    `reach.hop_diameter`.

    Raises:
        ValueError: q, n or layers is out of range, or an input has the wrong shape or an unknown name.
        Unaffordable: which keys are read is not decided by a relation (`random`, and in mode "must" `topk`), and finding out
            takes too long or too much memory.
        BudgetExceeded: the exact set computation is over its budget.
    """
    check_arguments(n, q, mode=mode, start_layer=start_layer, layers=layers, most=MAX_LAYERS)
    period = None if inputs else _relations(pattern, n, mode, residual, start_layer)
    if period is None:
        options = {"mode": mode, "residual": residual, "start_layer": start_layer, **inputs}
        return true_runs(numeric_field(pattern, layers, q, n, **options))
    field = Positions.of([(q, q, 1)])
    for index in reversed(range(layers)):
        field = period[index % len(period)].image(field)
    return field.runs(n)


def field_sizes(
    pattern: Pattern,
    layers: int,
    n: int,
    q: int | None = None,
    *,
    residual: bool = True,
    mode: Mode = "may",
    start_layer: int = 0,
    **inputs: Any,
) -> tuple[int, ...]:
    """How many positions are read through 0, 1, ..., ``layers`` layers: by query q, or at most by any query.

    The options are those of `receptive_field`.

    Raises:
        ValueError: as for `receptive_field`, or n is too large to look at every query.
        BudgetExceeded: the exact set computation is over its budget.
    """
    check_arguments(n, q or 0, mode=mode, start_layer=start_layer, layers=layers, most=MAX_LAYERS)
    options = {"residual": residual, "mode": mode, "start_layer": start_layer, **inputs}
    period = None if inputs else _relations(pattern, n, mode, residual, start_layer)
    if period is None:
        if q is None:
            raise ValueError("which keys are read is not described by a relation: name one query with q=")
        if not residual:
            return tuple(int(numeric_field(pattern, depth, q, n, **options).sum()) for depth in range(layers + 1))
        hops = numeric_distances(pattern, q, n, **options)
        return tuple(int(((hops >= 0) & (hops <= depth)).sum()) for depth in range(layers + 1))
    if q is not None:
        if len(set(map(id, period))) > 1:  # the top layer, where the way starts, differs from depth to depth
            return tuple(_size(receptive_field(pattern, depth, q, n, **options)) for depth in range(layers + 1))
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
        changed = not after.equals(reach)
        reach = after
        sizes.append(_widest(reach, n) if changed else sizes[-1])
    return tuple(sizes)


def _relations(pattern: Pattern, n: int, mode: Mode, residual: bool, start: int) -> list[Relation] | None:
    """What each layer holds; None if that is not a relation alone."""
    period = steps(pattern, mode, residual, start)
    if not all(step.is_affine for step in period):
        return None
    return at_length((step.relation for step in period), n)


def _size(runs: Runs) -> int:
    return sum((last - first) // step + 1 for first, last, step in runs)


def _widest(relation: Relation, n: int) -> int:
    blocks = (np.arange(first, min(n, first + _ROWS), dtype=np.int64) for first in range(0, n, _ROWS))
    return max(int(candidates(relation.rows, q, n, np).max()) for q in blocks)
