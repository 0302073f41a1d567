"""What a meaning holds, pair by pair, in numpy: masks, rows and counts of small or large n, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.random_edges import candidates, draw
from patternc.relation import BudgetExceeded, Relation
from patternc.scalar import evaluate
from patternc.scorers import Sight
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
    (…, n, n) or (…, n, ceil(n/block)); leading axes are batch and head, and batch 0 is used. Where a selection has a scorer
    that the language knows, scores may stand under the scorer's text; without them they come of ``queries`` (…, n, d) and
    ``keys`` (…, n, d), of ``scale`` (by default d ** -0.5) and of the scorer's own inputs, as a call takes them.
    """

    def __init__(self, meaning: Meaning, n: int, head: int, inputs: Inputs):
        self._meaning, self._n, self._head = meaning, n, head
        self._key_heads = len(_headed(inputs["keys"])) if "keys" in inputs else inputs.get("kv_heads")
        self._tables: dict[Any, Array] = {}
        for use in meaning.inputs:
            if use.name in inputs:
                self._tables[use] = self._table(use, np.asarray(inputs[use.name]))
            elif isinstance(use, TopK) and _is_known(use) and "queries" in inputs and "keys" in inputs:
                self._tables[use] = self._scored(use, inputs)
            else:
                raise ValueError(f"the pattern needs {_wanted(use)}")
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
            case TopK(block=block):
                blocks = -(-n // block)
                wide = block > 1 and given.shape[-1] == n
                return self._of_head(given, (n, n if wide else blocks), use)

    def _scored(self, use: TopK, inputs: Inputs) -> Array:
        """The scores (n, n or blocks) of a scorer, from queries and keys."""
        queries, keys = (_headed(inputs[name]) for name in ("queries", "keys"))
        of, group = len(queries), len(queries) // len(keys)
        head = self._head % of
        first, count = {"head": (head, 1), "group": (head // group * group, group), "query": (0, of)}[use.share]
        mine = slice(first, first + count), slice(first // group, (first + count - 1) // group + 1)
        scale = float(inputs.get("scale", queries.shape[-1] ** -0.5))
        own = {one.name: _one_batch(inputs, one.name) for one in use.scorer.inputs}
        rows = use.scorer.rows(Sight(np, queries[None, mine[0]], keys[None, mine[1]], scale, own))
        size = max(1, _ROWS // (count * self._n))
        parts = [rows(start, min(self._n, start + size))[0].sum(0) for start in range(0, self._n, size)]
        return np.concatenate(parts)

    def _of_head(self, given: Array, shape: tuple[int, int], use: Filter | TopK) -> Array:
        if given.shape[-2:] != shape:
            raise ValueError(f"'{use.name}' has shape {given.shape}; the last two axes must be {shape} at n = {self._n}")
        while given.ndim > 3:
            given = given[0]
        if given.ndim == 2:
            return np.asarray(given)
        if isinstance(use, TopK) and use.share != "head" and len(given) > 1:
            return self._of_group(given, use)
        return np.asarray(given[self._head % len(given)])

    def _of_group(self, given: Array, use: TopK) -> Array:
        """The sum of the scores of all heads that pick alike."""
        if use.share == "query":
            return np.asarray(given.sum(0))
        if self._key_heads is None:
            raise ValueError(f"'{use}' picks alike for the query heads of a key head: pass kv_heads=..., their number")
        group = max(1, len(given) // self._key_heads)
        first = self._head % len(given) // group * group
        return np.asarray(given[first : first + group].sum(0))

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
            forced = allowed & np.asarray(evaluate(choice.force.predicate, {"q": q, "k": k, "n": n}, np), bool)
            chosen = np.stack([f.any(1) for f, _ in _by_block(forced, forced, block)], 1)
            free = choice.k - chosen.sum(1, keepdims=True)
            order = np.argsort(np.where(chosen, np.inf, -scores), axis=1, kind="stable")
            rank = np.empty_like(order)
            np.put_along_axis(rank, order, np.broadcast_to(np.arange(blocks), order.shape), 1)
            chosen = chosen | ((rank < free) & (scores > -np.inf))
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


def _wanted(use: Filter | TopK) -> str:
    """What a mask needs to be given for a use, in words."""
    if not isinstance(use, TopK) or not _is_known(use):
        return f"the runtime input '{use.name}': pass {use.name}=..."
    names = ", ".join(f"{name}=..." for name in ("queries", "keys", *(one.name for one in use.scorer.inputs)))
    return f"the scores of '{use.name}': pass {names}"


def _is_known(use: TopK) -> bool:
    """Whether the scorer makes its scores itself."""
    return use.name not in [one.name for one in use.scorer.inputs]


def _headed(given: Any) -> Array:
    """(heads, n, d) of batch 0, in double precision, from (…, n, d)."""
    found = np.asarray(given, np.float64)
    if found.ndim < 2:
        raise ValueError(f"'queries' and 'keys' must have shape (heads, n, d), got {found.shape}")
    while found.ndim > 3:
        found = found[0]
    return found if found.ndim == 3 else found[None]


def _one_batch(inputs: Inputs, name: str) -> Array:
    if name not in inputs:
        raise ValueError(f"the pattern needs the runtime input '{name}': pass {name}=...")
    return np.asarray(inputs[name], np.float64)[:1]


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
