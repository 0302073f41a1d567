"""How many layers it takes to cover a target, by doubling and binary lifting on exact relations.

Layers repeat with a period, and every layer lets each position stay, so what they connect only grows. Whole periods are
doubled until they cover the target or stop growing; the last period before that is then refined layer by layer, with runs of
equal layers doubled in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from patternc.analysis.held import diagonal
from patternc.relation import BudgetExceeded, Relation, budget

COVER_BUDGET = 1_000_000
MAX_DOUBLINGS = 32
MAX_LAYERS = 256
MAX_CYCLE = 8


@dataclass(frozen=True, eq=False)
class Power:
    """The pairs that ``layers`` consecutive layers from ``first`` up connect; the composition of ``parts`` (lower, upper)."""

    relation: Relation
    first: int
    layers: int
    parts: tuple[Power, ...] = ()


@dataclass(frozen=True, eq=False)
class Cover:
    """The least number of layers that covers a target: infinite where none does, None where that is not known.

    Attributes:
        covering: what these layers connect; if infinite, what any number of layers does.
        below: what the most layers connect that are known not to cover the target (None: no layer at all does cover it).
        missing: the pairs of the target that ``below`` (if infinite, any number of layers) leaves out.
    """

    hops: float | int | None
    covering: Power | None
    below: Power | None
    missing: Relation | None

    @property
    def lower(self) -> int:
        """At least so many layers are needed."""
        return 0 if self.missing is None else 1 + (0 if self.below is None else self.below.layers)


def cover(
    layers: Sequence[Relation], target: Relation, *, doublings: int = MAX_DOUBLINGS, operations: int = COVER_BUDGET
) -> Cover:
    """The fewest layers, bottom first and repeating, that connect every pair of ``target``.

    Every layer must hold the diagonal. Gives up, with what is known by then, over so many operations or doublings.
    """
    search = _Search(target)
    try:
        with budget(operations):
            return search.run(layers, doublings)
    except BudgetExceeded:
        return Cover(None, None, search.below, search.missing)


def walk(layers: Sequence[Relation], target: Relation) -> Cover:
    """The fewest layers whose walks, of exactly one step a layer, connect every pair of ``target``.

    Walks do not grow with the number of layers, so every number up to `MAX_LAYERS` is tried; infinite where what whole
    periods connect is part of what fewer periods did: then it stays so, since composition is monotone.
    """
    done = Power(diagonal(), 0, 0)
    missing: Relation | None = None
    try:
        with budget(COVER_BUDGET):
            seen: list[Relation] = []
            for number in range(MAX_LAYERS + 1):
                before, missing = missing, target - done.relation
                if missing.is_empty():
                    return Cover(done.layers, done, None, before)
                if number % len(layers) == 0:
                    if any(done.relation.is_subset(earlier) for earlier in seen[-MAX_CYCLE:]):
                        return Cover(math.inf, None, None, missing)
                    seen.append(done.relation)
                step = Power(layers[number % len(layers)], number % len(layers), 1)
                done = step if number == 0 else _compose(step, done)
    except BudgetExceeded:
        pass
    return Cover(None, None, done if missing is not None else None, missing)


class _Search:
    """One search; remembers the most layers that were found not to cover the target."""

    def __init__(self, target: Relation):
        self._target = target
        self.below: Power | None = None
        self.missing: Relation | None = None

    def run(self, layers: Sequence[Relation], doublings: int) -> Cover:
        rest = self._target - diagonal()
        if rest.is_empty():
            return Cover(0, None, None, None)
        self.missing = rest
        base: Power | None = None
        for first, relation, count in _runs(layers):
            found, base = self._climb(base, relation, first, count)
            if found is not None:
                return self._found(found)
        assert base is not None
        powers = [base]
        for _ in range(doublings):
            after = _compose(powers[-1], powers[-1])
            if self._covers(after):
                break
            if after.relation.is_subset(powers[-1].relation):
                return Cover(math.inf, powers[-1], self.below, self.missing)
            powers.append(after)
        else:
            return Cover(None, None, self.below, self.missing)
        below = self._lift(powers[-1], powers[:-1])
        for first, relation, count in _runs(layers):
            found, below = self._climb(below, relation, first, count)
            if found is not None:
                return self._found(found)
        raise AssertionError("one more period covers the target")

    def _found(self, power: Power) -> Cover:
        return Cover(power.layers, power, self.below, self.missing)

    def _covers(self, power: Power) -> bool:
        missing = self._target - power.relation
        if missing.is_empty():
            return True
        if self.below is None or power.layers > self.below.layers:
            self.below, self.missing = power, missing
        return False

    def _climb(self, below: Power | None, relation: Relation, first: int, count: int) -> tuple[Power | None, Power]:
        """Add ``count`` equal layers: the fewest of them that cover the target, if some do, else all."""
        powers = [Power(relation, first, 1)]
        while 2 * powers[-1].layers <= count:
            powers.append(_compose(powers[-1], powers[-1]))
        taken = 0
        for power in reversed(powers):
            while taken + power.layers <= count:
                above = power if below is None else _compose(power, below)
                if self._covers(above):
                    if power.layers == 1:
                        return above, above
                    break
                below, taken = above, taken + power.layers
        assert below is not None
        return None, below

    def _lift(self, below: Power, powers: Sequence[Power]) -> Power:
        """The most whole periods that do not cover the target, given that twice ``below`` do."""
        for power in reversed(powers):
            above = _compose(power, below)
            if not self._covers(above):
                below = above
        return below


def _compose(upper: Power, lower: Power) -> Power:
    return Power(upper.relation.then(lower.relation), lower.first, lower.layers + upper.layers, (lower, upper))


def _runs(layers: Sequence[Relation]) -> list[tuple[int, Relation, int]]:
    """The layers with equal neighbours joined: the first layer's index, its relation, how many."""
    runs: list[tuple[int, Relation, int]] = []
    for _, group in groupby(enumerate(layers), key=lambda item: id(item[1])):
        members = list(group)
        runs.append((members[0][0], members[0][1], len(members)))
    return runs
