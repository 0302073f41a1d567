"""Does every query read its own position?"""

from __future__ import annotations

import numpy as np

from patternc.analysis.held import certain, clash, diagonal, few_atoms, realisable, union
from patternc.analysis.members import Member
from patternc.analysis.search import Mask, search
from patternc.analysis.verdict import Verdict, contradictory, for_every_member, proved, refuted, unknown
from patternc.pattern import Pattern
from patternc.relation import Pair
from patternc.terms import Meaning

CLAIM = "every query reads its own position"


def prove_self_loops(pattern: Pattern) -> Verdict:
    """Whether (q, q) is held for every q and n, whatever the runtime inputs, draws and scores."""
    return for_every_member(pattern, CLAIM, _decide)


def _decide(member: Member) -> Verdict:
    meaning = member.meaning
    missed = diagonal() - certain(meaning.conditions)
    if missed.is_empty():
        return proved(
            CLAIM, "the diagonal, less the pairs held whatever the inputs, draws and scores, is the empty set for every n"
        )
    never = diagonal() - union(realisable(term.conditions) for term in meaning.terms)
    if not never.is_empty():
        return refuted(CLAIM, never.sample(), _words)
    name = clash([meaning])
    if name is not None:
        return contradictory(CLAIM, name)
    if not meaning.picks and few_atoms(meaning.conditions):
        return refuted(CLAIM, missed.sample(), _words, "some runtime inputs")
    found = search([meaning], member.head, _absent)
    if found is not None:
        return refuted(CLAIM, found.pair, _words, found.setting)
    return unknown(CLAIM, _reason(meaning))


def _absent(mask: Mask) -> tuple[int, int] | None:
    gaps = np.flatnonzero(~np.diagonal(mask))
    return (int(gaps[0]), int(gaps[0])) if len(gaps) else None


def _reason(meaning: Meaning) -> str:
    picks = " or ".join(f"'{term}'" for term in meaning.picks)
    what = f"whether {picks} picks the query's own position" if picks else "what the runtime inputs let through"
    return f"{what} is not known for every n, and none of the small runs tried misses it"


def _words(pair: Pair) -> str:
    return f"query {pair.q} does not read key {pair.q} at n = {pair.n}"
