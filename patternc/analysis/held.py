"""Which pairs runtime inputs can bring about and which they cannot prevent, pair by pair, as exact relations.

A block table may hold any boolean at a pair. Documents may or may not join two positions, and always join a position with
itself. So what filters do at one pair is propositional, and a pair is certain if it is held under every assignment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, reduce
from itertools import product
from typing import TypeAlias

from patternc.relation import Relation, everything, nothing
from patternc.scalar import K, Q, op
from patternc.terms import Condition, Document, Filter, Layout, Meaning, TopK

MAX_ATOMS = 6

Atom: TypeAlias = tuple[str, int]
"""A runtime truth value at a pair: an input's name, and the block size of its table (0 for documents)."""


@lru_cache(maxsize=1)
def diagonal() -> Relation:
    """The pairs (q, q)."""
    return Relation.where(op("==", Q, K))


@lru_cache(maxsize=1)
def causal_pairs() -> Relation:
    """The pairs with k <= q."""
    return Relation.where(op("<=", K, Q))


def union(relations: Iterable[Relation]) -> Relation:
    """The pairs of any of the relations."""
    return reduce(Relation.__or__, relations, nothing())


def realisable(conditions: Iterable[Condition]) -> Relation:
    """The pairs that some runtime inputs let through."""
    return union(_realisable(condition) for condition in conditions)


def _realisable(condition: Condition) -> Relation:
    wanted: dict[Atom, bool] = {}
    for f in condition.filters:
        if wanted.setdefault(_atom(f), not f.negated) == f.negated:
            return nothing()
    apart = any(isinstance(f, Document) and f.negated for f in condition.filters)
    return condition.relation - diagonal() if apart else condition.relation


def certain(conditions: Iterable[Condition]) -> Relation:
    """The pairs that are let through whatever the runtime inputs: all of them where `few_atoms`, else maybe fewer."""
    conditions = tuple(conditions)
    if not few_atoms(conditions):
        on_diagonal = (c.relation & diagonal() for c in conditions if c.always_on_diagonal)
        return union([*(c.relation for c in conditions if not c.filters), *on_diagonal])
    missed = exceeding((Condition(everything()),), conditions)
    return everything() - missed


def exceeding(a: tuple[Condition, ...], b: tuple[Condition, ...]) -> Relation:
    """The pairs that some runtime inputs let through ``a`` and not through ``b``; exact, for `few_atoms` of both."""
    found = nothing()
    for assigned in _assignments(_atoms((*a, *b))):
        more = _through(a, assigned) - _through(b, assigned)
        joined = all(value for (_, block), value in assigned.items() if not block)
        found = found | (more if joined else more - diagonal())
    return found


def few_atoms(conditions: Iterable[Condition]) -> bool:
    """Whether the truth values that meet in the conditions are few enough to try them all."""
    return len(_atoms(conditions)) <= MAX_ATOMS


def _atoms(conditions: Iterable[Condition]) -> list[Atom]:
    return sorted({_atom(f) for c in conditions for f in c.filters})


def _assignments(atoms: list[Atom]) -> Iterator[dict[Atom, bool]]:
    for values in product((False, True), repeat=len(atoms)):
        yield dict(zip(atoms, values, strict=True))


def _through(conditions: Iterable[Condition], assigned: Mapping[Atom, bool]) -> Relation:
    return union(c.relation for c in conditions if all(assigned[_atom(f)] != f.negated for f in c.filters))


def _atom(f: Filter) -> Atom:
    return (f.name, f.block if isinstance(f, Layout) else 0)


def clash(meanings: Iterable[Meaning]) -> str | None:
    """The name of a runtime input that two uses want in different forms, so that no one value serves both; or None."""
    forms: dict[str, object] = {}
    for meaning in meanings:
        for use in meaning.inputs:
            form = "scores" if isinstance(use, TopK) else _atom(use)
            if forms.setdefault(use.name, form) != form:
                return use.name
    return None
