"""How far information travels through stacked layers: what reaches what, through how few layers, and whether all does.

R holds (q, k) where query q may read key k; heads are united. A layer connects R | self (with its residual stream), and L
layers connect M_L = (R_L | self) o M_(L-1), M_0 = self, layer 1 at the bottom. The distance of a pair is the least L with
the pair in M_L; the hop diameter is the least L for which M_L holds a whole target, and infinite if there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from patternc.analysis.arguments import check_arguments
from patternc.analysis.certificate import Certificate, Chain, Claim, ClosedSet, Joint, Missing, Path, Powers
from patternc.analysis.doubling import Cover, Power, cover, walk
from patternc.analysis.held import causal_pairs, diagonal
from patternc.analysis.numeric import numeric_diameter
from patternc.analysis.stack import SECONDS
from patternc.analysis.steps import Mode, Step, Target, at_length, steps, target_pairs
from patternc.analysis.verdict import Verdict, bounded, proved, refuted, unknown
from patternc.pattern import MAX_N, Pattern
from patternc.relation import BudgetExceeded, Pair, Positions, Relation, budget, everything
from patternc.scalar import K, Q, conjunction, op, text

SYMBOLIC_DOUBLINGS = 6
SYMBOLIC_BUDGET = 300_000
MAX_PATH = 4_096
MAX_RUNS = 4_096
MAX_TEXT = 20_000
CERTIFICATE_BUDGET = 5_000_000
OVER_BUDGET = "the exact set computation is over its operation budget"


@dataclass(frozen=True, eq=False)
class _Stack:
    """Layers from one on up, at one n or for every n."""

    pattern: Pattern
    n: int | None
    mode: Mode
    residual: bool
    start: int
    limits: Mapping[str, Any] = field(default_factory=dict)
    """For the engine that runs the graph: how long it may take, and runtime inputs."""

    def __post_init__(self) -> None:
        check_arguments(self.n, mode=self.mode, start_layer=self.start)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """One period, from the starting layer."""
        return steps(self.pattern, self.mode, self.residual, self.start)

    @cached_property
    def is_affine(self) -> bool:
        return all(step.is_affine for step in self.steps)

    @cached_property
    def sure(self) -> list[Relation]:
        """What each layer holds at least; layers that are alike share one object."""
        return at_length((step.relation for step in self.steps), self.n)

    @cached_property
    def possible(self) -> list[Relation]:
        """What each layer holds at most."""
        return at_length((step.possible for step in self.steps), self.n)

    @cached_property
    def grows(self) -> bool:
        """Whether more layers connect more: every position keeps what it has, or reads itself in every layer."""
        return self.residual or all(diagonal().is_subset(step.relation) for step in set(self.steps))

    def at(self, relation: Relation) -> Relation:
        return relation if self.n is None else relation.at(self.n)

    def layer(self, index: int) -> int:
        """The number in the pattern of a layer counted from the start."""
        return (self.start + index) % len(self.steps)

    def cover(self, layers: Sequence[Relation], target: Relation) -> Cover:
        if not self.grows:
            return walk(layers, target)
        if self.n is not None:
            return cover(layers, target)
        return cover(layers, target, doublings=SYMBOLIC_DOUBLINGS, operations=SYMBOLIC_BUDGET)


def hop_diameter(
    pattern: Pattern,
    n: int | None = None,
    *,
    target: Target = None,
    residual: bool = True,
    mode: Mode = "may",
    start_layer: int = 0,
    limit_seconds: float = SECONDS,
    **inputs: Any,
) -> Verdict:
    """The least number of layers that connects every pair of the target, as the verdict's ``value``.

    With n None the number that serves every n at once: the largest of all n. Proved with a `Powers` certificate; refuted,
    with the value infinity and a witness, where no number of layers is enough (or none serves every n).

    Args:
        n: the sequence length; None for all of them.
        target: the pairs to connect; by default k <= q if no layer reads ahead, else all pairs.
        residual: whether each layer also passes on every position itself; otherwise walks have exactly as many steps as
            there are layers.
        mode: "may" counts the pairs that some runtime inputs allow, "must" those that all of them do.
        start_layer: the layer of the schedule at the bottom.
        limit_seconds: how long the graph may be run, where relations do not decide.
        inputs: runtime inputs by name, as for `Pattern.mask`, to ask about these alone; they need n.

    Raises:
        ValueError: n or the starting layer is out of range, or an input has the wrong shape or an unknown name.
    """
    stack = _Stack(pattern, n, mode, residual, start_layer, {"limit_seconds": limit_seconds, **inputs})
    if inputs:
        return _by_numbers(stack, target)
    about = f"{_at(n)}{_given(pattern, mode)}"
    try:
        wanted = target_pairs(pattern, target)
        claim = f"layers connect {_words(target, wanted)}{about}"
        verdict = _decide(stack, stack.at(wanted), claim)
    except BudgetExceeded:
        verdict = unknown(f"layers connect what they ought to{about}", OVER_BUDGET)
    if verdict.status in ("unknown", "bounded") and n is not None:
        return _by_numbers(stack, target, verdict)
    return verdict


def distance(
    pattern: Pattern,
    q: int,
    k: int,
    n: int | None = None,
    *,
    residual: bool = True,
    mode: Mode = "may",
    start_layer: int = 0,
    limit_seconds: float = SECONDS,
    **inputs: Any,
) -> Verdict:
    """The least number of layers through which query q reads position k, with a `Path` and a `Chain` that shows no fewer do.

    With n None the number that serves every n that has both positions. The options are those of `hop_diameter`.

    Raises:
        ValueError: n, q, k or the starting layer is out of range, or an input has the wrong shape or an unknown name.
    """
    stack = _Stack(pattern, n, mode, residual, start_layer, {"limit_seconds": limit_seconds, **inputs})
    check_arguments(n, q, k)
    claim = f"query {q} reaches key {k}{_at(n)}{_given(pattern, mode)}"
    pair = Relation.where(conjunction((op("==", Q, q), op("==", K, k))))
    if inputs:
        return replace(_by_numbers(stack, pair), claim=claim)
    try:
        verdict = _decide(stack, stack.at(pair), claim)
    except BudgetExceeded:
        verdict = unknown(claim, OVER_BUDGET)
    if n is None:
        return verdict
    if verdict.status in ("unknown", "bounded"):
        return _by_numbers(stack, pair, verdict)
    if verdict and stack.is_affine and isinstance(verdict.value, int) and verdict.value <= MAX_PATH:
        return replace(verdict, certificate=_route(stack, q, k, verdict.value) or verdict.certificate)
    return verdict


def reachable(
    pattern: Pattern, q: int, k: int, layers: int, n: int | None = None, *, mode: Mode = "may", **options: Any
) -> Verdict:
    """Whether query q of the top layer reads position k through ``layers`` layers; ``value`` is the distance if known.

    ``options`` are those of `distance` but ``residual``: what walks of exactly so many steps read is their
    `patternc.analysis.receptive_field.receptive_field`.

    Raises:
        ValueError: as for `distance`, or layers is negative.
    """
    check_arguments(n, layers=layers)
    if "residual" in options:
        raise ValueError("reachable follows residual streams; receptive_field(..., residual=False) follows walks without")
    found = distance(pattern, q, k, n, mode=mode, **options)
    claim = f"query {q} reaches key {k} through {layers} layers{_at(n)}{_given(pattern, mode)}"
    lower, upper = found.bounds
    if upper <= layers:
        return replace(found, status="proved", claim=claim)
    if lower > layers:
        shown = Pair(max(q, k) + 1 if n is None else n, q, k)
        return replace(found, status="refuted", claim=claim, witness=found.witness or shown)
    return replace(found, status="unknown", claim=claim)


def _decide(stack: _Stack, target: Relation, claim: str) -> Verdict:
    most = stack.cover(stack.possible, target)
    if most.hops == math.inf:
        return _never(most, claim)
    least = most if stack.is_affine else stack.cover(stack.sure, target)
    if least.hops is not None and least.hops == most.hops:
        return _exactly(stack, least, most, target, claim)
    if not stack.is_affine:
        upper = least.hops if least.hops is not None and least.hops < math.inf else None
        return _between(most.lower, upper, claim)
    if stack.n is None:
        return _growing(stack, most, target, claim)
    return _between(most.lower, None, claim, OVER_BUDGET)


def _exactly(stack: _Stack, least: Cover, most: Cover, target: Relation, claim: str) -> Verdict:
    assert isinstance(least.hops, int)
    if most.missing is None:
        none = Powers(stack.n, (Claim("q == k", stack.start, 0),), text(target.condition), None, stack.residual)
        return proved(claim, "every position reads itself without any layer", value=0, certificate=none)
    pair = most.missing.sample()
    assert pair is not None
    few = "no layer" if least.hops == 1 else f"{least.hops - 1:,} {'layer' if least.hops == 2 else 'layers'}"
    count = f"{least.hops:,} {'layer is' if least.hops == 1 else 'layers are'} enough"
    reason = f"{count}, by exact composition of relations; with {few}, {pair} are not connected"
    certificate = _powers(stack, least, most, target, pair)
    return replace(proved(claim, reason, value=least.hops, certificate=certificate), witness=pair)


def _never(most: Cover, claim: str) -> Verdict:
    assert most.missing is not None
    return refuted(claim, most.missing.sample(), _never_words, value=math.inf, certificate=_closed(most))


def _never_words(pair: Pair) -> str:
    return f"no number of layers connects {pair}"


def _growing(stack: _Stack, most: Cover, target: Relation, claim: str) -> Verdict:
    """Nothing that was tried serves every n: either some n has no answer, or the number grows, or it is too hard to say.

    A number that serves every n serves the largest one, so what that needs is a lower bound.
    """
    if most.missing is None:
        return unknown(claim, OVER_BUDGET)
    pair = most.missing.sample()
    assert pair is not None
    there = replace(stack, n=pair.n)
    alone = there.cover(there.possible, most.missing.at(pair.n))
    if alone.hops == math.inf:
        return _never(alone, claim)
    longest = replace(stack, n=MAX_N)
    last = longest.cover(longest.possible, longest.at(target))
    if last.hops == math.inf:
        return _never(last, claim)
    if last.lower > most.lower and last.missing is not None:
        most, pair = last, last.missing.sample()
        assert pair is not None
    tried = most.lower - 1
    reason = f"{tried:,} layers are not enough for {pair}: the number may grow with n, so ask for one n"
    return replace(unknown(claim, reason), lower=most.lower, witness=pair)


def _between(
    lower: int, upper: float | int | None, claim: str, why: str = "which keys are read is decided by draws"
) -> Verdict:
    """What relations say of a number that they do not decide."""
    said = f"at least {lower:,}" if upper is None else f"between {lower:,} and {upper:,}"
    reason = f"the number of layers is {said}; {why}"
    return replace(unknown(claim, reason), lower=lower) if upper is None else bounded(claim, lower, upper, reason)


def _by_numbers(stack: _Stack, target: Target, exact: Verdict | None = None) -> Verdict:
    """The answer of the engine that runs the graph at one n, where relations do not decide."""
    if stack.n is None:
        raise ValueError("runtime inputs are those of one sequence: pass n, its length")
    options = {"mode": stack.mode, "residual": stack.residual, "start_layer": stack.start, **stack.limits}
    found = numeric_diameter(stack.pattern, stack.n, target=target, **options)
    if exact is None:
        return found
    if found.status == "unknown":
        return exact
    if found.status == "bounded":
        found = replace(found, lower=max(found.lower or 0, exact.lower or 0), upper=_smaller(found.upper, exact.upper))
    return replace(found, claim=exact.claim)


def _smaller(a: float | int | None, b: float | int | None) -> float | int | None:
    return min((bound for bound in (a, b) if bound is not None), default=None)


def _powers(stack: _Stack, least: Cover, most: Cover, target: Relation, pair: Pair) -> Certificate | None:
    """Both bounds as one certificate, or as two where the relations that serve them differ; None if it would be too long."""
    assert least.covering is not None
    try:
        with budget(CERTIFICATE_BUDGET):
            wanted = text(target.condition)
            if least is most:
                return _certificate(stack, least.covering, wanted, most.below if stack.residual else None, pair)
            upper = _certificate(stack, least.covering, wanted, None, pair)
            lower = None if most.below is None else _certificate(stack, most.below, None, most.below, pair)
    except BudgetExceeded:
        return None
    return Joint((upper, lower)) if upper is not None and lower is not None else upper


def _certificate(stack: _Stack, last: Power, target: str | None, below: Power | None, pair: Pair) -> Powers | None:
    found: dict[int, Claim] = {}
    numbers: dict[int, int] = {}

    def add(power: Power) -> None:
        stack_ = [(power, False)]
        while stack_:
            one, ready = stack_.pop()
            if id(one) in numbers:
                continue
            if not ready:
                stack_ += [(one, True), *((part, False) for part in one.parts)]
                continue
            parts = tuple(numbers[id(part)] for part in one.parts)
            numbers[id(one)] = len(found)
            found[len(found)] = Claim(text(one.relation.condition), stack.layer(one.first), one.layers, parts)

    if below is not None:
        add(below)
    add(last)
    missing = None if below is None else Missing(numbers[id(below)], pair.n, pair.q, pair.k)
    claims = tuple(found.values())
    return (
        Powers(stack.n, claims, target, missing, stack.residual) if sum(len(c.condition) for c in claims) < MAX_TEXT else None
    )


def _closed(most: Cover) -> ClosedSet | None:
    """All that the witness's query reaches, at the witness's n."""
    if most.covering is None or most.missing is None:
        return None
    pair = most.missing.sample()
    assert pair is not None
    try:
        with budget(CERTIFICATE_BUDGET):
            runs = most.covering.relation.image(Positions.of([(pair.q, pair.q, 1)])).runs(pair.n)
    except BudgetExceeded:
        return None
    return ClosedSet(pair.n, runs, pair.q, pair.k) if len(runs) <= MAX_RUNS else None


def _route(stack: _Stack, q: int, k: int, hops: int) -> Certificate | None:
    """A path of ``hops`` layers, and all that fewer layers let q reach."""
    assert stack.n is not None
    try:
        with budget(CERTIFICATE_BUDGET):
            regions = _regions(stack, q, hops)
            path = _path(stack, regions, k)
            if hops == 0 or not stack.grows:
                return path
            fewer = regions[:-1] if len(set(map(id, stack.sure))) == 1 else _regions(stack, q, hops - 1)
            sets = tuple(region.runs(stack.n) for region in fewer)
    except BudgetExceeded:
        return None
    down = tuple(stack.layer(index) for index in reversed(range(hops - 1)))
    return Joint((path, Chain(stack.n, q, sets, down, k, stack.residual)))


def _regions(stack: _Stack, q: int, layers: int) -> list[Positions]:
    """What q reads through none, one, ... of so many layers, from the top of them."""
    found = [Positions.of([(q, q, 1)])]
    for index in reversed(range(layers)):
        found.append(stack.sure[index % len(stack.sure)].image(found[-1]))
    return found


def _path(stack: _Stack, regions: Sequence[Positions], k: int) -> Path:
    """A way down, found from its end: of those that read the next position, the first that q reaches in time."""
    assert stack.n is not None
    positions = [k]
    for index, region in enumerate(reversed(regions[:-1])):
        here = stack.sure[index % len(stack.sure)].preimage(Positions.of([(positions[-1], positions[-1], 1)])) & region
        at = here.smallest(stack.n)
        assert at is not None
        positions.append(at)
    layers = tuple(stack.layer(index) for index in reversed(range(len(positions) - 1)))
    return Path(stack.n, layers, tuple(reversed(positions)), stack.residual)


def _words(target: Target, pairs: Relation) -> str:
    if isinstance(target, Pattern | str):
        return f"every pair of '{target}'"
    if pairs is everything():
        return "every query with every key"
    return "every query with every key up to it" if pairs is causal_pairs() else "every pair of the target"


def _at(n: int | None) -> str:
    return " for every n" if n is None else f" at n = {n:,}"


def _given(pattern: Pattern, mode: Mode) -> str:
    if not pattern.inputs:
        return ""
    return f", by pairs that {'some' if mode == 'may' else 'all'} runtime inputs allow"
