"""What a pattern means once the syntax is gone: a union of terms.

A *condition* is a static relation cut down by runtime filters (block tables, documents). A *term* is a union of
conditions, from which its choices (`random`, `topk`) may then pick; without choices it is just that set. A *meaning* is a
union of terms: at most one set, and any number of picks. An expression without `random` and `topk` is one set, however
it is written, so a choice beside it picks from the whole of it; `&` distributes over `|` only where choices are involved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Literal, TypeAlias

from patternc.relation import Relation, everything, nothing
from patternc.scalar import FALSE, Scalar
from patternc.scorers import ScoreInput, Scorer

Share: TypeAlias = Literal["head", "group", "query"]

MAX_TERMS = 1_000
MAX_DRAWS = 256


@dataclass(frozen=True)
class Layout:
    """Keeps (q, k) where the runtime table ``name`` holds at [q // block, k // block]."""

    name: str
    block: int
    negated: bool = False

    @property
    def shape_key(self) -> int:
        """What the shape of the runtime input depends on."""
        return self.block

    def __str__(self) -> str:
        return f"{'~' if self.negated else ''}layout({self.name}, {self.block})"


@dataclass(frozen=True)
class Document:
    """Keeps (q, k) where q and k belong to the same runtime document."""

    name: str
    negated: bool = False

    @property
    def shape_key(self) -> int:
        return 0

    def __str__(self) -> str:
        return f"{'~' if self.negated else ''}document({self.name})"


@dataclass(frozen=True)
class Random:
    """Picks ``draws`` key blocks for each query block, uniformly without replacement from the first ``pool`` candidates."""

    draws: int
    block: int
    seed: int
    pool: int | None

    def __str__(self) -> str:
        extra = [f"{key}={value}" for key, value, plain in self._options if value != plain]
        return f"random({', '.join([str(self.draws), *extra])})"

    @property
    def _options(self) -> list[tuple[str, int | None, int | None]]:
        return [("block", self.block, 1), ("seed", self.seed, 0), ("pool", self.pool, None)]


@dataclass(frozen=True)
class TopK:
    """Picks the ``k`` best-scoring candidate key blocks of each query, those of ``forced`` first; ties go to the lowest key.

    The query heads that ``share`` names have their scores added up. ``forced`` is a condition of whole key blocks.
    """

    scorer: Scorer
    k: int
    block: int
    share: Share = "head"
    forced: Scalar = FALSE
    forced_text: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The scorer's text. For scores that are given it is the name of the runtime input."""
        return str(self.scorer)

    @property
    def shape_key(self) -> int:
        return self.block

    @property
    def force(self) -> Relation:
        """The pairs that are picked whatever the scores, where they are candidates."""
        return Relation.where(self.forced)

    def __str__(self) -> str:
        extra = [f"block={self.block}"] if self.block != 1 else []
        extra += [f"share={self.share}"] if self.share != "head" else []
        extra += [f"force={self.forced_text}"] if self.forced != FALSE else []
        return f"topk({', '.join([self.name, str(self.k), *extra])})"


Filter: TypeAlias = Layout | Document
Choice: TypeAlias = Random | TopK


class CannotComplement(Exception):
    """The complement of a choice was asked for."""


class TooManyTerms(Exception):
    """Distributing the operators gave more terms than `MAX_TERMS`."""


@dataclass(frozen=True)
class Condition:
    """The pairs of a relation that all filters keep."""

    relation: Relation
    filters: tuple[Filter, ...] = ()

    def __and__(self, other: Condition) -> Condition:
        filters = tuple(dict.fromkeys(self.filters + other.filters))
        return Condition(self.relation & other.relation, tuple(sorted(filters, key=str)))

    @property
    def always_on_diagonal(self) -> bool:
        """Whether the filters keep every (q, q), whatever the runtime inputs."""
        return all(isinstance(f, Document) and not f.negated for f in self.filters)


Conditions: TypeAlias = tuple[Condition, ...]


def _merge(conditions: Iterable[Condition]) -> Conditions:
    """Unite the relations that share their filters, and drop the empty ones."""
    merged: dict[tuple[Filter, ...], Relation] = {}
    for condition in conditions:
        known = merged.get(condition.filters)
        merged[condition.filters] = condition.relation if known is None else known | condition.relation
    kept = tuple(Condition(r, f) for f, r in merged.items() if not r.is_empty())
    if len(kept) > MAX_TERMS:
        raise TooManyTerms
    return tuple(sorted(kept, key=lambda c: len(c.filters)))


def _intersect(a: Conditions, b: Conditions) -> Conditions:
    if len(a) * len(b) > MAX_TERMS:
        raise TooManyTerms
    return _merge(x & y for x in a for y in b)


def _complement(conditions: Conditions) -> Conditions:
    def one(condition: Condition) -> Conditions:
        flipped = [type(f)(**{**f.__dict__, "negated": not f.negated}) for f in condition.filters]
        return (Condition(~condition.relation), *(Condition(everything(), (f,)) for f in flipped))

    return reduce(_intersect, (_merge(one(c)) for c in conditions), (Condition(everything()),))


@dataclass(frozen=True)
class Term:
    """The pairs of ``conditions`` that all ``choices`` pick (every pair, where there are none)."""

    conditions: Conditions
    choices: tuple[Choice, ...] = ()

    @property
    def forced(self) -> Conditions:
        """The pairs that its selections pick whatever the scores, as far as they are static; none beside draws."""
        if not self.choices or not all(isinstance(choice, TopK) for choice in self.choices):
            return ()
        kept = reduce(Relation.__and__, (choice.force for choice in self.choices if isinstance(choice, TopK)))
        return _intersect(self.conditions, _merge([Condition(kept)]))

    @property
    def most(self) -> int:
        """How many keys a query may find in its choices at most, beside those of `forced`."""
        bounds = [
            c.draws * c.block if c.pool is None else min(c.draws, c.pool) * c.block
            for c in self.choices
            if isinstance(c, Random)
        ]
        bounds += [c.k * c.block for c in self.choices if isinstance(c, TopK) and c.forced == FALSE]
        # Forced keys may be more than k. Those that all selections force are apart; each other one is among the best of one.
        return min(bounds) if bounds else sum(c.k * c.block for c in self.choices if isinstance(c, TopK))

    @cached_property
    def relation(self) -> Relation:
        """The static part: every pair that the term may hold, whatever the runtime inputs and the choices."""
        return reduce(Relation.__or__, (c.relation for c in self.conditions), nothing())

    def __str__(self) -> str:
        return " & ".join(map(str, self.choices)) if self.choices else "set"


@dataclass(frozen=True)
class Meaning:
    """A union of terms in which the first, if it has no choices, is the only one without."""

    terms: tuple[Term, ...]

    @staticmethod
    def of_set(condition: Condition) -> Meaning:
        return Meaning.of_terms([Term((condition,))])

    @staticmethod
    def of_choice(choice: Choice) -> Meaning:
        return Meaning((Term((Condition(everything()),), (choice,)),))

    @staticmethod
    def of_terms(terms: Iterable[Term]) -> Meaning:
        conditions: list[Condition] = []
        picks: dict[tuple[Choice, ...], list[Term]] = {}
        for term in terms:
            if not term.choices:
                conditions += term.conditions
            elif term.conditions:
                same = picks.setdefault(term.choices, [])
                if not any(_same_conditions(term, other) for other in same):
                    same.append(term)
        merged = _merge(conditions)
        kept = [*([Term(merged)] if merged else []), *(t for same in picks.values() for t in same)]
        if len(kept) > MAX_TERMS:
            raise TooManyTerms
        return Meaning(tuple(kept))

    @property
    def conditions(self) -> Conditions:
        """The set: everything that no choice decides."""
        return self.terms[0].conditions if self.terms and not self.terms[0].choices else ()

    @property
    def picks(self) -> tuple[Term, ...]:
        """The terms with choices."""
        return tuple(term for term in self.terms if term.choices)

    @cached_property
    def static(self) -> Relation:
        """The pairs held whatever the runtime inputs, the random draws and the scores."""
        return reduce(Relation.__or__, (c.relation for c in self.conditions if not c.filters), nothing())

    @cached_property
    def possible(self) -> Relation:
        """The pairs held for some runtime inputs, draws and scores."""
        return reduce(Relation.__or__, (t.relation for t in self.terms), nothing())

    @property
    def is_static(self) -> bool:
        return not self.picks and not any(c.filters for c in self.conditions)

    @property
    def inputs(self) -> tuple[Filter | TopK, ...]:
        """What decides which pairs are held, besides n: one entry per name and use."""
        uses: list[Filter | TopK] = [f for t in self.terms for c in t.conditions for f in c.filters]
        uses += [c for t in self.terms for c in t.choices if isinstance(c, TopK)]
        return tuple(dict.fromkeys(uses))

    @property
    def arguments(self) -> tuple[Filter | ScoreInput, ...]:
        """What a call must be given besides queries, keys and values: one entry per name and use."""
        uses: list[Filter | ScoreInput] = []
        for use in self.inputs:
            uses += use.scorer.inputs if isinstance(use, TopK) else (use,)
        return tuple(dict.fromkeys(uses))

    def with_forced(self) -> Meaning:
        """The same pairs, where those that selections are forced to pick are part of the set."""
        forced = [condition for term in self.picks for condition in term.forced]
        return Meaning.of_terms([Term(_merge(forced)), *self.terms]) if forced else self

    def __or__(self, other: Meaning) -> Meaning:
        return Meaning.of_terms(self.terms + other.terms)

    def __and__(self, other: Meaning) -> Meaning:
        if len(self.terms) * len(other.terms) > MAX_TERMS:
            raise TooManyTerms
        return Meaning.of_terms(
            Term(_intersect(a.conditions, b.conditions), tuple(dict.fromkeys(a.choices + b.choices)))
            for a in self.terms
            for b in other.terms
        )

    def __invert__(self) -> Meaning:
        if self.picks:
            raise CannotComplement(str(self.picks[0]))
        return Meaning.of_terms([Term(_complement(self.conditions))])

    def __sub__(self, other: Meaning) -> Meaning:
        return self & ~other


def _same_conditions(a: Term, b: Term) -> bool:
    return len(a.conditions) == len(b.conditions) and all(
        x.filters == y.filters and x.relation.equals(y.relation) for x, y in zip(a.conditions, b.conditions, strict=True)
    )
