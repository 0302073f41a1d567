"""Which published conditions for expressive power a pattern meets.

Each criterion is a theorem's premise or a paper's design rule, put together from parts that are verdicts of their own. All
speak of a layer as the union of its heads, and of the layers of one period, repeated. A criterion that is not met says
nothing against the pattern: the conditions are sufficient, not necessary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from patternc.analysis.hamiltonian import MAX_CLOSED, OVER, back, closure, hamiltonian_path
from patternc.analysis.held import causal_pairs, diagonal, union
from patternc.analysis.hub import hub
from patternc.analysis.period import Layers, at, merged, period, places, small_run, space, unread
from patternc.analysis.reach import hop_diameter
from patternc.analysis.search import first
from patternc.analysis.verdict import Verdict, proved, refuted, unknown
from patternc.pattern import Pattern
from patternc.relation import BudgetExceeded, Pair, Relation, budget, everything

SELF = "every position reads itself in every layer"
ALL = "through enough layers every position reads every other"


@dataclass(frozen=True)
class Criterion:
    """A published condition: what is known of it, and of its parts.

    Attributes:
        name: the paper, in short.
        source: the paper.
        verdict: proved if all parts are, refuted if one is (``witness`` is then that part's).
        parts: the conditions that it consists of.
    """

    name: str
    source: str
    verdict: Verdict
    parts: tuple[Verdict, ...]

    def __bool__(self) -> bool:
        return bool(self.verdict)

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}"

    def to_json(self) -> dict[str, Any]:
        parts = [part.to_json() for part in self.parts]
        return {"name": self.name, "source": self.source, **self.verdict.to_json(), "parts": parts}


def universality(pattern: Pattern, n: int | None = None, *, hops: int = 2) -> tuple[Criterion, ...]:
    """The criteria of Yun et al., of BigBird and of the Sparse Transformer, for every n or at one."""
    return yun(pattern, n), big_bird(pattern, n), sparse_transformer(pattern, n, hops=hops)


def yun(pattern: Pattern, n: int | None = None) -> Criterion:
    """The premise under which sparse transformers are universal approximators of sequence-to-sequence functions.

    Yun, Chang, Bhojanapalli, Rawat, Reddi and Kumar, "O(n) Connections are Expressive Enough: Universal Approximability of
    Sparse Transformers" (NeurIPS 2020), its three conditions on the patterns A^1 to A^p of a period of p layers:

    1. k is in A^l_k for every position k and layer l: every position attends to itself;
    2. some order of the positions is a path in the union of A^1 to A^p: a Hamiltonian path;
    3. there is an s such that through s layers every position attends to every other, directly or not.

    No causal pattern meets the third: the theorem is about encoders.
    """
    parts = (reads_itself(pattern, n), hamiltonian_path(pattern, n), reaches_all(pattern, n))
    source = "Yun et al., O(n) Connections are Expressive Enough, NeurIPS 2020"
    return _criterion("Yun et al. 2020", source, "the three conditions hold", parts)


def big_bird(pattern: Pattern, n: int | None = None) -> Criterion:
    """The premise under which BigBird is a universal approximator: the graph of every layer contains a star.

    Zaheer et al., "Big Bird: Transformers for Longer Sequences" (NeurIPS 2020): a center that attends to all positions, and
    other positions that each attend to the center and to themselves.
    """
    parts = (reads_itself(pattern, n), hub(pattern, n))
    source = "Zaheer et al., Big Bird, NeurIPS 2020"
    return _criterion("BigBird 2020", source, "every layer contains a star", parts)


def sparse_transformer(pattern: Pattern, n: int | None = None, *, hops: int = 2) -> Criterion:
    """The rule by which the Sparse Transformer's factorised patterns were designed, for p = ``hops``.

    Child, Gray, Radford and Sutskever, "Generating Long Sequences with Sparse Transformers" (2019): for every j <= i,
    position i can attend to j by a path of at most p + 1 locations. Such a path has p steps: the claim is that the lowest p
    layers, with residual streams, connect every query with every key before it.

    Raises:
        ValueError: hops is below 1.
    """
    if hops < 1:
        raise ValueError(f"hops must be at least 1, got {hops}")
    claim = f"every query reads every key before it through at most {hops} layers"
    part = _through(pattern, n, hops, claim)
    source = "Child et al., Generating Long Sequences with Sparse Transformers, 2019"
    return _criterion("Sparse Transformer 2019", source, claim, (part,))


def reads_itself(pattern: Pattern, n: int | None = None) -> Verdict:
    """Whether some head of every layer reads each query's own position, whatever the inputs, draws and scores."""

    def decide() -> Verdict:
        layers = period(pattern, n, residual=False)
        if all(at(diagonal(), n).is_subset(sure) for sure in layers.sure):
            return proved(SELF, "the diagonal, less the pairs that a layer holds, is the empty set for every layer")
        missing = union(at(diagonal(), n) - possible for possible in layers.possible)
        if not missing.is_empty():
            return refuted(SELF, missing.sample(), _not_itself)
        if n is not None and not pattern.inputs:
            return _drawn(pattern, n)
        found = small_run(pattern, _absent, n)
        if found is not None:
            return refuted(SELF, found.pair, _not_itself, found.setting)
        return unknown(SELF, "runtime inputs or draws decide it, and none of the small runs tried lacks one")

    return _within_budget(SELF, decide)


def _drawn(pattern: Pattern, n: int) -> Verdict:
    """As `reads_itself`, at one n and without runtime inputs: what is drawn decides it."""
    members = places(pattern)
    for layer in range(pattern.layers):
        q = unread(pattern, n, 0, [member for member in members if member[0] == layer])
        if q is not None:
            return refuted(SELF, Pair(n, q, q), _not_itself)
    return proved(SELF, f"by what is drawn at n = {n}")


def reaches_all(pattern: Pattern, n: int | None = None) -> Verdict:
    """Whether, for each n, some number of layers lets every position read every other; with residual streams."""
    verdict = _within_budget(ALL, lambda: _connected(pattern, n))
    return _by_diameter(pattern, n) if verdict.status == "unknown" else verdict


def _connected(pattern: Pattern, n: int | None) -> Verdict:
    layers = period(pattern, n, residual=True)
    sure, possible = union(layers.sure), union(layers.possible)
    if at(back() | back().inverse(), n).is_subset(sure):
        return proved(ALL, "every position reads both of its neighbours in some layer of the period")
    beyond = at(causal_pairs().inverse(), n) - diagonal()
    if possible.is_subset(causal_pairs()) and not beyond.is_empty():
        return refuted(ALL, beyond.sample(), _causal)
    cut = _isolated(possible, n)
    if cut is not None:
        return cut
    found = small_run(pattern, _unreached, n)
    if found is not None:
        return refuted(ALL, found.pair, _never, found.setting)
    return unknown(ALL, "nothing that was tried connects all positions or keeps some apart")


def _isolated(possible: Relation, n: int | None) -> Verdict | None:
    """A refutation by a position that reads no other, or that no other reads."""
    steps = possible - diagonal()
    for edges, words in ((steps, "reads no other position"), (steps.inverse(), "is read by no other position")):
        pair = (space(n) - diagonal() - edges.queries()).sample()
        if pair is not None:
            witness = pair if edges is steps else Pair(pair.n, pair.k, pair.q)
            return Verdict("refuted", ALL, f"position {pair.q} {words} at n = {pair.n}", witness)
    return None


def _by_diameter(pattern: Pattern, n: int | None) -> Verdict:
    """As `reaches_all`, by the number of layers that it takes."""
    least = hop_diameter(pattern, n, target=everything(), mode="must")
    if least.bounds[1] < math.inf:
        return proved(ALL, least.reason, value=least.value, certificate=least.certificate)
    length = n if n is not None or least.witness is None else least.witness.n
    most = hop_diameter(pattern, length, target=everything())
    if length is not None and most.bounds[0] == math.inf:
        return Verdict("refuted", ALL, most.reason, most.witness, certificate=most.certificate)
    return unknown(ALL, "nothing that was tried connects all positions or keeps some apart")


def _through(pattern: Pattern, n: int | None, hops: int, claim: str) -> Verdict:
    least = hop_diameter(pattern, n, target=causal_pairs(), mode="must")
    if least.bounds[1] <= hops:
        return proved(claim, least.reason, value=least.value, certificate=least.certificate)
    most = hop_diameter(pattern, n, target=causal_pairs()) if pattern.inputs else least
    if most.bounds[0] > hops:
        return Verdict("refuted", claim, most.reason, most.witness, value=most.value, certificate=most.certificate)
    found = small_run(pattern, lambda layers: _beyond(layers, hops), n)
    if found is not None:
        return refuted(claim, found.pair, _too_far(hops), found.setting)
    if pattern.inputs:
        return unknown(claim, f"it depends on the runtime inputs; at worst, {least.reason}; at best, {most.reason}")
    return unknown(claim, least.reason)


def _beyond(layers: Layers, hops: int) -> tuple[int, int] | None:
    """A key before its query that some of the lowest layers do not connect with it."""
    if len(layers[0]) > MAX_CLOSED:
        return None
    reach = itself = np.eye(len(layers[0]), dtype=bool)
    for layer in range(min(hops, len(layers[0]) * len(layers))):
        reach = (layers[layer % len(layers)] | itself) @ reach
    return first(np.tril(~reach))


def _unreached(layers: Layers) -> tuple[int, int] | None:
    reach = closure(merged(layers))
    return None if reach is None else first(~reach)


def _absent(layers: Layers) -> tuple[int, int] | None:
    gaps = np.flatnonzero(~np.logical_and.reduce([np.diagonal(mask) for mask in layers]))
    return (int(gaps[0]), int(gaps[0])) if len(gaps) else None


def _within_budget(claim: str, decide: Callable[[], Verdict]) -> Verdict:
    try:
        with budget():
            return decide()
    except BudgetExceeded as error:
        return unknown(claim, str(error) or OVER)


def _criterion(name: str, source: str, claim: str, parts: tuple[Verdict, ...]) -> Criterion:
    if len(parts) == 1:
        return Criterion(name, source, parts[0], parts)
    for status in ("refuted", "unknown"):
        for part in parts:
            if part.status == status or (status == "unknown" and not part):
                reason = f"{part.claim}: {part.status}, {part.reason}"
                return Criterion(name, source, replace(part, status=status, claim=claim, reason=reason), parts)
    return Criterion(name, source, proved(claim, "; ".join(f"{part.claim} ({part.reason})" for part in parts)), parts)


def _not_itself(pair: Pair) -> str:
    return f"query {pair.q} does not read key {pair.q} in some layer at n = {pair.n}"


def _never(pair: Pair) -> str:
    return f"query {pair.q} reads key {pair.k} through no number of layers at n = {pair.n}"


def _too_far(hops: int) -> Callable[[Pair], str]:
    return lambda pair: f"query {pair.q} reads key {pair.k} through no {hops} layers at n = {pair.n}"


def _causal(pair: Pair) -> str:
    return f"no layer reads a later key, so query {pair.q} never reads key {pair.k} at n = {pair.n}"
