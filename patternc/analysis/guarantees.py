"""The guarantees that a pattern can be held to, by name, and whether a claim about one of them is true.

A guarantee holds whatever the runtime inputs and scores: what a pattern only may do is none. A property is true or false.
A measure is a number, of which the largest counts: over all runtime inputs, and for a claim about every n over all n.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeAlias

from patternc.analysis.causal import prove_causal
from patternc.analysis.coverage import over_starts, seconds_of_a_start
from patternc.analysis.hamiltonian import hamiltonian_path
from patternc.analysis.hub import hub
from patternc.analysis.inclusion import prove_equivalent, prove_subset
from patternc.analysis.nonempty import prove_nonempty
from patternc.analysis.reach import hop_diameter
from patternc.analysis.self_loops import prove_self_loops
from patternc.analysis.universality import big_bird, yun
from patternc.analysis.verdict import Verdict, bounded, unknown
from patternc.diagnostics import PatternError
from patternc.language.asserts import EQUAL, Claim
from patternc.language.syntax import Call, Chain, Expression, Integer, Name
from patternc.pattern import Pattern

Decide: TypeAlias = Callable[[Pattern, int | None], Verdict]
"""Decides a property, or measures, for every n (None) or at one."""

_WORDS = MappingProxyType({"<=": "at most", "<": "below", "==": "exactly", ">=": "at least", ">": "above"})
_HOLDS: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {"<=": operator.le, "<": operator.lt, "==": operator.eq, ">=": operator.ge, ">": operator.gt}
)


def check(claim: Claim) -> Verdict:
    """Whether a claim is true: "proved" is the only guarantee.

    The verdict on a measure keeps what is known of the number: its ``value``, or its bounds.

    Raises:
        PatternError: a pattern of the claim cannot be read.
    """
    subject = Pattern(claim.subject, claim.name)
    place = "for every n" if claim.n is None else f"at n = {claim.n:,}"
    if claim.guarantee in MEASURES:
        measure, words = MEASURES[claim.guarantee]
        sentence = f"{words} is {_WORDS[claim.operator]} {claim.limit:,}, {place}"
        return compared(measure(subject, claim.n), claim.operator, claim.limit, sentence)
    if claim.other is None:
        verdict = PROPERTIES[claim.guarantee](subject, claim.n)
    else:
        verdict = _related(subject, Pattern(claim.other), claim.guarantee, claim.n)
    return verdict if claim.n is None else replace(verdict, claim=f"{verdict.claim}, {place}")


def compared(found: Verdict, sign: str, limit: int, sentence: str) -> Verdict:
    """What a verdict on a number says about its comparison with a limit."""
    low, high = known = found.bounds
    nearest = {"<=": low, "<": low, "==": min(max(limit, low), high), ">=": high, ">": high}[sign]
    holds = _HOLDS[sign]
    if not holds(nearest, limit):
        return replace(found, status="refuted", claim=sentence)
    if all(holds(bound, limit) for bound in known):
        return replace(found, status="proved", claim=sentence)
    reason = f"an estimate is no proof: {found.reason}" if found.status == "estimated" else found.reason
    return replace(found, status="unknown", claim=sentence, reason=reason)


def _fixed(prove: Callable[[Pattern], Verdict], restrict: Callable[[Pattern, int], Pattern]) -> Decide:
    """A property at one n from a proof for all: the pattern is made to have it at every other n."""

    def decide(pattern: Pattern, n: int | None) -> Verdict:
        verdict = prove(pattern)
        if n is None or verdict or (verdict.witness is not None and verdict.witness.n == n):
            return verdict
        try:
            return prove(restrict(pattern, n))
        except PatternError as error:
            return unknown(verdict.claim, error.message)

    return decide


def _only_at(pattern: Pattern, n: int) -> Pattern:
    """The pattern at n, and no pairs at any other."""
    return _joined(pattern, "&", "==", n)


def _all_but_at(pattern: Pattern, n: int) -> Pattern:
    """The pattern at n, and all pairs at any other."""
    return _joined(pattern, "|", "!=", n)


def _joined(pattern: Pattern, sign: str, compare: str, n: int) -> Pattern:
    span = pattern.expression.span
    condition: Expression = Chain((Name("n", span), Integer(n, span)), (compare,), span)
    return Pattern(Chain((pattern.expression, Call("where", (condition,), (), span)), (sign,), span))


def _related(subject: Pattern, other: Pattern, guarantee: str, n: int | None) -> Verdict:
    if guarantee != EQUAL:
        return _fixed(lambda pattern: prove_subset(pattern, other), _only_at)(subject, n)
    whole = prove_equivalent(subject, other)

    def prove(pattern: Pattern) -> Verdict:
        if pattern is subject:
            return whole
        return replace(prove_equivalent(pattern, _only_at(other, n or 1)), claim=whole.claim)

    return _fixed(prove, _only_at)(subject, n)


def universal(pattern: Pattern, n: int | None = None) -> Verdict:
    """Whether the pattern meets the premise of a published theorem on universal approximation, whatever the inputs.

    The theorems are those of `universality.yun` and `universality.big_bird`. Their premises are sufficient, not necessary: a
    refutation says that both are missed, and not that a model with this pattern lacks the power.
    """
    claim = "a published condition for universal approximation is met"
    criteria = yun(pattern, n), big_bird(pattern, n)
    for criterion in criteria:
        if criterion:
            return replace(criterion.verdict, claim=claim, reason=f"{criterion.name}: {criterion.verdict.reason}")
    reason = "; ".join(f"{criterion.name}: {criterion.verdict.reason}" for criterion in criteria)
    if all(criterion.verdict.status == "refuted" for criterion in criteria):
        return replace(criteria[0].verdict, claim=claim, reason=reason)
    return unknown(claim, reason)


def hops(pattern: Pattern, n: int | None = None) -> Verdict:
    """The hop diameter (`reach.hop_diameter`), for the runtime inputs and scores for which it is largest."""
    return _hops(pattern, n)


def coverage(pattern: Pattern, n: int | None = None) -> Verdict:
    """The hop diameter from the layer of the schedule from which it is largest, for the inputs for which it is."""
    seconds = seconds_of_a_start(pattern)
    return over_starts(pattern, n, lambda start: _hops(pattern, n, start_layer=start, limit_seconds=seconds))


def _hops(pattern: Pattern, n: int | None, **options: Any) -> Verdict:
    """It lies between the number for all pairs that some inputs let through and that for the pairs which none prevent."""
    if not pattern.inputs:
        return hop_diameter(pattern, n, **options)
    worst, best = (hop_diameter(pattern, n, mode=mode, **options) for mode in ("must", "may"))
    low, high = best.bounds[0], worst.bounds[1]
    if low == high:
        return worst
    reason = f"runtime inputs decide; at worst, {worst.reason}; at best, {best.reason}"
    return bounded(worst.claim, int(low), high, reason)


PROPERTIES: Mapping[str, Decide] = MappingProxyType(
    {
        "causal": _fixed(prove_causal, _only_at),
        "nonempty": _fixed(prove_nonempty, _all_but_at),
        "self_loops": _fixed(prove_self_loops, _all_but_at),
        "universal": universal,
        "hub": hub,
        "hamiltonian": hamiltonian_path,
    }
)
"""What is true or false of a pattern, whatever the runtime inputs, draws and scores."""

MEASURES: Mapping[str, tuple[Decide, str]] = MappingProxyType(
    {"hops": (hops, "the hop diameter"), "coverage": (coverage, "the hop diameter from any starting layer")}
)
"""Numbers, each with its name in words."""
