"""How many layers of a schedule connect everything, from whichever layer one starts to count."""

from __future__ import annotations

import math
from dataclasses import replace

from patternc.analysis.reach import hop_diameter
from patternc.analysis.steps import Mode, Target
from patternc.analysis.verdict import Verdict, bounded, unknown
from patternc.pattern import Pattern

MAX_PERIOD = 256


def coverage(pattern: Pattern, n: int | None = None, *, target: Target = None, mode: Mode = "may") -> Verdict:
    """The number of layers that connects every pair of the target wherever in the schedule they start, as ``value``.

    That is the hop diameter from the starting layer for which it is largest; ``where`` names that layer. Schedules of one
    repeated layer have one starting layer.
    """
    claim = f"any so many consecutive layers connect all that they are to{' for every n' if n is None else f' at n = {n:,}'}"
    if pattern.layers > MAX_PERIOD:
        return unknown(claim, f"the layers repeat only after {pattern.layers}, over {MAX_PERIOD}")
    found = [hop_diameter(pattern, n, target=target, mode=mode, start_layer=start) for start in range(pattern.layers)]
    never = any(verdict.status == "refuted" for verdict in found)
    if not never and any(verdict.value is None for verdict in found):
        lowest, highest = zip(*map(_bounds, found), strict=True)
        return _between(claim, max(lowest), max(highest))
    depths = [-1 if verdict.value is None else verdict.value for verdict in found]
    worst = depths.index(max(depths))
    where = f"from layer {worst} on" if pattern.layers > 1 else ""
    return replace(found[worst], claim=claim, where=where)


def _bounds(verdict: Verdict) -> tuple[int, float]:
    """What is known of one start: between which numbers of layers its depth lies."""
    if verdict.value is not None:
        return int(verdict.value), verdict.value
    return verdict.lower or 0, math.inf if verdict.upper is None else verdict.upper


def _between(claim: str, lowest: int, highest: float) -> Verdict:
    if highest == math.inf:
        return replace(unknown(claim, f"from some layer on it takes {lowest} layers or more"), lower=lowest)
    return bounded(claim, lowest, highest, "of the starting layers, the largest lower and the largest upper bound count")
