"""What one query reads through a stack of layers at one n, or all queries do: fields, distances and ways, by running it.

All take the options of `patternc.analysis.stack.Stack.of`: ``mode``, ``residual``, ``start_layer``, limits and runtime inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from patternc.analysis.allowance import Unaffordable
from patternc.analysis.arguments import check_arguments
from patternc.analysis.bitsets import Bools, Ints, Words, column, only, some
from patternc.analysis.certificate import Chain, Path
from patternc.analysis.edges import check_dense
from patternc.analysis.stack import Stack
from patternc.dense import true_runs
from patternc.pattern import Pattern

MAX_RUNS = 1 << 16


def numeric_distances(pattern: Pattern, q: int, n: int, **options: Any) -> Ints:
    """For every key, the least number of layers through which query q reads it; -1 where none does: shape (n,).

    Raises:
        ValueError: n, q or the starting layer is out of range, or an input has the wrong shape.
        Unaffordable: it takes longer or needs more memory than allowed.
        BudgetExceeded: the exact set computation is over its budget.
    """
    check_arguments(n, q)
    stack = Stack.of(pattern, n, **options)
    return _distances_by_columns(stack, q) if stack.selects else _distances(stack, q)


def numeric_field(pattern: Pattern, layers: int, q: int, n: int, **options: Any) -> Bools:
    """Which keys query q reads through so many layers: shape (n,).

    Raises:
        ValueError: n, q, the starting layer or ``layers`` is out of range, or an input has the wrong shape.
        Unaffordable: it takes longer or needs more memory than allowed.
        BudgetExceeded: the exact set computation is over its budget.
    """
    check_arguments(n, q, layers=layers)
    stack = Stack.of(pattern, n, **options)
    if stack.selects:
        return np.concatenate([some(stack.after(layers, keys)[q], len(keys)) for keys in stack.batches()])
    found = only(q, n)
    for index in reversed(range(layers)):
        found = stack.read(index, found)
    return found


def connected(pattern: Pattern, layers: int, n: int, **options: Any) -> Bools:
    """All pairs (q, k) that so many layers connect, as a dense mask: shape (n, n).

    Raises:
        ValueError: n, the starting layer or ``layers`` is out of range, or an input has the wrong shape.
        Unaffordable: it takes longer or needs more memory than allowed.
        BudgetExceeded: the exact set computation is over its budget.
    """
    check_arguments(n, layers=layers)
    stack = Stack.of(pattern, n, **options)
    check_dense(n, "all pairs are dense", stack.allowance, 3)
    found = np.zeros((n, n), bool)
    for keys in stack.batches():
        sets = stack.after(layers, keys)
        found[:, keys] = np.unpackbits(sets[:-1].view(np.uint8), axis=1, count=len(keys), bitorder="little")
    return found


def numeric_path(pattern: Pattern, q: int, k: int, n: int, **options: Any) -> Path | None:
    """A way from query q to key k through as few layers as possible, of real edges; None if there is none.

    Raises:
        ValueError: n, a position or the starting layer is out of range, or an input has the wrong shape.
        Unaffordable: it takes longer or needs more memory than allowed, or no single way is sure (unknown scores decide).
        BudgetExceeded: the exact set computation is over its budget.
    """
    check_arguments(n, q, k)
    stack = Stack.of(pattern, n, **options)
    if stack.selects:
        raise Unaffordable("scores that are not known decide the way")
    return path(stack, q, k)


def path(stack: Stack, q: int, k: int) -> Path | None:
    """As `numeric_path`, in a stack without unknown scores."""
    hops = int(_distances(stack, q)[k])
    if hops < 0:
        return None
    below: list[npt.NDArray[np.uint8]] = []
    for _, sets in zip(range(hops), stack.columns(np.array([k])), strict=False):
        below.append(np.packbits(column(sets, 0), bitorder="little"))
        stack.allowance.hold(below[-1].nbytes)
    positions = [q]
    for index in reversed(range(hops)):
        here = positions[-1]
        keys = stack.layer(index).keys(here)
        keys = np.append(keys, here) if stack.residual else keys
        reaches = below[index][keys // 8] >> (keys % 8).astype(np.uint8) & 1 != 0
        positions.append(int(keys[np.argmax(reaches)]))
    return Path(stack.n, tuple(stack.number(index) for index in reversed(range(hops))), tuple(positions), stack.residual)


def chain(stack: Stack, q: int, k: int, layers: int) -> Chain | None:
    """All that q reads through 0, 1, ..., ``layers`` layers, from the top of them; None if its runs are too many."""
    field, down = only(q, stack.n), tuple(reversed(range(layers)))
    sets = [true_runs(field)]
    for index in down:
        field = stack.read(index, field)
        sets.append(true_runs(field))
        if sum(map(len, sets)) > MAX_RUNS:
            return None
    return Chain(stack.n, q, tuple(sets), tuple(map(stack.number, down)), k, stack.residual)


def _distances(stack: Stack, q: int) -> Ints:
    """Layers are walked from the top, so their number modulo the period says where to begin; then whole periods follow."""
    period = len(stack.layers)
    found = np.full(stack.n, -1)
    for extra in range(period):
        front = only(q, stack.n)
        for index in reversed(range(extra)):
            front = stack.read(index, front)
        seen, layers = front, extra
        while front.any():
            better = front & ((found < 0) | (found > layers))
            found[better] = layers
            for index in reversed(range(period)):
                front = stack.read(index, front)
            front = front & ~seen
            seen, layers = seen | front, layers + period
    return found


def _distances_by_columns(stack: Stack, q: int) -> Ints:
    """Where unknown scores decide, each key needs a run of its own; exact lengths are not walked."""
    if not stack.residual:
        raise Unaffordable("walks of exact length are not followed through selections")
    found = np.full(stack.n, -1)
    for keys in stack.batches():
        before: Words | None = None
        quiet = 0
        for level, sets in enumerate(stack.columns(keys)):
            here = some(sets[q], len(keys)) & (found[keys] < 0)
            found[keys[here]] = level
            quiet = quiet + 1 if before is not None and bool((sets == before).all()) else 0
            if (found[keys] >= 0).all() or quiet == len(stack.layers):
                break
            before = sets
    return found
