"""Numbers about one layer and head of a pattern: keys per query, density, and the runtime inputs with their shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.analysis.held import certain, realisable
from patternc.dense import Evaluator
from patternc.random_edges import candidates
from patternc.relation import BudgetExceeded, Relation
from patternc.scorers import ScoreInput
from patternc.terms import Document, Layout, Meaning, Term

Array: TypeAlias = npt.NDArray[Any]

_CHUNK = 1 << 20
_ALL_ROWS = 1 << 22
_DENSE = 4_096


@dataclass(frozen=True)
class Keys:
    """How many keys the queries of a sequence of n read.

    Attributes:
        least: the fewest keys of a query; for certain, where not ``exact``.
        mean, most: over the queries; where not ``exact``, no inputs or scores give more.
        exact: whether the runtime inputs, the scores and the draws do not matter.
        sampled: whether only evenly spread queries were counted (n is very large).
    """

    n: int
    least: int
    mean: float
    most: int
    exact: bool
    sampled: bool = False

    @property
    def pairs(self) -> int:
        """The number of pairs (at most, where not ``exact``; about, where ``sampled``)."""
        return round(self.mean * self.n)

    @property
    def density(self) -> float:
        """The share of all n^2 pairs."""
        return self.mean / self.n


def keys_per_query(meaning: Meaning, n: int, head: int = 0) -> Keys | None:
    """The keys of each query at n, counted in closed form; None where the pattern has no closed form and n is large."""
    if not meaning.is_static and not meaning.inputs and n <= _DENSE:
        return _dense(meaning, n, head)
    try:
        return _in_closed_form(meaning, n)
    except BudgetExceeded:
        return _dense(meaning, n, head) if not meaning.inputs and n <= _DENSE else None


def _dense(meaning: Meaning, n: int, head: int) -> Keys:
    evaluator = Evaluator(meaning, n, head, {})
    k = np.arange(n)[None, :]
    counts = np.concatenate([evaluator.holds(q[:, None], k).sum(1) for q in evaluator.row_blocks()])
    return Keys(n, int(counts.min()), float(counts.mean()), int(counts.max()), exact=True)


def _in_closed_form(meaning: Meaning, n: int) -> Keys:
    exact = meaning.is_static or _one_pick(meaning)
    sampled = n > _ALL_ROWS
    rows = np.linspace(0, n - 1, _CHUNK).astype(np.int64) if sampled else np.arange(n, dtype=np.int64)
    least, most, total = n, 0, 0
    surely = certain(meaning.conditions)
    for first in range(0, len(rows), _CHUNK):
        q = rows[first : first + _CHUNK]
        upper = _upper(meaning, q, n)
        lower = upper if exact else _count(surely, q, n)
        least, most, total = min(least, int(lower.min())), max(most, int(upper.max())), total + int(upper.sum())
    return Keys(n, least, total / len(rows), most, exact, sampled)


def _upper(meaning: Meaning, q: Array, n: int) -> Array:
    if meaning.is_static:
        return _count(meaning.static, q, n)
    total = _count(realisable(meaning.conditions), q, n)
    for term in meaning.picks:
        total = total + np.minimum(_count(term.relation, q, n), term.most)
    possible = realisable(c for term in meaning.terms for c in term.conditions)
    return np.asarray(np.minimum(total, _count(possible, q, n)))


def _one_pick(meaning: Meaning) -> bool:
    """Whether the pattern is one pick of single keys, which takes all it may wherever it can (for finite scores)."""
    match meaning.terms:
        case (Term(conditions, (choice,)),):
            return choice.block == 1 and not any(c.filters for c in conditions)
    return False


def _count(relation: Relation, q: Array, n: int) -> Array:
    counts: Array = candidates(relation.rows, q, n, np) + 0 * q
    return counts


@dataclass(frozen=True)
class RuntimeInput:
    """What a pattern wants at run time."""

    name: str
    shape: str
    what: str


def runtime_inputs(meaning: Meaning) -> tuple[RuntimeInput, ...]:
    """The runtime inputs by name; where there are leading axes, a size of 1 serves every batch or head."""
    found: dict[str, RuntimeInput] = {}
    for use in meaning.arguments:
        match use:
            case Layout(name, block):
                side = _blocks(block)
                what = f"boolean table: which {block} x {block} blocks are read; batch and heads may be left out"
                one = RuntimeInput(name, f"(batch, heads, {side}, {side})", what)
            case Document(name):
                what = "document ids that never fall, or cumulative lengths (cu_seqlens)"
                one = RuntimeInput(name, "(n,), (batch, n) or (documents + 1,)", what)
            case ScoreInput(name=name, what=what, shape=shape):
                one = RuntimeInput(name, shape, what)
        found.setdefault(name, one)
    return tuple(found.values())


def _blocks(block: int) -> str:
    return "n" if block == 1 else f"ceil(n / {block})"
