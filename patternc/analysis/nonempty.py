"""Does every query have at least one key?"""

from __future__ import annotations

import numpy as np

from patternc.analysis.held import certain, clash, realisable, union
from patternc.analysis.members import Member
from patternc.analysis.search import Mask, search
from patternc.analysis.verdict import Verdict, contradictory, for_every_member, proved, refuted, unknown
from patternc.pattern import Pattern
from patternc.relation import Pair, Relation, everything, nothing
from patternc.scalar import TRUE, K, Q, Scalar, op, substitute
from patternc.terms import Random, Term, TopK

CLAIM = "no query is left without a key"


def prove_nonempty(pattern: Pattern) -> Verdict:
    """Whether every query of every n reads some key, whatever the runtime inputs and draws and for all finite scores."""
    return for_every_member(pattern, CLAIM, _decide)


def _decide(member: Member) -> Verdict:
    meaning = member.meaning
    never = everything() - union(realisable(term.conditions) for term in meaning.terms).queries()
    if not never.is_empty():
        return refuted(CLAIM, never.sample(), _words)
    if (everything() - union(_sure_rows(meaning.terms))).is_empty():
        return proved(CLAIM, _certificate(meaning.terms))
    name = clash([meaning])
    if name is not None:
        return contradictory(CLAIM, name)
    found = search([meaning], member.head, _keyless)
    if found is not None:
        return refuted(CLAIM, found.pair, _words, found.setting)
    return unknown(CLAIM, _doubt(meaning.terms))


def _sure_rows(terms: tuple[Term, ...]) -> list[Relation]:
    """All pairs of the queries that are certain to have a key.

    A selector with finite scores picks a key wherever it has a candidate, so its candidates are as good as held.
    """
    kept = [term for term in terms if not term.choices or (len(term.choices) == 1 and isinstance(term.choices[0], TopK))]
    rows = [certain([c for term in kept for c in term.conditions]).queries()]
    for term in terms:
        match term.choices:
            case (Random(block=block),):
                rows.append(_drawn_rows(term, block))
    return rows


def _drawn_rows(term: Term, block: int) -> Relation:
    """All pairs of the queries for which every block that may be drawn holds a key for certain."""
    candidates, sure = term.relation, certain(term.conditions)
    if block > 1:
        reads = sure.active_tiles(1, block)
        if reads == TRUE and not sure.equals(everything()):
            return nothing()  # the set of tiles may be a guess, too large to prove with
        candidates = _of_tiles(term.relation.active_tiles(block, block), op("//", Q, block), block)
        sure = _of_tiles(reads, Q, block)
    return candidates.queries() - (candidates - sure).queries()


def _of_tiles(condition: Scalar, row: Scalar, block: int) -> Relation:
    return Relation.where(substitute(condition, {"I": row, "J": op("//", K, block)}))


def _certificate(terms: tuple[Term, ...]) -> str:
    sure = "the queries without a key that is held"
    if any(term.choices for term in terms):
        sure += " or among the candidates of a pick"
    return f"{sure}, whatever the inputs, are the empty set for every n"


def _doubt(terms: tuple[Term, ...]) -> str:
    several = next((term for term in terms if len(term.choices) > 1), None)
    if several is not None:
        return f"the picks of '{several}' may have no key in common, and none of the small runs tried leaves a query without"
    return "some queries depend on runtime inputs or draws, and none of the small runs tried leaves a query without"


def _keyless(mask: Mask) -> tuple[int, int] | None:
    empty = np.flatnonzero(~mask.any(axis=1))
    return (int(empty[0]), 0) if len(empty) else None


def _words(pair: Pair) -> str:
    return f"query {pair.q} reads no key at n = {pair.n}"
