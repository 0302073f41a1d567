"""How many layers of a schedule connect everything, from whichever layer one starts to count."""

from __future__ import annotations

import math
from dataclasses import replace

from patternc.analysis.reach import hop_diameter
from patternc.analysis.steps import Mode, Target
from patternc.analysis.verdict import Verdict, unknown
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
    settled = all(verdict.value is not None for verdict in found)
    never = any(verdict.status == "refuted" for verdict in found)
    worst = max(range(len(found)), key=lambda i: _rank(found[i], settled or never))
    where = f"from layer {worst} on" if pattern.layers > 1 else ""
    return replace(found[worst], claim=claim, where=where)


def _rank(verdict: Verdict, settled: bool) -> tuple[bool, float]:
    """The largest number is the worst; before all numbers are known, a verdict without one is worse still."""
    number = verdict.value if verdict.value is not None else verdict.lower or 0
    certain = verdict.status == "refuted" and number == math.inf
    return (certain or (not settled and verdict.value is None), number)
