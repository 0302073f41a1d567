"""How many keys does a query read, and how many queries read a key?

Of one head at one n, exactly: the static part by the closed forms of its rows (and of its inverse's rows), draws by the
sampler, everything in pieces of bounded size. Patterns with runtime inputs, or whose rows have no closed form, are counted
pair by pair, up to the limit of dense masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.dense import Evaluator, check_dense
from patternc.pattern import MAX_WALK, Pattern
from patternc.random_edges import candidates
from patternc.relation import BudgetExceeded, Relation
from patternc.scalar import Scalar, evaluate
from patternc.terms import Meaning, Random, Term

Counts: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

MAX_PAIRS = 1 << 28
MAX_VALUES = 1 << 31
_PIECE = 1 << 20


@dataclass(frozen=True, eq=False)
class Distribution:
    """Degrees of all positions: ``count[i]`` positions have degree ``degree[i]``, ascending."""

    degree: Counts
    count: Counts

    @staticmethod
    def of(degrees: Counts) -> Distribution:
        """The distribution of one degree a position."""
        return Distribution(*np.unique(degrees, return_counts=True))

    @property
    def positions(self) -> int:
        return int(self.count.sum())

    @property
    def total(self) -> int:
        """The sum of all degrees: the number of pairs."""
        return int(self.degree @ self.count)

    @property
    def minimum(self) -> int:
        return int(self.degree[0])

    @property
    def maximum(self) -> int:
        return int(self.degree[-1])

    @property
    def mean(self) -> float:
        return self.total / self.positions

    def quantile(self, share: float) -> int:
        """The least degree that at least ``share`` of the positions do not exceed.

        Raises:
            ValueError: ``share`` is not from 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a quantile is asked for a share from 0 to 1, got {share}")
        index = np.searchsorted(np.cumsum(self.count), share * self.positions)
        return int(self.degree[min(int(index), len(self.degree) - 1)])

    def histogram(self, bins: int = 16) -> list[tuple[int, int, int]]:
        """At most ``bins`` ranges of degrees of one width as (first, last, positions), without the empty ones.

        Raises:
            ValueError: there are no bins.
        """
        if bins < 1:
            raise ValueError(f"a histogram has at least 1 bin, got {bins}")
        width = -(-(self.maximum - self.minimum + 1) // bins)
        index = (self.degree - self.minimum) // width
        counted = np.bincount(index, weights=self.count).astype(np.int64)
        starts = self.minimum + width * np.arange(len(counted))
        return [(int(a), min(int(a) + width - 1, self.maximum), int(c)) for a, c in zip(starts, counted, strict=True) if c]

    def to_json(self) -> dict[str, Any]:
        """Minimum, mean, maximum, quartiles and histogram as plain values."""
        shares = (0.01, 0.25, 0.5, 0.75, 0.99)
        return {
            "min": self.minimum,
            "mean": self.mean,
            "max": self.maximum,
            "quantiles": {str(share): self.quantile(share) for share in shares},
            "histogram": [list(entry) for entry in self.histogram()],
        }

    def __str__(self) -> str:
        return f"{self.minimum:,} to {self.maximum:,}, mean {self.mean:,.2f}, median {self.quantile(0.5):,}"


@dataclass(frozen=True, eq=False)
class Degrees:
    """The degrees of one head at n, by position and as distributions."""

    n: int
    keys_per_query: Counts
    queries_per_key: Counts

    @property
    def out(self) -> Distribution:
        """How many keys queries read."""
        return Distribution.of(self.keys_per_query)

    @property
    def into(self) -> Distribution:
        """How many queries read keys."""
        return Distribution.of(self.queries_per_key)

    @property
    def nnz(self) -> int:
        """The number of pairs."""
        return int(self.keys_per_query.sum())

    def __str__(self) -> str:
        return f"at n = {self.n:,}: keys per query {self.out}; queries per key {self.into}"

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, "keys_per_query": self.out.to_json(), "queries_per_key": self.into.to_json()}


def degrees(pattern: Pattern, n: int, head: int = 0, *, layer: int | None = None, **inputs: Any) -> Degrees:
    """The degrees of one head of one layer at n.

    Args:
        inputs: the runtime inputs by name, as for `Pattern.mask`.

    Raises:
        PatternError: the layers differ and ``layer`` is not given.
        ValueError: n is too large: over 2^24, or over 32,768 where pairs are counted one by one; or an input is missing.
    """
    if n > MAX_WALK:
        raise ValueError(f"n = {n:,} is too large to count every position; the limit is {MAX_WALK:,}")
    meaning = pattern.meaning(head=head, layer=layer)
    evaluator = Evaluator(meaning, n, head, inputs)
    if not meaning.inputs:
        try:
            return _closed(meaning, evaluator, n)
        except BudgetExceeded:  # the rows have no closed form
            pass
    return _pair_by_pair(evaluator, n)


def row_counts(relation: Relation, n: int) -> Counts:
    """The keys of each query at n, in closed form.

    Raises:
        BudgetExceeded: there is no closed form.
    """
    loops = relation.rows
    if len(loops) * n > MAX_VALUES:
        raise BudgetExceeded(f"the keys of a row are {len(loops)} loops, too many at n = {n:,}")
    return np.concatenate([candidates(loops, q, n, np) for q in _pieces(n, _PIECE)])


