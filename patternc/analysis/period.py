"""The layers of one period, heads united: which pairs each is sure to hold, which it may hold, and small runs of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np

from patternc.analysis.arguments import check_arguments
from patternc.analysis.search import SIZES, Found, Mask, search
from patternc.analysis.steps import Step, steps
from patternc.dense import Evaluator
from patternc.pattern import MAX_WALK, Pattern
from patternc.relation import BudgetExceeded, Pair, Relation, everything
from patternc.terms import Random

MAX_MEMBERS = 64
MAX_RUN = 1_024
_PIECE = 1 << 15  # queries looked at together, each with up to 256 draws

Layers: TypeAlias = list[Mask]
"""The mask of each layer, bottom first, at one n."""
Test: TypeAlias = Callable[[Layers], "tuple[int, int] | None"]
"""The query and key that settle the question for the masks of a run, or None."""


@dataclass(frozen=True, eq=False)
class Period:
    """The distinct layers of a pattern: pairs that each holds whatever the inputs, draws and scores, and those it may hold."""

    sure: tuple[Relation, ...]
    possible: tuple[Relation, ...]


def period(pattern: Pattern, n: int | None = None, *, residual: bool) -> Period:
    """The layers, for every n or at one.

    Raises:
        BudgetExceeded: the exact set computation is over its budget.
        ValueError: n is not a sequence length.
    """
    check_arguments(n)
    must, may = (_distinct(steps(pattern, mode, residual)) for mode in ("must", "may"))
    return Period(
        tuple(at(step.relation, n) for step in must),
        tuple(at(step.possible, n) for step in may),
    )


def at(relation: Relation, n: int | None) -> Relation:
    """The pairs of a relation at one n; all of them where n is None."""
    return relation if n is None else relation.at(n)


def space(n: int | None) -> Relation:
    """All pairs, for every n or at one."""
    return at(everything(), n)


def small_run(pattern: Pattern, test: Test, n: int | None = None) -> Found | None:
    """The first of the small concrete runs, or of those at one n, that settles a question; None where none does.

    Runs are real: they use the pattern's own draws, and the same runtime inputs in every layer and head.
    """
    members = places(pattern)
    if len(members) > MAX_MEMBERS or (n is not None and n > MAX_RUN):
        return None
    if not pattern.inputs:
        return next((found for size in (SIZES if n is None else (n,)) if (found := _run(pattern, members, test, size))), None)
    meanings = [pattern.meaning(layer=layer, head=head) for layer, head in members]
    if any(head for _, head in members) and any(isinstance(c, Random) for m in meanings for t in m.picks for c in t.choices):
        return None  # a search runs all meanings as one head, and heads draw differently

    return search(meanings, 0, lambda *masks: test(_united(members, masks)), n)


def _run(pattern: Pattern, members: list[tuple[int, int]], test: Test, n: int) -> Found | None:
    at = test(_united(members, [pattern.mask(n, head, layer=layer) for layer, head in members]))
    return None if at is None else Found(Pair(n, *at), "")


def _united(members: list[tuple[int, int]], masks: Sequence[Mask]) -> Layers:
    layers: dict[int, Mask] = {}
    for (layer, _), mask in zip(members, masks, strict=True):
        layers[layer] = layers[layer] | mask if layer in layers else mask
    return list(layers.values())


def places(pattern: Pattern) -> list[tuple[int, int]]:
    """The layers and heads of one period."""
    return [(layer, head) for layer in range(pattern.layers) for head in range(pattern.layer(layer).heads)]


def unread(pattern: Pattern, n: int, back: int, members: Sequence[tuple[int, int]]) -> int | None:
    """The first query q >= ``back`` that reads key q - back in none of the members; of patterns without runtime inputs.

    Raises:
        BudgetExceeded: n is too large to look at every query.
    """
    if n > MAX_WALK:
        raise BudgetExceeded(f"draws decide it, and n = {n:,} is over {MAX_WALK:,}, too large to look at each of them")
    held = [Evaluator(pattern.meaning(layer=layer, head=head), n, head, {}).holds for layer, head in members]
    for start in range(back, n, _PIECE):
        rows = np.arange(start, min(n, start + _PIECE), dtype=np.int64)
        for reads in held:
            rows = rows[~reads(rows, rows - back)]
        if len(rows):
            return int(rows[0])
    return None


def merged(layers: Layers) -> Mask:
    """The pairs of any layer."""
    return reduce(np.logical_or, layers)


def _distinct(found: tuple[Step, ...]) -> tuple[Step, ...]:
    return tuple(dict.fromkeys(found))
