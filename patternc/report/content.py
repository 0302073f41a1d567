"""What a report on a pattern shows: numbers at one n, pictures and reach at a smaller one, guarantees and plans."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from patternc.analysis.degrees import Degrees, degrees
from patternc.analysis.members import Member, attentions, distinct_layers, members
from patternc.analysis.receptive_field import field_sizes
from patternc.pattern import Pattern
from patternc.relation import BudgetExceeded, budget
from patternc.report.explain import Explanation, explain
from patternc.report.guarantees import Known, known
from patternc.report.picture import Picture, natural_length, picture
from patternc.report.reached import MAX_WORK, Distances, Layered, distances, layered

MAX_LAYERS = 128
"""How far reach is followed."""

_SMALL, _LARGE = 128, 512  # the length of the pictures, unless it is given
_MEMBERS, _DISTINCT = 12, 16
_COUNTED = 1 << 20  # positions whose degrees are counted
_FIELD_BUDGET = 2_000_000


@dataclass(frozen=True)
class Growth:
    """The sizes of receptive fields through 0, 1, ... layers at n; the mean only where every query was looked at."""

    n: int
    largest: tuple[int, ...]
    mean: tuple[float, ...] = ()


@dataclass(frozen=True)
class Content:
    """All that a report shows.

    Attributes:
        n: the sequence length of the numbers.
        drawn: the sequence length of the pictures, and of reach in them.
        plans: of each distinct layer, which it is and the kernel's plan.
    """

    pattern: Pattern
    n: int
    drawn: int
    explanation: Explanation
    guarantees: tuple[Known, ...]
    members: tuple[Member, ...]
    layers: Layered
    plans: tuple[tuple[str, str], ...]

    @cached_property
    def reach(self) -> dict[str, Distances]:
        """Distances in the pictures: along pairs that may be read and, where that differs, along those that always are."""
        modes = {"may": self.layers.may} if self.layers.is_settled else {"may": self.layers.may, "must": self.layers.must}
        most = max(1, min(MAX_LAYERS, MAX_WORK // self.drawn**3))
        return {mode: distances(steps, most) for mode, steps in modes.items()}

    @cached_property
    def is_causal(self) -> bool:
        """Whether no picture has a pair after its query."""
        return not any(np.triu(mask, 1).any() for mask in self.layers.may)

    @property
    def target(self) -> int:
        """How many pairs layers are to connect in the pictures."""
        return self.drawn * (self.drawn + 1) // 2 if self.is_causal else self.drawn**2

    @property
    def cuts(self) -> bool:
        """Whether some pair is surely never connected."""
        return any(found.closed and int((found.of >= 0).sum()) < self.target for found in self.reach.values())

    @cached_property
    def pictures(self) -> tuple[Picture, ...]:
        """Of each layer and head that differ, the first few."""
        return tuple(picture(member.pattern, self.drawn, head=member.head) for member in self.members[:_MEMBERS])

    @cached_property
    def growth(self) -> Growth:
        """At ``n`` where relations tell, else counted in the pictures."""
        found = self.reach["may"]
        hops = next((one.verdict.value for one in self.guarantees if (one.guarantee, one.n) == ("hops", self.n)), None)
        layers = found.layers if hops is None or hops == math.inf else min(int(hops), MAX_LAYERS)
        try:
            with budget(_FIELD_BUDGET):
                return Growth(self.n, field_sizes(self.pattern, layers, self.n))
        except (BudgetExceeded, ValueError):
            counts = np.stack([found.within(layer).sum(1) for layer in range(found.layers + 1)])
            return Growth(self.drawn, tuple(counts.max(1).tolist()), tuple(counts.mean(1).tolist()))

    @cached_property
    def degrees(self) -> tuple[Degrees, ...]:
        """Of each picture: at ``n`` (or the most that is counted); with runtime inputs, of what may be read in the picture."""
        return tuple(self._degrees(*both) for both in zip(self.members, self.pictures, strict=False))

    def _degrees(self, member: Member, drawn: Picture) -> Degrees:
        if not member.pattern.inputs:
            try:
                return degrees(member.pattern, min(self.n, _COUNTED), member.head)
            except (BudgetExceeded, ValueError):  # they are counted in the picture
                pass
        may = drawn.codes() != 0
        return Degrees(self.drawn, may.sum(1).astype(np.int64), may.sum(0).astype(np.int64))

    def to_json(self) -> dict[str, Any]:
        """The content as plain values, for machines."""
        reach = {
            mode: {"layers": found.layers, "closed": found.closed, "pairs": found.pairs} for mode, found in self.reach.items()
        }
        counted = zip(self.members, self.degrees, strict=False)
        plain = self.explanation.to_json()
        del plain["verdicts"]
        return {
            **plain,
            "n": self.n,
            "guarantees": [one.to_json() for one in self.guarantees],
            "degrees": [{"where": member.label, **found.to_json()} for member, found in counted],
            "receptive_field": {"n": self.growth.n, "largest": list(self.growth.largest)},
            "picture": {"n": self.drawn, "target": self.target, "reach": reach},
        }


def content(pattern: Pattern, *, n: int = 4096, drawn: int | None = None, head_dim: int = 128) -> Content:
    """The report on a pattern, with numbers at ``n`` and pictures at ``drawn`` (chosen by the sizes in the pattern).

    Raises:
        ValueError: ``drawn`` is too large, or too many layers differ to be drawn.
    """
    drawn = min(max(natural_length(pattern), _SMALL), _LARGE) if drawn is None else drawn
    alike = distinct_layers(pattern)
    if len(alike) > _DISTINCT:
        raise ValueError(f"a report shows at most {_DISTINCT} different layers, and there are {len(alike):,}; choose one")
    layers = layered(pattern, drawn)  # refuses what cannot be drawn before anything else takes time
    return Content(
        pattern,
        n,
        drawn,
        explain(pattern, n=n, head_dim=head_dim),
        known(pattern, (drawn, n)),
        tuple(members(pattern)),
        layers,
        tuple((where, _plan(one)) for one, where in attentions(pattern)),
    )


def _plan(one: Pattern) -> str:
    from patternc.report.choices import choices
    from patternc.runtime.compile import DEFAULT_REQUEST, usual

    return str(choices(one, usual(one), DEFAULT_REQUEST).chosen.plan)