def drawn_pairs(meaning: Meaning, evaluator: Evaluator, n: int) -> Iterator[tuple[Counts, Counts]]:
    """The pairs (queries, keys) that a meaning without runtime inputs holds only by draws, each once, in pieces.

    Raises:
        BudgetExceeded: there are too many to look at.
    """
    looked = 0
    for i, term in enumerate(meaning.picks):
        for rows, columns in _drawn_tiles(term, evaluator, n):
            looked = _count_pairs(looked, term, rows)
            yield from _pairs(meaning, i, evaluator, rows, columns, n)


def _count_pairs(looked: int, term: Term, rows: Counts) -> int:
    """How many pairs were looked at with those of some drawn tiles."""
    looked += len(rows) * _first_draw(term).block ** 2
    if looked > MAX_PAIRS:
        raise BudgetExceeded(f"the drawn tiles have over {MAX_PAIRS:,} pairs to look at")
    return looked


def _drawn_tiles(term: Term, evaluator: Evaluator, n: int) -> Iterator[tuple[Counts, Counts]]:
    """The (query block, key block) pairs that the first draw of a term picks, in pieces."""
    choice = _first_draw(term)
    for rows in _pieces(-(-n // choice.block), max(1, _PIECE // choice.draws)):
        columns = np.stack(evaluator.drawn(choice, term, rows * choice.block), 1)
        real = columns >= 0
        yield np.broadcast_to(rows[:, None], columns.shape)[real], columns[real]


def _pairs(
    meaning: Meaning, index: int, evaluator: Evaluator, rows: Counts, columns: Counts, n: int
) -> Iterator[tuple[Counts, Counts]]:
    """The pairs in some drawn tiles of a term that neither the static part nor an earlier term holds."""
    term = meaning.picks[index]
    block = _first_draw(term).block
    for at in _pieces(len(rows) * block**2, _PIECE):
        tile, inside = at // block**2, at % block**2
        q, k = rows[tile] * block + inside // block, columns[tile] * block + inside % block
        if block > 1:
            q, k = _kept(q, k, (q < n) & (k < n))
            q, k = _kept(q, k, _holds(term.relation, q, k, n))
        if len(term.choices) > 1:
            q, k = _kept(q, k, evaluator.holds_term(term, q, k))
        known = _holds(meaning.static, q, k, n)
        for earlier in meaning.picks[:index]:
            known = known | evaluator.holds_term(earlier, q, k)
        yield _kept(q, k, ~known)


def _kept(q: Counts, k: Counts, held: Bools) -> tuple[Counts, Counts]:
    return q[held], k[held]


def _holds(relation: Relation, q: Counts, k: Counts, n: int) -> Bools:
    return _true(relation.predicate, {"q": q, "k": k, "n": n})


def _closed(meaning: Meaning, evaluator: Evaluator, n: int) -> Degrees:
    out, into = row_counts(meaning.static, n), row_counts(meaning.static.inverse(), n)
    looked = 0
    for i, term in enumerate(meaning.picks):
        for rows, columns in _drawn_tiles(term, evaluator, n):
            whole = _whole(meaning, i, rows, columns, n)
            if whole.any():
                _add_tiles(out, into, rows[whole], columns[whole], _first_draw(term).block)
            looked = _count_pairs(looked, term, rows[~whole])
            for q, k in _pairs(meaning, i, evaluator, rows[~whole], columns[~whole], n):
                np.add.at(out, q, 1)
                np.add.at(into, k, 1)
    return Degrees(n, out, into)


def _whole(meaning: Meaning, index: int, rows: Counts, columns: Counts, n: int) -> Bools:
    """Which drawn tiles of a term are held in whole, and by nothing else: there is no need to look at their pairs."""
    term = meaning.picks[index]
    block = _first_draw(term).block
    if block == 1 or index or len(term.choices) > 1:
        return np.zeros(len(rows), bool)
    tiles = {"I": rows, "J": columns, "n": n}
    return _true(term.relation.full_tiles(block, block), tiles) & ~_true(meaning.static.active_tiles(block, block), tiles)


def _true(condition: Scalar, values: dict[str, Any]) -> Bools:
    """Where a condition holds, one truth value an element of the arrays in ``values``."""
    shape = np.broadcast_shapes(*(np.shape(value) for value in values.values()))
    return np.broadcast_to(np.asarray(evaluate(condition, values, np), np.bool_), shape)


def _add_tiles(out: Counts, into: Counts, rows: Counts, columns: Counts, block: int) -> None:
    """Count tiles that are held in whole; the last query block may be short, and key blocks are not."""
    n = len(out)
    blocks = -(-n // block)
    height = np.minimum(block, n - rows * block)
    of_row = np.bincount(rows, minlength=blocks) * block
    of_column = np.bincount(columns, weights=height, minlength=blocks).astype(np.int64)
    out += np.repeat(of_row, block)[:n]
    into += np.repeat(of_column, block)[:n]


def _pair_by_pair(evaluator: Evaluator, n: int) -> Degrees:
    check_dense(n)
    k = np.arange(n)[None, :]
    out, into = [], np.zeros(n, np.int64)
    for q in evaluator.row_blocks():
        held = evaluator.holds(q[:, None], k)
        out.append(held.sum(1))
        into += held.sum(0)
    return Degrees(n, np.concatenate(out).astype(np.int64), into)


def _first_draw(term: Term) -> Random:
    return next(choice for choice in term.choices if isinstance(choice, Random))


def _pieces(n: int, size: int) -> Iterator[Counts]:
    for first in range(0, n, size):
        yield np.arange(first, min(n, first + size), dtype=np.int64)
