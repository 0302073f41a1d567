"""How many layers of a schedule connect everything, from whichever layer one starts to count."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from patternc.analysis.reach import hop_diameter
from patternc.analysis.stack import SECONDS
from patternc.analysis.verdict import Verdict, bounded, unknown
from patternc.pattern import Pattern

MAX_PERIOD = 256


def coverage(pattern: Pattern, n: int | None = None, **options: Any) -> Verdict:
    """The number of layers that connects every pair of the target wherever in the schedule they start, as ``value``.

    That is the hop diameter from the starting layer for which it is largest; ``where`` names that layer. Schedules of one
    repeated layer have one starting layer. ``options`` are those of `reach.hop_diameter` but ``start_layer``.
    """
    limits = {"limit_seconds": seconds_of_a_start(pattern)}
    return over_starts(pattern, n, lambda start: hop_diameter(pattern, n, start_layer=start, **{**limits, **options}))


def seconds_of_a_start(pattern: Pattern) -> float:
    """What one starting layer may take, so that all of them take about as long as one hop diameter."""
    return SECONDS / pattern.layers


def over_starts(pattern: Pattern, n: int | None, depth: Callable[[int], Verdict]) -> Verdict:
    """The largest of what ``depth`` finds for each starting layer, as far as that is known."""
    claim = f"any so many consecutive layers connect all that they are to{' for every n' if n is None else f' at n = {n:,}'}"
    if pattern.layers > MAX_PERIOD:
        return unknown(claim, f"the layers repeat only after {pattern.layers:,}, over {MAX_PERIOD}")
    found = [depth(start) for start in range(pattern.layers)]
    low, high = max(one.bounds[0] for one in found), max(one.bounds[1] for one in found)
    worst = max(range(len(found)), key=lambda start: found[start].bounds[::-1])
    if found[worst].bounds == (low, high):
        return replace(found[worst], claim=claim, where=f"from layer {worst} on" if pattern.layers > 1 else "")
    if high == math.inf:
        return replace(unknown(claim, f"from some layer on it takes {low} layers or more"), lower=int(low))
    return bounded(claim, int(low), high, "of the starting layers, the largest lower and the largest upper bound count")
