"""How well connected is a pattern as a graph: the spectral gap of its pairs taken in both directions.

With A the 0/1 matrix of R | R^-1 (heads united, each pair once) and D the diagonal of its row sums, the *gap* is 1 - l2 for
the second largest eigenvalue l2 of D^-1/2 A D^-1/2. It is 0 where the graph falls apart, and says how fast a random walk
mixes where it does not. The largest eigenvalue is 1, with the vector D^1/2 1, which is projected out. A product with A takes
time and memory that grow with n and not with the number of pairs: runs are differences of prefix sums, and a stride's runs
are differences of prefix sums along the stride.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from math import log, pi
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.analysis.degrees import drawn_pairs
from patternc.analysis.held import causal_pairs, union
from patternc.analysis.period import period
from patternc.analysis.verdict import Verdict, unknown
from patternc.dense import Evaluator
from patternc.pattern import MAX_WALK, Pattern
from patternc.relation import BudgetExceeded, Loop, Relation, budget, everything
from patternc.scalar import K, Q, conjunction, evaluate, op

MAX_EXACT = 512
MAX_STEPS = 1_000
MAX_KEPT = 1 << 25
SHORTEST = 256
FAILURE = 1e-3
"""How likely it is that the gap is below the interval."""

Vector: TypeAlias = npt.NDArray[np.float64]
Positions: TypeAlias = npt.NDArray[np.int64]


def spectral_gap(
    pattern: Pattern,
    n: int,
    *,
    steps: int = 100,
    seed: int = 0,
    layer: int | None = None,
    symmetrise: bool = False,
    **inputs: Any,
) -> Verdict:
    """The spectral gap at n, as an interval from ``lower`` to ``upper``.

    Up to n = 512 all eigenvalues are computed ("bounded", by the rounding of floating point numbers). Beyond, ``steps`` steps
    of Lanczos' method from a random vector give an upper bound that is sure but for rounding, and a lower one that fails with
    probability 0.001 over the seeds ("estimated"; Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992). The
    interval is wide against a gap that is small: a window alone has about pi^2 b (b + 1) / (6 n^2) with b neighbours on
    either side, which is then the ``value`` instead.

    Args:
        layer: which layer, where they differ.
        symmetrise: take a causal pattern's pairs in both directions. Without it, a causal pattern is refused: its own walks
            all end at position 0, and the gap says nothing about them.
        inputs: the runtime inputs by name; they limit n to 512.

    Raises:
        PatternError: the layers differ and ``layer`` is not given.
        ValueError: the number of steps is not from 1 to 1,000, or a runtime input is missing.
    """
    claim = f"the spectral gap at n = {n:,}"
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps is a number from 1 to {MAX_STEPS:,}, got {steps}")
    if layer is None and pattern.layers > 1:
        pattern.meaning()  # raises the error that says how to choose one
    one = pattern.layer(layer or 0)
    try:
        with budget():
            if not symmetrise and _is_causal(one):
                words = "the pattern is causal: every walk ends at position 0, and no gap describes it; symmetrise=True"
                return unknown(claim, f"{words} takes its pairs in both directions")
        return _exact(one, n, claim, inputs) if n <= MAX_EXACT else _large(one, n, claim, steps, seed)
    except BudgetExceeded as error:
        return unknown(claim, str(error) or "the exact set computation is over its operation budget")


def _is_causal(layer: Pattern) -> bool:
    (possible,) = period(layer, residual=False).possible
    return possible.is_subset(causal_pairs())


def _exact(layer: Pattern, n: int, claim: str, inputs: dict[str, Any]) -> Verdict:
    mask = reduce(np.logical_or, (layer.mask(n, head, **inputs) for head in range(layer.heads)))
    adjacency = (mask | mask.T).astype(np.float64)
    scale = _scale(adjacency.sum(1))
    if n == 1 or not scale.all():
        return _trivial(claim, n, scale)
    values = np.linalg.eigvalsh(scale[:, None] * adjacency * scale)
    gap, error = 1 - float(values[-2]), 8 * n * float(np.finfo(np.float64).eps)
    return _interval("bounded", claim, gap, max(0.0, gap - error), gap + error, "all eigenvalues, but for rounding")


def _large(layer: Pattern, n: int, claim: str, count: int, seed: int) -> Verdict:
    if layer.inputs:
        return unknown(claim, f"runtime inputs decide it, and n = {n:,} is over {MAX_EXACT}")
    if n > MAX_WALK:
        return unknown(claim, f"n = {n:,} is too large to keep vectors of; the limit is {MAX_WALK:,}")
    graph = _graph(layer, n)
    degree = graph.product(np.ones(n))
    scale = _scale(degree)
    if not scale.all():
        return _trivial(claim, n, scale)
    found = _lanczos(graph, degree, scale, count, seed)
    verdict = _estimate(claim, found, n, count, seed)
    width = _band(layer)
    if width is None or not width < n // 8:
        return verdict
    value = pi**2 * width * (width + 1) / (6 * n**2)
    reason = f"pi^2 b (b + 1) / (6 n^2) for the {width:,} neighbours on either side of a position; {verdict.reason}"
    return replace(verdict, value=value, reason=reason)


def _estimate(claim: str, ritz: float, n: int, count: int, seed: int) -> Verdict:
    """The interval from a Ritz value.

    The value is at most l2. Among the eigenvalues (1 + l) / 2, which are not negative, the largest is underestimated by
    a share of more than e with probability at most 1.648 sqrt(n) exp(-(2 steps - 1) sqrt(e)).
    """
    share = min(1.0, (log(1.648 * n**0.5 / FAILURE) / (2 * count - 1)) ** 2)
    upper = 1 - ritz
    lower = max(0.0, 2 - (1 + ritz) / (1 - share)) if share < 1 else 0.0
    words = f"{count} Lanczos steps from seed {seed}; the gap is below the interval with probability {FAILURE} at most"
    return _interval("estimated", claim, upper, lower, upper, words)


def _trivial(claim: str, n: int, scale: Vector) -> Verdict:
    if n == 1:
        return _interval("bounded", claim, 1.0, 1.0, 1.0, "there is one position, and no second eigenvalue")
    alone = int(np.flatnonzero(scale == 0)[0])
    return _interval("bounded", claim, 0.0, 0.0, 0.0, f"position {alone} is in no pair: the graph falls apart")


def _interval(status: Any, claim: str, value: float, lower: float, upper: float, words: str) -> Verdict:
    reason = f"from {lower:.3g} to {upper:.3g}: {words}"
    return Verdict(status, claim, reason, value=value, lower=lower, upper=upper)  # type: ignore[arg-type, unused-ignore]


def _scale(degree: Vector) -> Vector:
    """D^-1/2, with 0 where a position has no pair."""
    return np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0.0)


def _band(layer: Pattern) -> int | None:
    """b, if the pairs in both directions are those with |q - k| <= b for every n; None if they are not."""
    found = period(layer, residual=False)
    (sure,), (possible,) = found.sure, found.possible
    both = _both_ways(sure)
    runs = both.row(0, MAX_WALK)
    if len(runs) != 1 or runs[0][0] != 0 or runs[0][2] != 1:
        return None
    width = runs[0][1]
    distance = op("-", Q, K)
    band = Relation.where(conjunction((op("<=", distance, width), op("<=", -width, distance))))
    return width if both.equals(band) and possible.is_subset(band) else None


@dataclass(frozen=True, eq=False)
class _Run:
    """For each query, the keys first, first + step, ..., last, as the rows of prefix sums whose difference is their sum.

    ``pieces`` are spans of queries over which both rows stay or advance by one, where there are few: slices are faster.
    """

    queries: Positions
    before: Positions
    last: Positions
    step: int
    pieces: tuple[int, ...] | None

    def add(self, sums: Vector, out: Vector) -> None:
        """Add the sum over the keys of each query to ``out``."""
        if self.pieces is None:
            out[self.queries] += np.take(sums, self.last, mode="clip") - np.take(sums, self.before, mode="clip")
            return
        for start, end in pairwise(self.pieces):
            q = int(self.queries[start])
            out[q : q + end - start] += self._span(sums, self.last, start, end)
            out[q : q + end - start] -= self._span(sums, self.before, start, end)

    @staticmethod
    def _span(sums: Vector, rows: Positions, start: int, end: int) -> Vector:
        first, last = int(rows[start]), int(rows[end - 1])
        return sums[first : last + 1]  # one value where the row stays: it is added to every query


@dataclass(frozen=True, eq=False)
class _Graph:
    """A 0/1 matrix: runs of keys for each query, and single pairs by row and column."""

    n: int
    runs: tuple[_Run, ...]
    rows: Positions
    columns: Positions

    def product(self, x: Vector) -> Vector:
        """The matrix times a vector."""
        single = np.take(x, self.columns, mode="clip")
        out = np.bincount(self.rows, weights=single, minlength=self.n).astype(np.float64)
        for step in dict.fromkeys(run.step for run in self.runs):
            sums = _prefix_sums(x, step)
            for run in self.runs:
                if run.step == step:
                    run.add(sums, out)
        return out


def _prefix_sums(x: Vector, step: int) -> Vector:
    """s with s[step + i] = x[i] + s[i]: the sum over i, i - step, i - 2 step, ..."""
    rows = -(-len(x) // step)
    padded = np.zeros((rows + 1, step))
    padded[1:].reshape(-1)[: len(x)] = x
    return np.cumsum(padded, axis=0).reshape(-1)


def _graph(layer: Pattern, n: int) -> _Graph:
    """The pairs of a layer without runtime inputs, heads united, in both directions.

    Raises:
        BudgetExceeded: the rows have no closed form, or there are too many runs or draws.
    """
    meanings = [layer.meaning(head=head) for head in range(layer.heads)]
    both = _both_ways(union(meaning.static for meaning in meanings))
    if len(both.rows) * n > MAX_KEPT:
        raise BudgetExceeded(f"the keys of a row are {len(both.rows)} runs, too many to keep at n = {n:,}")
    runs = tuple(run for loop in both.rows if (run := _run(loop, n)) is not None)
    codes = [np.zeros(0, np.int64)]
    for head, meaning in enumerate(meanings):
        for q, k in drawn_pairs(meaning, Evaluator(meaning, n, head, {}), n):
            fresh = ~np.broadcast_to(np.asarray(evaluate(both.predicate, {"q": q, "k": k, "n": n}, np), bool), q.shape)
            codes += [(q * n + k)[fresh], (k * n + q)[fresh]]
            if sum(map(len, codes)) > MAX_KEPT:
                raise BudgetExceeded(f"there are over {MAX_KEPT:,} drawn pairs at n = {n:,}")
    rows, columns = np.divmod(np.unique(np.concatenate(codes)), n)
    return _Graph(n, runs, rows, columns)


def _both_ways(relation: Relation) -> Relation:
    return relation | (everything() & relation.inverse())


def _run(loop: Loop, n: int) -> _Run | None:
    q = np.arange(n, dtype=np.int64)
    count = evaluate(loop.count, {"q": q, "n": n}, np) + 0 * q
    queries = q[count > 0]
    if not len(queries):
        return None
    before = evaluate(loop.start, {"q": queries, "n": n}, np) + 0 * queries
    last = before + loop.step * count[queries]
    return _Run(queries, before, last, loop.step, _pieces(queries, before, last))


def _pieces(queries: Positions, before: Positions, last: Positions) -> tuple[int, ...] | None:
    """Where to cut so that in each piece queries follow each other and both rows stay, or advance by one; None if often."""
    moves = np.stack([np.diff(rows) for rows in (before, last)])
    broken = (np.diff(queries) != 1) | ((moves != 0) & (moves != 1)).any(0)
    turned = np.zeros(len(queries), bool)
    turned[2:] = (moves[:, 1:] != moves[:, :-1]).any(0)
    turned[1:] |= broken
    cuts = np.flatnonzero(turned)
    return (0, *map(int, cuts), len(queries)) if len(cuts) * SHORTEST <= len(queries) else None


def _lanczos(graph: _Graph, degree: Vector, scale: Vector, count: int, seed: int) -> float:
    """The largest Ritz value of the normalised matrix beside its eigenvalue 1."""
    top = np.sqrt(degree / degree.sum())
    now = np.random.default_rng(seed).standard_normal(graph.n)
    now -= top * (top @ now)
    now /= np.linalg.norm(now)
    before = np.zeros(graph.n)
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(count, graph.n - 1)):
        image = scale * graph.product(scale * now)
        diagonal.append(float(now @ image))
        image -= diagonal[-1] * now
        image -= (beside[-1] if beside else 0.0) * before
        image -= top * (top @ image)
        norm = float(np.linalg.norm(image))
        beside.append(norm)
        if norm < 1e-12:
            break
        before, now = now, image / norm
    tridiagonal = np.diag(diagonal) + np.diag(beside[: len(diagonal) - 1], 1)
    return min(1.0, float(np.linalg.eigvalsh(tridiagonal, UPLO="U")[-1]))
