"""Is the pattern causal: does no query ever read a key after it?"""

from __future__ import annotations

import numpy as np

from patternc.analysis.held import causal_pairs, clash, realisable
from patternc.analysis.members import Member
from patternc.analysis.search import Mask, first, search
from patternc.analysis.verdict import Verdict, contradictory, for_every_member, proved, refuted, unknown
from patternc.pattern import Pattern
from patternc.relation import Pair
from patternc.terms import Random

CLAIM = "no query reads a key after it"


def prove_causal(pattern: Pattern) -> Verdict:
    """Whether k <= q for every pair that any runtime input, draw or score can bring about."""
    return for_every_member(pattern, CLAIM, _decide)


def _decide(member: Member) -> Verdict:
    meaning = member.meaning
    outside = [realisable(term.conditions) - causal_pairs() for term in meaning.terms]
    if all(ahead.is_empty() for ahead in outside):
        return proved(
            CLAIM, "the pairs that any input, draw or score allows, less those with k <= q, are the empty set for every n"
        )
    ahead = meaning.static - causal_pairs()
    if not ahead.is_empty():
        return refuted(CLAIM, ahead.sample(), _words)
    name = clash([meaning])
    if name is not None:
        return contradictory(CLAIM, name)
    for term, ahead in zip(meaning.terms, outside, strict=True):
        if not ahead.is_empty() and not any(isinstance(choice, Random) for choice in term.choices):
            return refuted(CLAIM, ahead.sample(), _words, "some runtime inputs")
    found = search([meaning], member.head, _ahead)
    if found is not None:
        return refuted(CLAIM, found.pair, _words, found.setting)
    return unknown(CLAIM, "random draws may reach a key after the query, and none of the small runs tried does")


def _ahead(mask: Mask) -> tuple[int, int] | None:
    return first(np.triu(mask, 1))


def _words(pair: Pair) -> str:
    return f"query {pair.q} reads key {pair.k}, which comes after it, at n = {pair.n}"
