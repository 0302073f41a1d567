"""What a meaning holds, pair by pair, in numpy: masks, rows and counts of small or large n, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.random_edges import candidates, draw
from patternc.relation import BudgetExceeded, Relation
from patternc.scalar import evaluate
from patternc.terms import Condition, Document, Filter, Layout, Meaning, Random, Term, TopK

Array: TypeAlias = npt.NDArray[Any]
Inputs: TypeAlias = Mapping[str, Any]

MAX_DENSE = 32_768
_ROWS = 1 << 22  # elements of one block of rows


def true_runs(row: npt.NDArray[np.bool_]) -> tuple[tuple[int, int, int], ...]:
    """The true elements of a row as ascending runs (first, last, 1)."""
    edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0))
    return tuple((int(first), int(end) - 1, 1) for first, end in edges.reshape(-1, 2))


class Evaluator:
    """One head of a pattern at one n, with its runtime inputs.

    ``inputs`` holds, by name: block tables (…, ceil(n/block), ceil(n/block)), document ids (…, n) or cu_seqlens, and scores
    (…, n, n) or (…, n, ceil(n/block)); leading axes are batch and head, and batch 0 is used.
    """

    def __init__(self, meaning: Meaning, n: int, head: int, inputs: Inputs):
        self._meaning, self._n, self._head = meaning, n, head
        self._tables: dict[Any, Array] = {}
        for use in meaning.inputs:
            if use.name not in inputs:
                raise ValueError(f"the pattern needs the runtime input '{use.name}': pass {use.name}=...")
            self._tables[use] = self._table(use, np.asarray(inputs[use.name]))
        if meaning.inputs:
            check_dense(n)

    def _table(self, use: Filter | TopK, given: Array) -> Array:
        n = self._n
        match use:
            case Document():
                flat = given.reshape(-1, given.shape[-1])[0]
                return flat if len(flat) == n else np.searchsorted(flat, np.arange(n), side="right")
            case Layout(_, block):
                side = -(-n // block)
                return self._of_head(given, (side, side), use).astype(bool)
            case TopK(_, _, block):
                blocks = -(-n // block)
                wide = block > 1 and given.shape[-1] == n
                return self._of_head(given, (n, n if wide else blocks), use)

    def _of_head(self, given: Array, shape: tuple[int, int], use: Filter | TopK) -> Array:
        if given.shape[-2:] != shape:
            raise ValueError(f"'{use.name}' has shape {given.shape}; the last two axes must be {shape} at n = {self._n}")
        while given.ndim > 3:
            given = given[0]
        return given if given.ndim == 2 else given[self._head % len(given)]

    def holds(self, q: Array, k: Array) -> Array:
        """Whether each pair (elementwise, broadcasting) is in the pattern."""
        out = np.zeros(np.broadcast_shapes(q.shape, k.shape), bool)
        for term in self._meaning.terms:
            out |= self.holds_term(term, q, k)
        return out

    def holds_term(self, term: Term, q: Array, k: Array) -> Array:
        held = np.zeros(np.broadcast_shapes(q.shape, k.shape), bool)
        for condition in term.conditions:
            held |= self._condition(condition, q, k)
        for choice in term.choices:
            held = held & self._choice(choice, term, q, k)
        return held

    def _condition(self, condition: Condition, q: Array, k: Array) -> Array:
        held = np.asarray(evaluate(condition.relation.predicate, {"q": q, "k": k, "n": self._n}, np))
        for f in condition.filters:
            table = self._tables[f]
            kept = table[q // f.block, k // f.block] if isinstance(f, Layout) else table[q] == table[k]
            held = held & (kept != f.negated)
        return held

    def _choice(self, choice: Random | TopK, term: Term, q: Array, k: Array) -> Array:
        if isinstance(choice, TopK):
            return self._selected(choice, term)[q, k]
        found = np.zeros(np.broadcast_shapes(q.shape, k.shape), bool)
        for keys in self.drawn(choice, term, q):
            found |= keys == k // choice.block
        return found

    def drawn(self, choice: Random, term: Term, q: Array) -> list[Array]:
        """The key blocks that the rows ``q`` draw, an array for each draw."""
        row = q.astype(np.int64) // choice.block
        return draw(choice, term.relation.block_rows(choice.block), self._head, row, self._n, np)

    def _selected(self, choice: TopK, term: Term) -> Array:
        """The (n, n) mask of the selected keys."""
        key = (choice, id(term))
        if key not in self._tables:
            n, block = self._n, choice.block
            q, k = np.arange(n)[:, None], np.arange(n)[None, :]
            allowed = np.zeros((n, n), bool)
            for condition in term.conditions:
                allowed |= self._condition(condition, q, k)
            for other in term.choices:
                if isinstance(other, Random):
                    allowed &= self._choice(other, term, q, k)
            scores = self._tables[choice].astype(np.float64)
            blocks = -(-n // block)
            if scores.shape[1] == n:
                scores = np.where(np.isnan(scores), -np.inf, scores)
                scores = np.stack([np.where(a, s, -np.inf).max(1) for a, s in _by_block(allowed, scores, block)], 1)
            else:
                some = np.stack([a.any(1) for a, _ in _by_block(allowed, allowed, block)], 1)
                scores = np.where(some & ~np.isnan(scores), scores, -np.inf)
            order = np.argsort(-scores, axis=1, kind="stable")[:, : choice.k]
            chosen = np.zeros((n, blocks), bool)
            np.put_along_axis(chosen, order, True, 1)
            chosen &= scores > -np.inf
            self._tables[key] = chosen[:, np.arange(n) // block]
        return self._tables[key]

    def row_blocks(self) -> Iterator[Array]:
        """All queries, in blocks whose dense rows stay small."""
        size = max(1, _ROWS // self._n)
        for first in range(0, self._n, size):
            yield np.arange(first, min(self._n, first + size))

    def count(self) -> int:
        """The number of pairs, each counted once."""
        if self._meaning.inputs or any(choice.block > 1 for term in self._meaning.picks for choice in term.choices):
            return self._count_pairs()
        try:
            total = relation_count(self._meaning.static, self._n)
            return total if self._meaning.is_static else total + self._count_draws()
        except BudgetExceeded:  # the rows have no closed form
            return self._count_pairs()

    def _count_pairs(self) -> int:
        check_dense(self._n)
        k = np.arange(self._n)[None, :]
        return sum(int(self.holds(q[:, None], k).sum()) for q in self.row_blocks())

    def _count_draws(self) -> int:
        q = np.arange(self._n, dtype=np.int64)
        picks = self._meaning.picks
        keys = np.stack([keys for term in picks for keys in self.drawn(_random(term), term, q)], 1)
        drawn_by = np.repeat(np.arange(len(picks)), [_random(term).draws for term in picks])
        kept = keys >= 0
        for i, term in enumerate(picks):
            mine = drawn_by == i
            kept[:, mine] &= self.holds_term(term, q[:, None], keys[:, mine]) if len(term.choices) > 1 else True
        static = np.asarray(evaluate(self._meaning.static.predicate, {"q": q[:, None], "k": keys, "n": self._n}, np))
        keys = np.sort(np.where(kept & ~static, keys, -1), axis=1)
        fresh = keys >= 0
        fresh[:, 1:] &= keys[:, 1:] != keys[:, :-1]
        return int(fresh.sum())


def _random(term: Term) -> Random:
    return next(c for c in term.choices if isinstance(c, Random))


def _by_block(a: Array, b: Array, block: int) -> Iterator[tuple[Array, Array]]:
    for first in range(0, a.shape[1], block):
        yield a[:, first : first + block], b[:, first : first + block]


def check_dense(n: int) -> None:
    """Refuse work that grows with n^2 where n is large."""
    if n > MAX_DENSE:
        raise ValueError(f"n = {n:,} is too large for a dense computation; the limit is {MAX_DENSE:,}")


def relation_count(relation: Relation, n: int) -> int:
    """The number of pairs at n, summed over rows in closed form."""
    total = 0
    for first in range(0, n, 1 << 20):
        q = np.arange(first, min(n, first + (1 << 20)), dtype=np.int64)
        total += int(candidates(relation.rows, q, n, np).sum())
    return total
