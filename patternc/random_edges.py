"""The counter-based sampler behind `random`: a pure function of (seed, head, row, draw), the same on every backend.

`mix` and `below` use nothing but 64-bit integer operators, so that one definition runs on Python integers, numpy and
torch arrays, and (its source copied into the emitted file) inside a Triton kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from patternc.relation import Loop
from patternc.scalar import evaluate
from patternc.terms import Random


def mix(h: Any) -> Any:
    """A 32-bit mixing function: murmur3's finaliser with the constants of C. Wellons' `lowbias32`."""
    h = h & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return h ^ (h >> 16)


def below(bound: Any, seed: Any, head: Any, row: Any, draw: Any) -> Any:
    """A number uniform on 0 <= x < bound (bound < 2^31), by the high bits of a 32-bit hash times the bound."""
    h = mix(mix(mix(mix(seed + 0x9E3779B9) + head) + row) + draw)
    return (h * bound) >> 32


def draw_ranks(draws: int, count: Any, seed: int, head: Any, row: Any, where: Callable[..., Any]) -> list[Any]:
    """``draws`` distinct ranks below ``count`` for each row; -1 where a row has fewer (it then takes every rank).

    R. W. Floyd's sampling without replacement: draw i picks t < count - draws + i + 1, or count - draws + i itself if t
    was picked before. Every subset of size ``draws`` is equally likely.

    Args:
        count: candidates of each row, an int64 array.
        head: the query head, an int or an array that broadcasts with ``row``.
        row: the query position (or query block), an int64 array.
        where: elementwise choice of the array library in use.
    """
    picked: list[Any] = []
    for i in range(draws):
        last = count - draws + i
        rank = below(last + 1, seed, head, row, i)
        for earlier in picked:
            rank = where(earlier == rank, last, rank)
        picked.append(rank)
    few = count <= draws
    return [where(few, where(i < count, i + 0 * count, -1 + 0 * count), rank) for i, rank in enumerate(picked)]


def candidates(loops: Sequence[Loop], row: Any, n: int, xp: Any) -> Any:
    """How many values the loops of each row hold."""
    total = 0 * row
    for loop in loops:
        total = total + _count(loop, row, n, xp)
    return total


def value_at(loops: Sequence[Loop], rank: Any, row: Any, n: int, xp: Any) -> Any:
    """The value of each row's loops at a rank, ascending; -1 where the rank is negative or over the row's count."""
    if any(loop.interleaved for loop in loops):
        return _value_by_bisection(loops, rank, row, n, xp)
    found = -1 + 0 * (rank + row)
    rank = xp.where(rank < 0, 1 << 40, rank)
    for loop in loops:
        count = _count(loop, row, n, xp)
        found = xp.where((rank >= 0) & (rank < count), evaluate(loop.start, {"q": row, "n": n}, xp) + loop.step * rank, found)
        rank = rank - count
    return found


def _value_by_bisection(loops: Sequence[Loop], rank: Any, row: Any, n: int, xp: Any) -> Any:
    """The smallest value that more than ``rank`` values of the loops do not exceed."""
    counted = [(evaluate(loop.start, {"q": row, "n": n}, xp) + 0 * row, _count(loop, row, n, xp), loop.step) for loop in loops]

    def up_to(value: Any) -> Any:
        total = 0 * value
        for start, count, step in counted:
            reached = xp.where(value < start, 0 * value, (value - start) // step + 1)
            total = total + xp.where(reached < count, reached, count + 0 * reached)
        return total

    value = -1 + 0 * (rank + row)
    for bit in reversed(range((n - 1).bit_length())):
        further = value + (1 << bit)
        value = xp.where(up_to(further) <= rank, further, value)
    total = candidates(loops, row, n, xp)
    return xp.where((rank >= 0) & (rank < total), value + 1, -1 + 0 * value)


def _count(loop: Loop, row: Any, n: int, xp: Any) -> Any:
    count = evaluate(loop.count, {"q": row, "n": n}, xp) + 0 * row
    return xp.where(count > 0, count, 0)


def draw(choice: Random, loops: Sequence[Loop], head: Any, row: Any, n: int, xp: Any) -> list[Any]:
    """The key blocks that each query block of ``row`` draws (one array a draw); -1 where it has fewer candidates."""
    count = candidates(loops, row, n, xp)
    if choice.pool is not None:
        count = xp.where(count < choice.pool, count, choice.pool)
    ranks = draw_ranks(choice.draws, count, choice.seed, head, row, xp.where)
    return [value_at(loops, rank, row, n, xp) for rank in ranks]
