"""The answer to a question about a pattern: proved, refuted with a witness, or unknown with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from patternc.analysis.members import Member, members
from patternc.pattern import Pattern
from patternc.relation import BudgetExceeded, Pair

Status: TypeAlias = Literal["proved", "refuted", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """What is known about a claim, for every sequence length n, layer and head.

    Attributes:
        claim: the statement in question, as a sentence.
        reason: the certificate of a proof, the story of a refutation, or what stands in the way of an answer.
        witness: a pair that refutes the claim; for a query without keys, the query and key 0.
        where: the layers and heads that a refuted or unknown verdict speaks of ("" where all are alike).
    """

    status: Status
    claim: str
    reason: str
    witness: Pair | None = None
    where: str = ""

    def __bool__(self) -> bool:
        return self.status == "proved"

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.status}: {self.claim}{place}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain values, for machines."""
        witness = None if self.witness is None else {"n": self.witness.n, "q": self.witness.q, "k": self.witness.k}
        return {"claim": self.claim, "status": self.status, "reason": self.reason, "where": self.where, "witness": witness}


def proved(claim: str, certificate: str) -> Verdict:
    """A verdict that holds for every n."""
    return Verdict("proved", claim, certificate)


def refuted(claim: str, pair: Pair | None, words: Callable[[Pair], str], setting: str = "") -> Verdict:
    """A refutation by a pair of a set that is not empty, under the runtime inputs that ``setting`` tells."""
    if pair is None:
        raise AssertionError("a set that is not empty has a sample")
    return Verdict("refuted", claim, f"{words(pair)}{f', with {setting}' if setting else ''}", pair)


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
    """The first refutation, else the first unknown, else the first proof of several."""
    best: Verdict | None = None
    for verdict in verdicts:
        if verdict.status == "refuted":
            return verdict
        if best is None or (verdict.status == "unknown" and best.status == "proved"):
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
