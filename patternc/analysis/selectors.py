"""What selections (`topk`) let through when their scores are not known: at best, at worst, and for random scores.

At best a query reads any of its candidates, since some scores favour it. At worst it reads what no scores can prevent, which
`patternc.analysis.attractor` gives exactly: scores are chosen anew for every layer, head and query, to keep this query from
this key. Random scores lie between the two; what they give is an estimate and says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from patternc.analysis.allowance import Allowance, Unaffordable
from patternc.analysis.bitsets import Bools
from patternc.analysis.edges import Inputs, check_dense
from patternc.analysis.numeric import numeric_diameter
from patternc.analysis.stack import BYTES, SECONDS
from patternc.analysis.tracing import connected
from patternc.analysis.verdict import Verdict, estimated, unknown
from patternc.pattern import Pattern
from patternc.terms import TopK

MAX_SAMPLES = 1_000


def may(pattern: Pattern, layers: int, n: int, **options: Any) -> Bools:
    """The pairs (q, k) that so many layers connect for some scores: a dense mask.

    Args:
        options: ``residual``, ``start_layer``, limits and runtime inputs, as for `numeric_diameter`.

    Raises:
        ValueError: n, ``layers`` or the starting layer is out of range, or an input has the wrong shape.
        Unaffordable: it takes longer or needs more memory than allowed.
        BudgetExceeded: the exact set computation is over its budget.
    """
    return connected(pattern, layers, n, mode="may", **options)


def must(pattern: Pattern, layers: int, n: int, **options: Any) -> Bools:
    """The pairs (q, k) that so many layers connect for all finite scores: a dense mask; otherwise like `may`.

    Selections joined with each other in blocks of different sizes are not followed: then some such pairs may be missing.
    """
    return connected(pattern, layers, n, mode="must", **options)


def sampled(pattern: Pattern, layers: int, n: int, *, seed: int = 0, **options: Any) -> Bools:
    """The pairs (q, k) that so many layers connect for one set of random scores, the same in every layer; like `may`."""
    scores = random_scores(pattern, n, np.random.default_rng(seed), options)
    return connected(pattern, layers, n, mode="may", **{**options, **scores})


def estimate(
    pattern: Pattern,
    n: int,
    *,
    seed: int = 0,
    samples: int = 8,
    limit_seconds: float = SECONDS,
    limit_bytes: int = BYTES,
    **options: Any,
) -> Verdict:
    """The hop diameter for random scores, independent and uniform: the largest of some samples, as an estimated verdict.

    Infinite if any sample is. Each sample uses the same scores in every layer.

    Args:
        options: ``target``, ``residual``, ``start_layer`` and runtime inputs, as for `numeric_diameter`.

    Raises:
        ValueError: n, the starting layer or ``samples`` (1 to 1,000) is out of range, or an input has the wrong shape.
    """
    if not 1 <= samples <= MAX_SAMPLES:
        raise ValueError(f"samples must be from 1 to {MAX_SAMPLES:,}, got {samples}")
    claim = f"layers connect every query with every key that it is to reach at n = {n:,}, for random scores"
    allowance = Allowance(limit_seconds, limit_bytes)
    generator = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(samples):
        try:
            allowance.check()
            scores = random_scores(pattern, n, generator, options, limit_bytes)
        except Unaffordable as error:
            return unknown(claim, f"{error}, after {len(found)} of {samples} samples")
        verdict = numeric_diameter(pattern, n, limit_seconds=allowance.left, limit_bytes=limit_bytes, **{**options, **scores})
        if verdict.value is None:
            return unknown(claim, f"{verdict.reason}, after {len(found)} of {samples} samples")
        found.append(verdict.value)
    shown = ", ".join(f"{count:g}" for count in found)
    return estimated(
        claim, max(found), f"{samples} samples with seed {seed} need {shown} layers; others may need more or fewer"
    )


def random_scores(
    pattern: Pattern, n: int, generator: np.random.Generator, given: Inputs, limit_bytes: int = BYTES
) -> dict[str, Any]:
    """Uniform scores, one for each head, query and key, for every selector whose scores are not given.

    Raises:
        Unaffordable: they are too large.
    """
    layers = [pattern.layer(index) for index in range(pattern.layers)]
    uses = [use for one in dict.fromkeys(layers) for head in range(one.heads) for use in one.meaning(head=head).inputs]
    names = sorted({use.name for use in uses if isinstance(use, TopK)} - set(given))
    heads = max(one.heads for one in layers)
    if names:
        check_dense(n, "scores are dense", Allowance(SECONDS, limit_bytes), 4 * heads * len(names))
    return {name: generator.random((heads, n, n), np.float32) for name in names}
