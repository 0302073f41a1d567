"""What a picture of a pattern shows: for each pair, or each cell of pairs, which part holds it, and how surely.

Without runtime inputs a pair is *held* (whatever the inputs), *possible* (for some inputs or scores) or neither. Random
draws need no inputs: they are drawn. The first part that holds a pair gives its colour, else the first that may.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.analysis.held import certain, realisable
from patternc.language.resolve import joined, select, walk
from patternc.language.syntax import Integer
from patternc.pattern import Pattern
from patternc.random_edges import draw, mix
from patternc.relation import BudgetExceeded, Loop, Relation
from patternc.report.colours import colour
from patternc.report.parts import Part, parts
from patternc.scalar import Scalar, evaluate
from patternc.terms import Random, Term, TopK

Array: TypeAlias = npt.NDArray[Any]

MAX_EXACT = 2_048
_SAMPLES = 1 << 22  # of all cells together
_ROWS = 1 << 16  # rows whose draws are counted
_TRACE = 1e-4  # the share shown of a cell that holds a pair which no sample hit


class Drawing(Protocol):
    """What can be drawn: pairs in a few classes, each with a label and a colour."""

    @property
    def n(self) -> int:
        """The sequence length."""

    @property
    def title(self) -> str:
        """What is drawn, in front of the expression ("" for the pattern itself)."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in words."""

    @property
    def colours(self) -> tuple[str, ...]:
        """The colours of the classes."""

    def codes(self) -> npt.NDArray[np.int8]:
        """An (n, n) array: i + 1 where the pair is in class i, -(i + 1) where it may be, 0 elsewhere."""

    def cells(self, rows: int, columns: int) -> Cells:
        """The same on a grid of cells, each ``rows`` queries by ``columns`` keys."""


