"""The answer to a question about a pattern: proved, refuted with a witness, bounded, estimated, or unknown with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from patternc.analysis.certificate import Certificate
from patternc.analysis.members import Member, members
from patternc.pattern import Pattern
from patternc.relation import BudgetExceeded, Pair

Status: TypeAlias = Literal["proved", "refuted", "bounded", "estimated", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """What is known about a claim: for every sequence length n, layer and head, unless the claim names them.

    Attributes:
        status: proved or refuted, exactly; bounded, a number lies surely between two; estimated, not sure; unknown.
        claim: the statement in question, as a sentence.
        reason: the certificate of a proof, the story of a refutation, or what stands in the way of an answer.
        witness: a pair that refutes the claim, or for which a number is reached; for a query without keys, it and key 0.
        where: the layers and heads that the verdict speaks of ("" where all are alike).
        value: the number asked for, if it is known; infinity where there is none.
        lower: the number asked for is not below it.
        upper: the number asked for is not above it.
        certificate: what `patternc.analysis.verify` checks the verdict with.
    """

    status: Status
    claim: str
    reason: str
    witness: Pair | None = None
    where: str = ""
    value: float | int | None = None
    lower: int | None = None
    upper: int | float | None = None
    certificate: Certificate | None = None

    def __bool__(self) -> bool:
        return self.status == "proved"

    @property
    def bounds(self) -> tuple[float, float]:
        """Two numbers between which the one asked for surely lies; an estimate says nothing for sure."""
        if self.status == "estimated":
            return 0, math.inf
        if self.status in ("proved", "refuted") and self.value is not None:
            return self.value, self.value
        return self.lower or 0, math.inf if self.upper is None else self.upper

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.status}: {self.claim}{place}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain values, for machines; numbers and certificates only where there are some."""
        witness = None if self.witness is None else {"n": self.witness.n, "q": self.witness.q, "k": self.witness.k}
        words = {"claim": self.claim, "status": self.status, "reason": self.reason, "where": self.where}
        numbers = {"value": self.value, "lower": self.lower, "upper": self.upper}
        known = {name: "infinity" if x == math.inf else x for name, x in numbers.items() if x is not None}
        plain: dict[str, Any] = {**words, "witness": witness, **known}
        return plain if self.certificate is None else {**plain, "certificate": self.certificate.to_json()}


def proved(claim: str, reason: str, *, value: float | int | None = None, certificate: Certificate | None = None) -> Verdict:
    """A verdict that surely holds; of a number, that it is exact."""
    return Verdict("proved", claim, reason, value=value, certificate=certificate)


def refuted(
    claim: str,
    pair: Pair | None,
    words: Callable[[Pair], str],
    setting: str = "",
    *,
    value: float | int | None = None,
    certificate: Certificate | None = None,
) -> Verdict:
    """A refutation by a pair of a set that is not empty, under the runtime inputs that ``setting`` tells."""
    if pair is None:
        raise AssertionError("a set that is not empty has a sample")
    reason = f"{words(pair)}{f', with {setting}' if setting else ''}"
    return Verdict("refuted", claim, reason, pair, value=value, certificate=certificate)


def bounded(
    claim: str, lower: int | None, upper: int | float | None, reason: str, certificate: Certificate | None = None
) -> Verdict:
    """A number that surely lies between two; None is a side without a bound."""
    return Verdict("bounded", claim, reason, lower=lower, upper=upper, certificate=certificate)


def estimated(claim: str, value: float | int, reason: str) -> Verdict:
    """A number that is not sure; the reason says what was tried, and the seed."""
    return Verdict("estimated", claim, reason, value=value)


def unknown(claim: str, reason: str) -> Verdict:
    """A verdict that leaves the question open."""
    return Verdict("unknown", claim, reason)


def contradictory(claim: str, name: str) -> Verdict:
    """The verdict where no runtime inputs suit the pattern at all."""
    return unknown(claim, f"the runtime input '{name}' is used in two forms that no one value has")


def for_every_member(pattern: Pattern, claim: str, decide: Callable[[Member], Verdict]) -> Verdict:
    """Ask the same of every distinct layer and head of a pattern: the worst answer counts, and says where it holds."""
    return worst(claim, (_asked(member, claim, decide) for member in members(pattern)))


def worst(claim: str, verdicts: Iterable[Verdict]) -> Verdict:
    """The first refutation, else the first that is not proved, else the first proof of several."""
    best: Verdict | None = None
    for verdict in verdicts:
        if verdict.status == "refuted":
            return verdict
        if best is None or (best.status == "proved" and verdict.status != "proved"):
            best = verdict
    if best is None:
        raise AssertionError(f"nothing was asked about '{claim}'")
    return best


def _asked(member: Member, claim: str, decide: Callable[[Member], Verdict]) -> Verdict:
    try:
        verdict = decide(member)
    except BudgetExceeded:
        verdict = Verdict("unknown", claim, "the exact set computation is over its operation budget")
    return verdict if verdict.status == "proved" else replace(verdict, where=member.label)
