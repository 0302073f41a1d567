"""Checks certificates against the pattern alone, by definitions and without the engines that made them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.analysis.certificate import Certificate, Chain, ClosedSet, Joint, Path, Powers, Runs, Star
from patternc.analysis.held import certain, diagonal, few_atoms, realisable, union
from patternc.analysis.verdict import Verdict
from patternc.diagnostics import PatternError
from patternc.pattern import MAX_N, Pattern, parse
from patternc.random_edges import draw
from patternc.relation import BudgetExceeded, Positions, Relation, budget, everything
from patternc.scalar import evaluate
from patternc.terms import Random, Term

Array: TypeAlias = npt.NDArray[np.int64]

VERIFY_BUDGET = 20_000_000
MAX_MEMBERS = 1 << 24
MAX_EXACT_RUNS = 256
NOT_CONSECUTIVE = "the layers are not consecutive from top to bottom"
_KEYS = 1 << 22  # drawn keys looked at together


def verify(pattern: Pattern, checked: Verdict | Certificate, mode: str = "may") -> list[str]:
    """What is wrong with a certificate, or with a verdict and its certificate; empty if it holds.

    In mode "may" the pairs of a layer are those that some runtime inputs and scores allow, in mode "must" those that all do
    (a `Star` is always about the latter). Of a verdict, its number and its witness have to be those of the certificate; that
    its claim is about the certificate's pair or target is for the reader to see.

    Raises:
        ValueError: there is no such mode.
    """
    complaints: list[str] = []
    if mode not in ("may", "must"):
        raise ValueError(f"mode is 'may' or 'must', got {mode!r}")
    certificate = checked.certificate if isinstance(checked, Verdict) else checked
    if certificate is None:
        return ["there is no certificate"]
    try:
        with budget(VERIFY_BUDGET):
            if isinstance(checked, Verdict):
                complaints += _disagreements(checked)
            complaints += _complaints(_Layers(pattern, mode), certificate)
            return complaints
    except BudgetExceeded:
        return [*complaints, "it could not be checked within the operation budget"]
    except PatternError as error:
        return [*complaints, f"a condition in it is not one of the language: {error}"]


def _disagreements(verdict: Verdict) -> Iterator[str]:
    """Where the certificate is of another number or pair than the verdict."""
    certificate, value = verdict.certificate, verdict.value
    for part in certificate.parts if isinstance(certificate, Joint) else (certificate,):
        match part:
            case ClosedSet(n, _, q, k):
                if value is not None and value != math.inf:
                    yield f"the verdict says {value}, and the certificate that no number of layers is enough"
                if verdict.witness is not None and (verdict.witness.n, verdict.witness.q, verdict.witness.k) != (n, q, k):
                    yield "the certificate is about another pair than the witness"
            case Path() if value is not None and len(part.layers) != value:
                yield f"the path takes {len(part.layers)} layers, and the verdict says {value}"
            case Chain() if value is not None and len(part.layers) + 1 != value:
                yield f"the chain excludes {len(part.layers)} layers, and the verdict says {value}"
            case Star(n, center) if value is not None:
                own = _at(_pairs(f"q == k and q == {value}"), n)
                if own.is_empty() or not own.is_subset(_pairs(center)):
                    yield f"position {value} is not among those of the certificate"
            case Powers() if value is not None and part.claims:
                if part.target is not None and part.layers != value:
                    yield f"the target is shown to take at most {part.layers} layers, and the verdict says {value}"
                if part.missing is not None and not 0 <= part.missing.claim < len(part.claims):
                    yield "the pair is missing from a claim that is not there"
                elif part.missing is not None and part.claims[part.missing.claim].layers + 1 != value:
                    yield f"the pair is missing from {part.claims[part.missing.claim].layers} layers, not {value} - 1"


@dataclass(frozen=True)
class _Layers:
    """The steps of every layer of a pattern, from its meaning."""

    pattern: Pattern
    mode: str

    @cached_property
    def _known(self) -> dict[Any, Any]:
        return {}

    def same(self, a: int, b: int) -> bool:
        return self.pattern.layer(a) == self.pattern.layer(b)

    @property
    def distinct(self) -> list[int]:
        """The first layer of each kind."""
        return list({self.pattern.layer(index): index for index in reversed(range(self.pattern.layers))}.values())

    def certain(self, layer: int, residual: bool) -> Relation:
        """The pairs of a layer that no draw decides."""
        return self._relation(layer, residual, drawn=False)

    def possible(self, layer: int, residual: bool) -> Relation:
        """All pairs that a layer may hold, whatever is drawn."""
        return self._relation(layer, residual, drawn=True)

    def _relation(self, layer: int, residual: bool, drawn: bool) -> Relation:
        pattern = self.pattern.layer(layer)
        key = (pattern, residual, drawn)
        if key not in self._known:
            parts = [diagonal()] if residual else []
            for head in range(pattern.heads):
                meaning = pattern.meaning(head=head)
                terms = [term for term in meaning.terms if drawn or not self._picks(term)]
                conditions = tuple(c for term in terms for c in term.conditions)
                exact = self.mode == "must" and (not drawn or few_atoms(conditions))
                parts.append(certain(conditions) if exact else realisable(conditions))
            self._known[key] = union(parts)
        relation: Relation = self._known[key]
        return relation

    def _picks(self, term: Term) -> bool:
        """Whether no relation describes what the term holds: scores favour any pair in mode "may", and none in "must"."""
        return any(self.mode == "must" or isinstance(choice, Random) for choice in term.choices)

    def picks(self, layer: int) -> list[tuple[int, Term]]:
        """The terms that relations do not describe, with their heads."""
        pattern = self.pattern.layer(layer)
        return [(head, term) for head in range(pattern.heads) for term in pattern.meaning(head=head).terms if self._picks(term)]

    def drawn(self, layer: int, queries: Array, n: int) -> Iterator[tuple[Array, Array]]:
        """The queries and keys of the pairs that picks hold, or with selections among them, may hold."""
        for head, term in self.picks(layer):
            allowed = certain(term.conditions) if self.mode == "must" else realisable(term.conditions)
            choices = [choice for choice in term.choices if isinstance(choice, Random)]
            if not choices:
                raise BudgetExceeded("selections have no pairs that can be listed")
            first, size = choices[0], max(1, _KEYS // (choices[0].draws * choices[0].block))
            for rows in (queries[at : at + size] for at in range(0, len(queries), size)):
                blocks = _blocks(first, term, head, rows, n)
                keys = (blocks[:, :, None] * first.block + np.arange(first.block)).reshape(len(rows), -1)
                held = np.repeat(blocks >= 0, first.block, axis=1) & (keys < n)
                held &= np.broadcast_to(evaluate(allowed.predicate, {"q": rows[:, None], "k": keys, "n": n}, np), keys.shape)
                for other in choices[1:]:
                    also = _blocks(other, term, head, rows, n)
                    held &= (keys[:, :, None] // other.block == also[:, None, :]).any(-1)
                yield np.broadcast_to(rows[:, None], keys.shape)[held], keys[held]


def _blocks(choice: Random, term: Term, head: int, queries: Array, n: int) -> Array:
    return np.stack(draw(choice, term.relation.block_rows(choice.block), head, queries // choice.block, n, np), 1)


def _complaints(layers: _Layers, certificate: Certificate) -> Iterator[str]:
    n = 1 if isinstance(certificate, Joint) else certificate.n
    if n is not None and not 1 <= n <= MAX_N:
        yield f"{n} is not a sequence length"
        return
    match certificate:
        case Path():
            yield from _path(layers, certificate)
        case ClosedSet():
            yield from _closed(layers, certificate)
        case Chain():
            yield from _chain(layers, certificate)
        case Powers():
            yield from _powers(layers, certificate)
        case Star():
            yield from _star(_Layers(layers.pattern, "must"), certificate)
        case Joint(parts):
            for part in parts:
                yield from _complaints(layers, part)


def _path(layers: _Layers, path: Path) -> Iterator[str]:
    if len(path.positions) != len(path.layers) + 1:
        yield "the path does not have one position more than layers"
        return
    if not all(0 <= position < path.n for position in path.positions):
        yield "the path has positions outside the sequence"
        return
    if not _consecutive(layers, path.layers):
        yield NOT_CONSECUTIVE
        return
    for layer, q, k in zip(path.layers, path.positions, path.positions[1:], strict=False):
        if layers.certain(layer, path.residual).contains(q, k, path.n):
            continue
        pairs = layers.drawn(layer, np.array([q], np.int64), path.n)
        if not any(k in keys for _, keys in pairs):
            yield f"query {q} does not read key {k} in layer {layer}"


def _closed(layers: _Layers, closed: ClosedSet) -> Iterator[str]:
    if not _well_formed(closed.runs, closed.n):
        yield "the set is not made of positions of the sequence"
        return
    if not _inside(closed.q, closed.runs) or _inside(closed.k, closed.runs):
        yield f"the set does not hold query {closed.q} and lack key {closed.k}"
    for layer in layers.distinct:
        yield from _stays(layers, layer, closed.runs, closed.runs, closed.n, residual=False)


def _chain(layers: _Layers, chain: Chain) -> Iterator[str]:
    if len(chain.sets) != len(chain.layers) + 1:
        yield "the chain does not have one set more than layers"
        return
    if not all(_well_formed(runs, chain.n) for runs in chain.sets):
        yield "the sets are not made of positions of the sequence"
        return
    if not _inside(chain.start, chain.sets[0]):
        yield "the first set lacks the start"
    if _inside(chain.k, chain.sets[-1]):
        yield f"the last set holds key {chain.k}"
    if not _consecutive(layers, chain.layers):
        yield NOT_CONSECUTIVE
        return
    for layer, runs, after in zip(chain.layers, chain.sets, chain.sets[1:], strict=False):
        yield from _stays(layers, layer, runs, after, chain.n, chain.residual)


def _powers(layers: _Layers, powers: Powers) -> Iterator[str]:
    if not powers.claims:
        yield "there are no claims"
        return
    if powers.target is None and powers.missing is None:
        yield "neither a target nor a missing pair is claimed"
    relations: list[Relation] = []
    for number, claim in enumerate(powers.claims):
        if not all(0 <= part < number for part in claim.parts) or len(claim.parts) not in (0, 2):
            yield f"claim {number} does not rest on two earlier ones"
            return
        if claim.first < 0:
            yield f"claim {number} begins below the lowest layer"
            return
        relations.append(_at(_pairs(claim.condition), powers.n))
        if not claim.parts and claim.layers == 0:
            least = most = _at(diagonal(), powers.n)
        elif not claim.parts:
            if claim.layers != 1:
                yield f"claim {number} is about one layer, and says {claim.layers}"
                return
            least = _at(layers.certain(claim.first, powers.residual), powers.n)
            most = _at(layers.possible(claim.first, powers.residual), powers.n)
        else:
            low, high = (powers.claims[part] for part in claim.parts)
            if claim.first != low.first or claim.layers != low.layers + high.layers:
                yield f"claim {number} is not about the layers of its parts"
            above = low.first + low.layers
            if not all(layers.same(above + i, high.first + i) for i in range(min(high.layers, layers.pattern.layers))):
                yield f"claim {number} joins layers that do not follow each other"
            least = most = relations[claim.parts[1]].then(relations[claim.parts[0]])
        if powers.target is not None and not relations[-1].is_subset(least):
            yield f"claim {number} holds more than its layers connect"
        if powers.missing is not None and not most.is_subset(relations[-1]):
            yield f"claim {number} holds less than its layers may connect"
    if powers.target is not None and not _at(_pairs(powers.target), powers.n).is_subset(relations[-1]):
        yield "the last claim does not hold the target"
    if powers.missing is not None:
        pair = powers.missing
        known = 0 <= pair.claim < len(relations) and 0 <= pair.q < pair.n and 0 <= pair.k < pair.n
        if not known or powers.n not in (None, pair.n) or relations[pair.claim].contains(pair.q, pair.k, pair.n):
            yield "the missing pair is not missing"
        elif powers.target is not None and not _pairs(powers.target).contains(pair.q, pair.k, pair.n):
            yield "the missing pair is not one of the target"


def _star(layers: _Layers, star: Star) -> Iterator[str]:
    pairs = _at(everything(), star.n)
    centers = _at(_pairs(star.center) & diagonal(), star.n)
    if not pairs.is_subset(pairs.then(centers).then(pairs)):
        yield "there is some n without such a position"
    others = centers.then(pairs) - diagonal()
    for layer in layers.distinct:
        held = layers.certain(layer, residual=False)
        if not others.is_subset(held):
            yield f"in layer {layer} one of them does not read every other position"
        if not others.inverse().is_subset(held):
            yield f"in layer {layer} one of them is not read by every other position"


def _pairs(condition: str) -> Relation:
    return parse(f"where({condition})").meaning().static


def _at(relation: Relation, n: int | None) -> Relation:
    return relation if n is None else relation.at(n)


def _consecutive(layers: _Layers, numbers: Sequence[int]) -> bool:
    period = layers.pattern.layers
    return min(numbers, default=0) >= 0 and not any((layer - below - 1) % period for layer, below in pairwise(numbers))


def _well_formed(runs: Runs, n: int | None) -> bool:
    return all(0 <= a <= b < (n or MAX_N) and step > 0 and (b - a) % step == 0 for a, b, step in runs)


def _inside(position: int, runs: Runs) -> bool:
    return any(a <= position <= b and (position - a) % step == 0 for a, b, step in runs)


def _stays(layers: _Layers, layer: int, source: Runs, allowed: Runs, n: int | None, residual: bool) -> Iterator[str]:
    """Complains where a step of the layer leads from ``source`` out of ``allowed``."""
    relation, leaves = layers.certain(layer, residual), f"a step of layer {layer} leaves the set"
    few = len(source) + len(allowed) <= MAX_EXACT_RUNS
    if few:
        here, there = Positions.of(source), Positions.of(allowed)
        if not _at(relation, n).image(here).is_subset(there):
            yield leaves
        if not layers.picks(layer) or _at(layers.possible(layer, residual), n).image(here).is_subset(there):
            return
    if n is None or n > MAX_MEMBERS:
        yield "its sets are too large to check"
        return
    queries, outside = np.flatnonzero(_members(source, n)), ~_members(allowed, n)
    if not few and _walks_out(relation, queries, outside, n):
        yield leaves
    if any(bool(outside[keys].any()) for _, keys in layers.drawn(layer, queries, n)):
        yield f"a drawn key of layer {layer} leaves the set"


def _members(runs: Runs, n: int) -> npt.NDArray[np.bool_]:
    inside = np.zeros(n, bool)
    for first, last, step in runs:
        inside[first : last + 1 : step] = True
    return inside


def _walks_out(relation: Relation, queries: Array, outside: npt.NDArray[np.bool_], n: int) -> bool:
    """Whether some query reads a position outside: counted along each run of keys by differences of running sums."""
    for loop in relation.rows:
        counts = evaluate(loop.count, {"q": queries, "n": n}, np) + 0 * queries
        starts = (evaluate(loop.start, {"q": queries, "n": n}, np) + 0 * queries)[counts > 0]
        lasts = starts + (counts[counts > 0] - 1) * loop.step
        padded = np.zeros((-(-n // loop.step) + 1) * loop.step, np.int64)
        padded[loop.step : loop.step + n] = outside
        sums = padded.reshape(-1, loop.step).cumsum(0).reshape(-1)  # of every step-th position up to here
        if (sums[lasts + loop.step] > sums[starts]).any():
            return True
    return False
