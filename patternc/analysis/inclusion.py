"""Does one pattern hold only pairs of another, or the same pairs?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

from patternc.analysis.held import clash, exceeding, few_atoms, realisable
from patternc.analysis.search import Mask, first, search
from patternc.analysis.verdict import Verdict, contradictory, proved, refuted, unknown, worst
from patternc.language.resolve import joint_variants
from patternc.pattern import Pattern, parse
from patternc.relation import BudgetExceeded, Pair
from patternc.terms import Random

Aligned: TypeAlias = tuple[Pattern, Pattern, int]
"""What two patterns are at one layer and head, and the head."""


def prove_subset(pattern: Pattern, other: Pattern | str) -> Verdict:
    """Whether every pair of ``pattern`` is one of ``other``, for every n, layer and head and the same runtime inputs."""
    other = parse(other) if isinstance(other, str) else other
    claim = f"every pair is one of '{other}'"
    return _compare(pattern, other, claim, lambda a, b, head: _within(a, b, head, claim, "only the first pattern holds"))


def prove_equivalent(pattern: Pattern, other: Pattern | str) -> Verdict:
    """Whether both patterns hold the same pairs, for every n, layer and head and the same runtime inputs."""
    other = parse(other) if isinstance(other, str) else other
    claim = f"the pairs are those of '{other}'"

    def both(a: Pattern, b: Pattern, head: int) -> Verdict:
        forth = _within(a, b, head, claim, "only the first pattern holds")
        back = _within(b, a, head, claim, "only the second pattern holds")
        verdict = worst(claim, (forth, back))
        return proved(claim, "each side, less the other, is the empty set for every n") if verdict else verdict

    return _compare(pattern, other, claim, both)


def _compare(a: Pattern, b: Pattern, claim: str, decide: Callable[[Pattern, Pattern, int], Verdict]) -> Verdict:
    def decided() -> Iterator[Verdict]:
        for (one, other, head), label in _aligned(a, b):
            try:
                yield replace(decide(one, other, head), where=label)
            except BudgetExceeded:
                yield replace(unknown(claim, "the exact set computation is over its operation budget"), where=label)

    verdict = worst(claim, decided())
    return replace(verdict, where="") if verdict else verdict


def _aligned(a: Pattern, b: Pattern) -> Iterator[tuple[Aligned, str]]:
    """Every distinct pair of patterns that one layer and head of both use, with the first such layer and head in words."""
    places = (("layer", a.layers * b.layers), ("head", a.heads * b.heads))
    for layer, head, one, other in joint_variants(a.expression, b.expression):
        where = [f"{word} {index}" for (word, many), index in zip(places, (layer, head), strict=True) if many > 1]
        yield (Pattern(one), Pattern(other), head), ", ".join(where)


def _within(a: Pattern, b: Pattern, head: int, claim: str, words: str) -> Verdict:
    def story(pair: Pair) -> str:
        return f"{words} query {pair.q} with key {pair.k} at n = {pair.n}"

    known = a.is_subset(b)
    if known:
        return proved(claim, "the pairs, less those of the other, are the empty set for every n")
    if known.holds is False:
        return refuted(claim, known.witness, story)
    mine, theirs = a.meaning(), b.meaning()
    name = clash([mine, theirs])
    if name is not None:
        return contradictory(claim, name)
    if not mine.picks and not theirs.picks and few_atoms((*mine.conditions, *theirs.conditions)):
        more = exceeding(mine.conditions, theirs.conditions)
        if more.is_empty():
            return proved(claim, "the pairs, less those of the other, are the empty set for all runtime inputs and every n")
        return refuted(claim, more.sample(), story, "some runtime inputs")
    for term in mine.terms:
        beyond = realisable(term.conditions) - theirs.possible
        if not beyond.is_empty() and not any(isinstance(choice, Random) for choice in term.choices):
            return refuted(claim, beyond.sample(), story, "some runtime inputs")
    found = search([mine, theirs], head, _extra)
    if found is not None:
        return refuted(claim, found.pair, story, found.setting)
    return unknown(claim, known.reason)


def _extra(mine: Mask, theirs: Mask) -> tuple[int, int] | None:
    return first(mine & ~theirs)
