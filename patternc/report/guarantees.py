"""The guarantees of a pattern in one list: what holds for every n, and what is known at some."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from patternc.analysis.guarantees import MEASURES, PROPERTIES
from patternc.analysis.verdict import Verdict
from patternc.pattern import Pattern

ORDER = ("causal", "nonempty", "self_loops", "hops", "coverage", "hub", "hamiltonian", "universal")


@dataclass(frozen=True)
class Known:
    """A verdict under the name of its guarantee; ``n`` is None where it speaks of every n."""

    guarantee: str
    n: int | None
    verdict: Verdict

    @property
    def headline(self) -> str:
        """The claim, or of a measure its number, with the lengths that it is about."""
        place = "for every n" if self.n is None else f"at n = {self.n:,}"
        if self.guarantee not in MEASURES:
            return f"{self.verdict.claim}, {place}"
        return f"{MEASURES[self.guarantee][1]}, {place}: {number(self.verdict)}"

    def to_json(self) -> dict[str, Any]:
        return {"guarantee": self.guarantee, "n": self.n, **self.verdict.to_json()}


def known(pattern: Pattern, lengths: Sequence[int] = ()) -> tuple[Known, ...]:
    """What is known of a pattern: its properties and measures for every n, and its measures at some lengths.

    What differs by the starting layer is left out where all layers are alike.
    """
    found = []
    for name in ORDER:
        if name in PROPERTIES:
            found.append(Known(name, None, PROPERTIES[name](pattern, None)))
        elif name == "hops" or pattern.layers > 1:
            measure = MEASURES[name][0]
            found += [Known(name, n, measure(pattern, n)) for n in (None, *dict.fromkeys(lengths))]
    return tuple(found)


def number(verdict: Verdict) -> str:
    """What a verdict on a number says of it, in short."""
    match verdict:
        case Verdict(status="proved" | "refuted", value=float() | int() as value):
            return shown(value)
        case Verdict(status="estimated", value=float() | int() as value):
            return f"about {shown(value)}"
        case Verdict(status="bounded", lower=low, upper=None) if low:
            return f"at least {low:,}"
        case Verdict(status="bounded", lower=low, upper=float() | int() as high):
            return f"{low or 0:,} to {shown(high)}" if high != math.inf else f"at least {low or 0:,}"
    return "unknown"


def shown(value: float) -> str:
    """A number of layers, in words."""
    return "infinite" if value == math.inf else f"{value:,}"