@dataclass(frozen=True)
class Picture:
    """One layer and head of a pattern at one n, cut into its parts."""

    n: int
    head: int
    parts: tuple[Part, ...]

    @property
    def title(self) -> str:
        return ""

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(part.label for part in self.parts)

    @property
    def colours(self) -> tuple[str, ...]:
        return tuple(colour(i) for i in range(len(self.parts)))

    def codes(self) -> npt.NDArray[np.int8]:
        """An (n, n) array: i + 1 where part i holds the pair, -(i + 1) where it may, 0 elsewhere."""
        if self.n > MAX_EXACT:
            raise ValueError(f"n = {self.n:,} is too large for a picture of every pair; the limit is {MAX_EXACT:,}")
        q, k = np.arange(self.n, dtype=np.int64)[:, None], np.arange(self.n, dtype=np.int64)[None, :]
        return self._codes(q, k, drawn=True)

    def _codes(self, q: Array, k: Array, *, drawn: bool) -> npt.NDArray[np.int8]:
        held = np.zeros(np.broadcast_shapes(q.shape, k.shape), np.int8)
        may = np.zeros_like(held)
        for i, part in enumerate(self._ruled):
            for term in part:
                if term.draws and not drawn:
                    continue
                through = self._drawn(term, q, k) if term.draws else np.bool_(True)
                held[(held == 0) & through & self._test(term.held, q, k)] = i + 1
                may[(may == 0) & through & self._test(term.may, q, k)] = -(i + 1)
        return np.where(held != 0, held, may)

    @cached_property
    def _ruled(self) -> tuple[tuple[_Ruled, ...], ...]:
        return tuple(tuple(_ruled(term) for term in part.meaning.terms) for part in self.parts)

    def _test(self, condition: Scalar, q: Array, k: Array) -> Array:
        return np.asarray(evaluate(condition, {"q": q, "k": k, "n": self.n}, np), bool)

    def _drawn(self, term: _Ruled, q: Array, k: Array) -> Array:
        found: Array = np.ones(np.broadcast_shapes(q.shape, k.shape), bool)
        for choice in term.draws:
            keys = draw(choice, term.relation.block_rows(choice.block), self.head, q // choice.block, self.n, np)
            found = found & np.logical_or.reduce([np.broadcast_to(key == k // choice.block, found.shape) for key in keys])
        return found

    def cells(self, rows: int, columns: int) -> Cells:
        """The picture on a grid of cells, each ``rows`` queries by ``columns`` keys; nothing of size n x n for large n."""
        if self.n <= MAX_EXACT:
            return counted(self.codes(), len(self.parts), rows, columns)
        grid = (-(-self.n // rows), -(-self.n // columns))
        held, may = np.zeros((len(self.parts), *grid)), np.zeros((len(self.parts), *grid))
        self._sample(held, may, rows, columns)
        self._add_draws(held, may, rows, columns)
        self._add_traces(held, may, rows, columns)
        return Cells(self.n, rows, columns, held, may)

    def _sample(self, held: Array, may: Array, rows: int, columns: int) -> None:
        """A stratified sample of each cell, jittered so that no stride of a pattern can hide from it."""
        across = max(8, min(24, isqrt(_SAMPLES // held[0].size)))
        shape = (*held.shape[1:], across, across)
        count = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
        row, column, i, j = np.indices(shape, np.int64, sparse=True)
        q = row * rows + (i * 4096 + _scatter(count, 0)) * rows // (across * 4096)
        k = column * columns + (j * 4096 + _scatter(count, 1)) * columns // (across * 4096)
        inside = (q < self.n) & (k < self.n)
        codes = np.where(inside, self._codes(np.minimum(q, self.n - 1), np.minimum(k, self.n - 1), drawn=False), 0)
        size = np.maximum(inside.sum((2, 3)), 1)
        for part in range(len(self.parts)):
            held[part] = (codes == part + 1).sum((2, 3)) / size
            may[part] = (codes == -(part + 1)).sum((2, 3)) / size

    def _add_draws(self, held: Array, may: Array, rows: int, columns: int) -> None:
        """The draws of evenly spread rows: too few for a sample of pairs to hit."""
        step = max(1, self.n // _ROWS)
        q = np.arange(0, self.n, step, dtype=np.int64)
        size = float(rows * columns)
        for i, part in enumerate(self._ruled):
            for term in part:
                if not term.draws:
                    continue
                for k, weight in self._drawn_keys(term.draws[0], term.relation, q):
                    inside = (k >= 0) & (k < self.n)
                    key = np.where(inside, k, 0)
                    through = inside & (self._drawn(_Ruled(term.relation, term.held, term.may, term.draws[1:]), q, key))
                    through = through & (self._codes(q, key, drawn=False) <= 0)
                    for shares, condition in ((held, term.held), (may, term.may)):
                        kept = through & self._test(condition, q, key)
                        np.add.at(shares[i], (q[kept] // rows, key[kept] // columns), step * weight / size)
        np.minimum(held, 1, out=held)
        np.minimum(may, 1, out=may)

    def _drawn_keys(self, choice: Random, relation: Relation, q: Array) -> Iterator[tuple[Array, float]]:
        keys = draw(choice, relation.block_rows(choice.block), self.head, q // choice.block, self.n, np)
        shown = min(choice.block, 8)
        for key in keys:
            for i in range(shown):
                yield np.where(key < 0, -1, key * choice.block + i * choice.block // shown), choice.block / shown

    def _add_traces(self, held: Array, may: Array, rows: int, columns: int) -> None:
        """Cells that hold a pair are never shown empty, nor full where a pair is missing: by the exact tile sets."""
        relation: Relation | None = None
        for i, part in enumerate(self.parts):
            terms = [term for term in part.meaning.terms if not any(isinstance(c, Random) for c in term.choices)]
            sure = certain([c for term in terms if not term.choices for c in term.conditions])
            possible = realisable(c for term in terms for c in term.conditions)
            relation = sure if relation is None else relation | sure
            for shares, pairs in ((held, sure), (may, possible)):
                tiles = tile_classes(pairs, self.n, rows, columns)
                if tiles is not None:
                    unseen = (tiles > 0) & (held.sum(0) + (may.sum(0) if shares is may else 0) == 0)
                    shares[i][unseen] = _TRACE
        tiles = None if relation is None else tile_classes(relation, self.n, rows, columns)
        if tiles is not None:
            inner = np.arange(tiles.shape[1]) < self.n // columns  # a tile that reaches beyond n is never called full
            held[:, (tiles < 2) & inner & (held.sum(0) >= 1)] *= 0.99


@dataclass(frozen=True)
class Cells:
    """Shares of the pairs of each cell, by part: held, and possible but not held."""

    n: int
    rows: int
    columns: int
    held: Array
    may: Array

    def strongest(self, *, held: bool) -> tuple[Array, Array]:
        """For each cell the part that holds (may hold) most, and the share over all parts; the part is -1 where none is."""
        shares = self.held if held else self.may
        total = np.minimum(shares.sum(0), 1)
        return np.where(total > 0, shares.argmax(0), -1), total


def counted(codes: npt.NDArray[np.int8], classes: int, rows: int, columns: int) -> Cells:
    """The shares of the classes in each cell, counted pair by pair."""
    n = len(codes)
    q, k = np.arange(n) // rows, np.arange(n) // columns
    size = np.bincount(q)[:, None] * np.bincount(k)[None, :]
    held, may = np.zeros((classes, *size.shape)), np.zeros((classes, *size.shape))
    for shares, sign in ((held, 1), (may, -1)):
        for i in range(classes):
            np.add.at(shares[i], np.ix_(q, k), codes == sign * (i + 1))
            shares[i] /= size
    return Cells(n, rows, columns, held, may)


@dataclass(frozen=True)
class _Ruled:
    """A term as conditions in closed form: the pairs held, and the pairs possible, where its draws let them through."""

    relation: Relation
    held: Scalar
    may: Scalar
    draws: tuple[Random, ...]


def _ruled(term: Term) -> _Ruled:
    draws = tuple(choice for choice in term.choices if isinstance(choice, Random))
    selected = any(isinstance(choice, TopK) for choice in term.choices)
    sure, possible = certain(term.conditions), realisable(term.conditions)
    held = sure - sure if selected else sure
    return _Ruled(term.relation, held.predicate, (possible - held).predicate, draws)


def _scatter(count: Array, axis: int) -> Array:
    """Numbers below 4096 without a pattern, the same on every run."""
    return np.asarray(mix(count * 2 + axis) % 4096)


def picture(pattern: Pattern, n: int, *, head: int = 0, layer: int = 0) -> Picture:
    """The picture of one layer and head."""
    return Picture(n, head, parts(joined(select(pattern.expression, {"layers": layer, "heads": head}))))


def tile_classes(relation: Relation, n: int, rows: int, columns: int) -> npt.NDArray[np.int8] | None:
    """For each tile 2 where every pair is held, 1 where some is, 0 where none is; None where that is not known exactly."""
    try:
        tiles = relation.tiles(rows, columns)
    except BudgetExceeded:
        return None
    if not tiles.exact:
        return None
    out = np.zeros((-(-n // rows), -(-n // columns)), np.int8)
    for loops, value in ((tiles.partial, 1), (tiles.full, 2)):
        for loop in loops:
            out[_visited(loop, n, out.shape)] = value
    return out


def _visited(loop: Loop, n: int, shape: tuple[int, int]) -> Array:
    row, column = np.arange(shape[0], dtype=np.int64)[:, None], np.arange(shape[1], dtype=np.int64)[None, :]
    start, count = (evaluate(e, {"I": row, "n": n}, np) for e in (loop.start, loop.count))
    step = column - start
    inside = (step >= 0) & (step % loop.step == 0) & (step // loop.step < count)
    return np.broadcast_to(inside & evaluate(loop.guard, {"I": row, "n": n, "x": column}, np), shape)


def natural_length(pattern: Pattern) -> int:
    """A sequence length at which the sizes written in a pattern can be seen: about four times the largest of them."""
    sizes = [node.value for node in walk(pattern.expression) if isinstance(node, Integer)]
    length = 64
    while length < 4 * max(sizes, default=1) and length < 1 << 20:
        length *= 2
    return length
