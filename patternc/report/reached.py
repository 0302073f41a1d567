"""Which keys a query reaches through several layers, pair by pair at one n: distances, and a picture of them.

M_0 = self, and M_L = (R_L | self) o M_(L-1) for the pairs R_L of layer L, all heads together: a query keeps what it has, and
gets what the keys that it reads have. The distance of a pair is the least L with (q, k) in M_L. Reach says what *may* have an
influence, not what has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.pattern import Pattern
from patternc.report.colours import PALETTE, ramp
from patternc.report.picture import MAX_EXACT, Cells, Drawing, counted, picture

Array: TypeAlias = npt.NDArray[Any]

MAX_WORK = 1 << 38
"""Multiplications of one computation of distances."""
_MAX_CELLS = 1 << 28  # of the pictures of all layers and heads
_UNREACHED = -1


@dataclass(frozen=True)
class Layered:
    """Every layer of a pattern at one n, from ``first`` up, all heads together."""

    n: int
    may: tuple[npt.NDArray[np.bool_], ...]
    """For each layer of the period, the pairs that runtime inputs and scores allow."""
    must: tuple[npt.NDArray[np.bool_], ...]
    """The pairs that all of them hold."""

    @property
    def period(self) -> int:
        return len(self.may)

    @property
    def is_settled(self) -> bool:
        """Whether runtime inputs and scores do not matter."""
        return all(a is b for a, b in zip(self.may, self.must, strict=True))


def layered(pattern: Pattern, n: int, first: int = 0) -> Layered:
    """The masks of a period of layers.

    Raises:
        ValueError: n is over `MAX_EXACT`, or there are too many layers and heads for this n.
    """
    if n > MAX_EXACT:
        limit = f"n = {n:,} is over their limit of {MAX_EXACT:,}"
        raise ValueError(f"pictures of reach are computed pair by pair: {limit}; the numbers about it have no such limit")
    order = [pattern.layer(first + i) for i in range(pattern.layers)]
    distinct = {one: one.heads for one in order}
    if sum(distinct.values()) * n * n > _MAX_CELLS:
        raise ValueError(f"{sum(distinct.values()):,} layers and heads are too many for n = {n:,}; take a smaller n")
    found = {one: _united(one, heads, n) for one, heads in distinct.items()}
    return Layered(n, tuple(found[one][0] for one in order), tuple(found[one][1] for one in order))


def _united(layer: Pattern, heads: int, n: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    may, must = np.zeros((n, n), bool), np.zeros((n, n), bool)
    for head in range(heads):
        codes = picture(layer, n, head=head).codes()
        may |= codes != 0
        must |= codes > 0
    return (may, may) if (may == must).all() else (may, must)


@dataclass(frozen=True)
class Distances:
    """The least number of layers for each pair of n positions.

    Attributes:
        of: an (n, n) array; -1 where ``layers`` layers are not enough.
        layers: the layers looked at.
        closed: whether more layers reach nothing more.
    """

    of: npt.NDArray[np.int32]
    layers: int
    closed: bool

    def within(self, layers: int) -> npt.NDArray[np.bool_]:
        """The pairs that so many layers connect."""
        return (self.of >= 0) & (self.of <= layers)

    @property
    def pairs(self) -> list[int]:
        """How many pairs 0, 1, 2, ... layers connect."""
        counts: list[int] = np.cumsum(np.bincount(self.of[self.of >= 0], minlength=self.layers + 1)).tolist()
        return counts


def distances(steps: Sequence[npt.NDArray[np.bool_]], layers: int) -> Distances:
    """Distances through at most ``layers`` layers, which take the steps in turn, the bottom layer the first.

    Raises:
        ValueError: that is more than `MAX_WORK`.
    """
    n = len(steps[0])
    of = np.where(np.eye(n, dtype=bool), 0, _UNREACHED).astype(np.int32)
    reached = np.eye(n, dtype=np.float32)
    matrices: dict[int, Array] = {}
    still = done = 0
    while done < layers and still < len(steps):
        if (done + 1) * n**3 > MAX_WORK:
            raise ValueError(f"{layers:,} layers at n = {n:,} are too much work; take a smaller n, or at most {done:,} layers")
        mask = steps[done % len(steps)]
        step = matrices.setdefault(id(mask), mask.astype(np.float32))
        done += 1
        fresh = (step @ reached > 0) & (of < 0)
        of[fresh] = done
        reached[fresh] = 1
        still = 0 if fresh.any() else still + 1
    closed = still == len(steps)
    return Distances(of, done - still if closed else done, closed)


@dataclass(frozen=True)
class Reached:
    """A picture of what is reached within so many layers, from layer ``first`` up: a class for each distance or few."""

    pattern: Pattern
    n: int
    layers: int
    first: int = 0

    @property
    def title(self) -> str:
        above = f" from layer {self.first} up" if self.first else ""
        return f"reach within {_layers(self.layers)}{above}"

    @cached_property
    def _distances(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Along pairs that may be read, and along those that always are."""
        one = layered(self.pattern, self.n, self.first)
        may = distances(one.may, self.layers).of
        return may, may if one.is_settled else distances(one.must, self.layers).of

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """The largest distance of each class: at most as many classes as there are letters."""
        most, farthest = len(PALETTE), max(int(of.max()) for of in self._distances)
        if farthest <= most:
            return tuple(range(1, farthest + 1)) or (0,)
        return tuple(max(i, int(farthest ** (i / most))) for i in range(1, most + 1))

    @property
    def labels(self) -> tuple[str, ...]:
        starts = [0, *(end + 1 for end in self._ends)]
        spans = zip(starts, self._ends, strict=False)
        return tuple(_layers(end) if first in (0, end) else f"{first}-{end} layers" for first, end in spans)

    @property
    def colours(self) -> tuple[str, ...]:
        return ramp(len(self._ends))

    def codes(self) -> npt.NDArray[np.int8]:
        may, must = (np.where(of < 0, 0, np.searchsorted(self._ends, of) + 1).astype(np.int8) for of in self._distances)
        return np.where(must > 0, must, -may)

    def cells(self, rows: int, columns: int) -> Cells:
        return counted(self.codes(), len(self._ends), rows, columns)


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count:,} layers"


def drawing(pattern: Pattern, n: int, *, head: int = 0, layer: int = 0, reach: int | None = None) -> Drawing:
    """The picture of one layer and head; with ``reach``, of what that many layers from this one up reach."""
    return picture(pattern, n, head=head, layer=layer) if reach is None else Reached(pattern, n, reach, layer)
