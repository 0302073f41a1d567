"""How far information travels at one n, by running the graph: for patterns with draws, and where relations are too complex.

For a set of keys, one pass over the layers, bottom first, gives the queries that reach each of them (`columns`), exactly. The
largest number of layers that any key needs is the hop diameter. Few keys give a lower bound with a pair that attains it;
blocks of keys (`patternc.analysis.quotient`) give upper bounds, first of large blocks, then of halves of those that are not
settled; keys in blocks that stay unsettled are run one by one, as long as time allows. If all pairs are to be connected,
a landmark v gives another upper bound: what all need to reach v, and v needs to reach all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from patternc.analysis.allowance import Allowance, Unaffordable
from patternc.analysis.attractor import forced
from patternc.analysis.bitsets import Bools, Ints, Reader, Runs, Words, column, nonempty, singletons, some
from patternc.analysis.certificate import Certificate, ClosedSet, Path
from patternc.analysis.edges import Inputs, Layer, check_dense, is_causal, layers_at, relation_runs
from patternc.analysis.quotient import NEVER, Power, Quotient
from patternc.analysis.steps import Mode, Target
from patternc.analysis.targets import Targets
from patternc.analysis.tiles import share_of_full, squared
from patternc.analysis.verdict import Verdict, bounded, proved, refuted, unknown
from patternc.pattern import MAX_N, Pattern, parse
from patternc.relation import BudgetExceeded, Pair, Relation

SECONDS = 20.0
BYTES = 1 << 30
MAX_RUNS = 1 << 16
MAX_PATH = 4_096
MOST_BLOCKS = (8_192, 1_024)
_PROBES = 256
_SMALL = 1_024
_WIDTH = 256  # keys of a batch, where n is large


@dataclass(frozen=True, eq=False)
class Stack:
    """The layers of one period at one n, from the starting layer up."""

    n: int
    layers: tuple[Layer, ...]
    start: int
    residual: bool
    allowance: Allowance

    @staticmethod
    def of(pattern: Pattern, n: int, mode: Mode, residual: bool, start: int, inputs: Inputs, allowance: Allowance) -> Stack:
        layers = layers_at(pattern, n, mode, inputs, allowance)
        turn = start % len(layers)
        return Stack(n, layers[turn:] + layers[:turn], start, residual, allowance)

    @cached_property
    def distinct(self) -> tuple[Layer, ...]:
        return tuple({id(layer): layer for layer in self.layers}.values())

    @cached_property
    def selects(self) -> bool:
        """Whether what is read depends on scores that are not known."""
        return any(layer.selections for layer in self.layers)

    @cached_property
    def _readers(self) -> dict[int, Reader]:
        return {id(layer): layer.reader(self.allowance) for layer in self.distinct}

    def layer(self, index: int) -> Layer:
        """Layer ``index``, counted from 0 at the bottom."""
        return self.layers[index % len(self.layers)]

    def number(self, index: int) -> int:
        """Its number in the pattern."""
        return (self.start + index) % len(self.layers)

    def readers(self, index: int, sets: Words, count: int) -> Words:
        """Of each set, the queries that reach it through one layer."""
        self.allowance.check()
        layer = self.layer(index)
        out = sets.copy() if self.residual else np.zeros_like(sets)
        self._readers[id(layer)].read(sets, out)
        for selection in layer.selections:
            forced(selection, sets, count, out, self.allowance)
        return out

    def read(self, index: int, queries: Bools) -> Bools:
        """The keys that any of the queries reads through one layer."""
        self.allowance.check()
        found = self.layer(index).mark(queries)
        return found | queries if self.residual else found

    def read_anywhere(self, queries: Bools) -> Bools:
        """The keys that any of the queries reads in any layer."""
        self.allowance.check()
        out = np.zeros(self.n, bool)
        for layer in self.distinct:
            out |= layer.mark(queries)
        return out

    def columns(self, keys: Ints) -> Iterator[Words]:
        """For 0, 1, 2, ... layers, the queries that reach each key through exactly so many."""
        sets = singletons(keys, self.n)
        index = 0
        while True:
            yield sets
            sets = self.readers(index, sets, len(keys))
            index += 1

    def width(self) -> int:
        """Keys of a batch, so that its arrays fit."""
        words = self.allowance.room // (10 * 8 * (self.n + 1))
        if words < 1:
            raise Unaffordable(f"one batch of keys needs more memory than is left of {self.allowance.memory >> 20:,} MiB")
        return 64 * min(words, -(-self.n // 64), max(_WIDTH // 64, (1 << 17) // self.n))


def numeric_diameter(
    pattern: Pattern,
    n: int,
    *,
    mode: Mode = "may",
    target: Target = None,
    residual: bool = True,
    start_layer: int = 0,
    limit_seconds: float = SECONDS,
    limit_bytes: int = BYTES,
    **inputs: Any,
) -> Verdict:
    """The least number of layers that connects every pair of the target at ``n``, as the verdict's ``value``.

    Proved if it is exact, with a pair that needs so many layers and a `Path` for it. Refuted, with the value infinity, if some
    pair is never connected; without runtime inputs a `ClosedSet` shows it. Bounded, if time or memory end before: ``lower``
    is attained by the witness, and ``upper`` (None: no such bound) holds for all pairs.

    Args:
        mode: "may" takes every pair that some value of the missing runtime inputs allows, "must" those that every value does.
        target: the pairs to connect; by default k <= q if no layer reads ahead, else all pairs.
        residual: whether each layer also passes on every position itself; otherwise walks have exactly as many steps as
            there are layers.
        start_layer: the layer of the schedule at the bottom.
        limit_seconds: how long to try; it ends soon after.
        limit_bytes: how large the arrays may become.
        inputs: runtime inputs by name, as for `Pattern.mask`.

    Raises:
        ValueError: n or the starting layer is out of range, or an input has the wrong shape.
    """
    _check(n, start_layer)
    claim = (
        f"layers connect {'every query with every key that it is to reach' if target is None else 'the target'} at n = {n:,}"
    )
    allowance = Allowance(limit_seconds, limit_bytes)
    try:
        stack = Stack.of(pattern, n, mode, residual, start_layer, inputs, allowance)
        targets = _targets(pattern, n, target, inputs, allowance)
    except (Unaffordable, BudgetExceeded) as error:
        return unknown(claim, str(error))
    return _Search(stack, targets, claim, is_known=not any(name in inputs for name in pattern.inputs)).run()


def numeric_distances(
    pattern: Pattern,
    q: int,
    n: int,
    *,
    mode: Mode = "may",
    residual: bool = True,
    start_layer: int = 0,
    limit_seconds: float = SECONDS,
    limit_bytes: int = BYTES,
    **inputs: Any,
) -> Ints:
    """For every key, the least number of layers through which query q reads it; -1 where none does.

    Raises:
        ValueError: n, q or the starting layer is out of range, or an input has the wrong shape.
        Unaffordable: it takes longer or needs more memory than allowed.
        BudgetExceeded: the exact set computation is over its budget.
    """
    _check(n, start_layer, q)
    stack = Stack.of(pattern, n, mode, residual, start_layer, inputs, Allowance(limit_seconds, limit_bytes))
    return _distances_by_columns(stack, q) if stack.selects else _distances(stack, q)


def numeric_field(
    pattern: Pattern,
    layers: int,
    q: int,
    n: int,
    *,
    mode: Mode = "may",
    residual: bool = True,
    start_layer: int = 0,
    limit_seconds: float = SECONDS,
    limit_bytes: int = BYTES,
    **inputs: Any,
) -> Bools:
    """Which keys query q reads through so many layers.

    Raises:
        ValueError: n, q, the starting layer or ``layers`` is out of range, or an input has the wrong shape.
        Unaffordable: it takes longer or needs more memory than allowed.
        BudgetExceeded: the exact set computation is over its budget.
    """
    _check(n, start_layer, q)
    _check_layers(layers)
    stack = Stack.of(pattern, n, mode, residual, start_layer, inputs, Allowance(limit_seconds, limit_bytes))
    if stack.selects:
        parts = [some(_after(stack.columns(keys), layers)[q], len(keys)) for keys in _batches(stack)]
        return np.concatenate(parts)
    found = _only(q, n)
    for index in reversed(range(layers)):
        found = stack.read(index, found)
    return found


def connected(
    pattern: Pattern,
    layers: int,
    n: int,
    *,
    mode: Mode = "may",
    residual: bool = True,
    start_layer: int = 0,
    limit_seconds: float = SECONDS,
    limit_bytes: int = BYTES,
    **inputs: Any,
) -> Bools:
    """All pairs (q, k) that so many layers connect, as a dense mask.

    Raises:
        ValueError: n, the starting layer or ``layers`` is out of range, or an input has the wrong shape.
        Unaffordable: it takes longer or needs more memory than allowed.
        BudgetExceeded: the exact set computation is over its budget.
    """
    _check(n, start_layer)
    _check_layers(layers)
    stack = Stack.of(pattern, n, mode, residual, start_layer, inputs, Allowance(limit_seconds, limit_bytes))
    check_dense(n, "all pairs are dense", stack.allowance, 3)
    found = np.zeros((n, n), bool)
    for keys in _batches(stack):
        sets = _after(stack.columns(keys), layers)
        found[:, keys] = np.unpackbits(sets[:-1].view(np.uint8), axis=1, count=len(keys), bitorder="little")
    return found


def numeric_path(
    pattern: Pattern,
    q: int,
    k: int,
    n: int,
    *,
    mode: Mode = "may",
    residual: bool = True,
    start_layer: int = 0,
    limit_seconds: float = SECONDS,
    limit_bytes: int = BYTES,
    **inputs: Any,
) -> Path | None:
    """A way from query q to key k through as few layers as possible, of real edges; None if there is none.

    Raises:
        ValueError: n, a position or the starting layer is out of range, or an input has the wrong shape.
        Unaffordable: it takes longer or needs more memory than allowed, or no single way is sure (unknown scores decide).
        BudgetExceeded: the exact set computation is over its budget.
    """
    _check(n, start_layer, q, k)
    stack = Stack.of(pattern, n, mode, residual, start_layer, inputs, Allowance(limit_seconds, limit_bytes))
    if stack.selects:
        raise Unaffordable("scores that are not known decide the way")
    return _path(stack, q, k)


class _Never(Exception):
    """A pair that no number of layers connects, and a closed set that shows it."""

    def __init__(self, pair: Pair, runs: tuple[tuple[int, int, int], ...]):
        super().__init__(pair, runs)
        self.pair, self.runs = pair, runs


class _Search:
    """One search for the number of layers; what is known at any time is ``lower``, ``upper`` and the pair for ``lower``."""

    def __init__(self, stack: Stack, targets: Targets, claim: str, is_known: bool):
        self._stack, self._targets, self._claim, self._is_known = stack, targets, claim, is_known
        self._allowance, self._n = stack.allowance, stack.n
        self.lower = 0
        self.upper: float = math.inf
        self._pace = math.inf  # seconds for a key
        self._open: tuple[Ints, int] | None = None  # the blocks that are not settled, and their size
        self.pair: Pair | None = None

    def run(self) -> Verdict:
        try:
            return self._grow() if self._stack.residual or self._stays() else self._walks()
        except Unaffordable as error:
            return self._so_far(str(error))
        except _Never as never:
            return self._refuted(never)

    def _stays(self) -> bool:
        """Whether every position reads itself in every layer, so that residual streams change nothing."""
        return all(bool(_reads_at(layer, 0).all()) for layer in self._stack.distinct)

    def _grow(self) -> Verdict:
        """The search where more layers connect more."""
        with self._allowance.within(0.3):
            self._look_for_gaps()
        probes = self._first_probes()
        done = np.zeros(0, np.intp)
        with self._allowance.within(0.3):
            self._run_all(probes)
            done = probes
        if len(done) == self._n:
            return self._exact()
        trivial = self.upper
        for most in MOST_BLOCKS if self._n > _SMALL else ():
            if self.upper == trivial:
                with self._allowance.within(0.5):
                    self._by_blocks(most)
        if self.upper > self.lower:
            with self._allowance.within(0.5):
                self._by_landmarks()
        if self.upper > self.lower:
            left = self._open_keys(done)
            expected = self._pace * len(left)
            if expected > 2 * self._allowance.left:
                raise Unaffordable(f"the exact number would take about {expected:,.0f} seconds")
            self._run_all(left)
        return self._exact()

    # The stages

    def _look_for_gaps(self) -> None:
        """Raise `_Never` if some pair of a default target is never connected; cheap, and not always sure to find it."""
        stack, n = self._stack, self._n
        if stack.selects or self._targets.runs is not None or n == 1:
            return
        finite = len(stack.layers) * (n - 1)  # enough where every position reads its neighbours
        back = np.logical_or.reduce([_reads_at(layer, -1) for layer in stack.distinct])[1:]
        if self._targets.causal:
            if not back.all():
                q = int(np.flatnonzero(~back)[0]) + 1
                raise _Never(Pair(n, q, q - 1), ((0, q - 2, 1), (q, q, 1)) if q > 1 else ((q, q, 1),))
            self.upper = finite
            return
        forth = np.logical_or.reduce([_reads_at(layer, 1) for layer in stack.distinct])[:-1]
        if back.all() and forth.all():
            self.upper = finite
            return
        reached = self._closure(0)
        if not reached.all():
            missed = np.flatnonzero(~reached)
            self._never_of(missed[np.linspace(0, len(missed) - 1, min(64, len(missed))).astype(np.intp)])
        self._never_of(np.zeros(1, np.intp))

    def _closure(self, q: int) -> Bools:
        """All that one query reads through any number of layers."""
        seen = front = _only(q, self._n)
        while front.any():
            front = self._stack.read_anywhere(front) & ~seen
            seen = seen | front
        return seen

    def _never_of(self, keys: Ints) -> None:
        """Raise `_Never` with the simplest closed set if some query that is to reach one of the keys never does."""
        before, sets = None, singletons(keys, self._n)
        while before is None or (sets != before).any():
            before = sets
            for index in range(len(self._stack.layers)):
                sets = self._stack.readers(index, sets, len(keys)) | sets
        todo = self._targets.of_keys(keys) & ~sets
        stuck = np.flatnonzero(nonempty(todo, len(keys)))
        if len(stuck):
            outside = [_runs(~column(sets, int(j))) for j in stuck]
            best = min(range(len(stuck)), key=lambda i: len(outside[i]))
            q = int(np.flatnonzero(column(todo, int(stuck[best])))[0])
            raise _Never(Pair(self._n, q, int(keys[stuck[best]])), outside[best])

    def _first_probes(self) -> Ints:
        """Keys that are likely to be far from some query: the ends, those that few queries read, and some at random."""
        n = self._n
        if n <= _PROBES:
            return np.arange(n)
        readers = np.zeros(n, np.intp)
        for layer in self._stack.distinct:
            for one in layer.runs:
                if one.longest == 1:
                    readers += np.bincount(one.first, minlength=n)
        near = np.convolve(readers, np.ones(min(n, 65), np.intp), "same") if readers.any() else readers
        rare = np.argsort(near + readers, kind="stable")[: _PROBES // 2]
        spread = np.linspace(0, n - 1, _PROBES // 4).astype(np.intp)
        drawn = np.random.default_rng(0).integers(0, n, _PROBES // 4 - 2)
        return np.unique(np.concatenate([rare, spread, drawn, [n - 1, n // 2]]))[:_PROBES]

    def _run_all(self, keys: Ints) -> None:
        """Raise ``lower`` to what any of the keys needs."""
        width = self._stack.width()
        for at in range(0, len(keys), width):
            begun = self._allowance.left
            self._run(keys[at : at + width])
            self._pace = (begun - self._allowance.left) / len(keys[at : at + width])

    def _run(self, keys: Ints) -> None:
        todo = self._targets.of_keys(keys)
        before: Words | None = None
        quiet = 0
        for level, sets in enumerate(self._stack.columns(keys)):
            todo &= ~sets
            left = nonempty(todo, len(keys))
            if not left.any():
                return
            if level >= self.lower:
                j = int(np.flatnonzero(left)[0])
                self.lower, self.pair = level + 1, Pair(self._n, int(np.flatnonzero(column(todo, j))[-1]), int(keys[j]))
            quiet = quiet + 1 if before is not None and bool((sets == before).all()) else 0
            if quiet == len(self._stack.layers):
                self._never_of(keys)
            before = sets

    def _by_blocks(self, most: int) -> None:
        """Lower ``upper`` by blocks, first at most so many, halving those that are not settled while that is not too dear."""
        stack, n = self._stack, self._n
        powers, size = _powers(stack.layers, n, most)
        blocks = np.arange(-(-n // max(size, 1)))
        above = np.full(len(blocks), NEVER)
        while size > 1:
            begun = self._allowance.left
            quotient = Quotient(stack.layers, self._targets, size, powers, self._allowance)
            depths = np.minimum(quotient.depths(blocks, n), above)
            took = begun - self._allowance.left
            worst = int(depths.max(initial=0))
            if worst < NEVER:
                self.upper = min(self.upper, max(worst, self.lower))
            if self.upper == self.lower:
                return
            self._run_all(_keys_of(blocks[depths == worst], size, n, stack.width()))
            left = depths > self.lower
            blocks, depths, share = blocks[left], depths[left], 4 * took / len(left)
            self._open = blocks, size
            if not len(blocks):
                self.upper = self.lower
                return
            dear = share * len(blocks)
            if self._pace * len(blocks) * size < dear or dear > self._allowance.left:
                return
            above = np.repeat(depths, 2)
            size //= 2
            children = np.stack([2 * blocks, 2 * blocks + 1], 1).reshape(-1)
            above, blocks = above[children * size < n], children[children * size < n]

    def _by_landmarks(self) -> None:
        """Lower ``upper`` by ways through one position, where all pairs are to be connected."""
        stack, n = self._stack, self._n
        if stack.selects or self._targets.causal or self._targets.runs is not None:
            return
        marks = np.unique(np.random.default_rng(1).integers(0, n, 64))
        arrived = np.zeros(len(marks), np.intp)
        for level, sets in enumerate(stack.columns(marks)):
            all_arrive = some(np.bitwise_and.reduce(sets[:-1], axis=0), len(marks))
            arrived[all_arrive & (arrived == 0)] = level
            if all_arrive.all() or level > n:
                break
        for j in np.argsort(arrived, kind="stable")[:8]:
            seen, layers = _only(int(marks[j]), n), 0
            while not seen.all() and arrived[j] + layers < self.upper:
                for index in reversed(range(len(stack.layers))):
                    seen = stack.read(index, seen)
                layers += len(stack.layers)
            if seen.all():
                self.upper = min(self.upper, int(arrived[j]) + layers)

    def _open_keys(self, done: Ints) -> Ints:
        """Keys that may need more layers than ``lower``."""
        keys = np.arange(self._n) if self._open is None else _keys_of(*self._open, self._n)
        return np.setdiff1d(keys, done, assume_unique=True)

    # Walks of exact length, where a position may be lost

    def _walks(self) -> Verdict:
        """The search where more layers need not connect more: all pairs at once, until the layers repeat themselves."""
        with self._allowance.within(0.3):
            self._look_for_gaps()
        self.upper, n, period = math.inf, self._n, len(self._stack.layers)
        check_dense(n, "walks of exact length take all pairs at once", self._allowance, 2)
        keys = np.arange(n)
        wanted = self._targets.of_keys(keys) | (singletons(keys, n) if self._targets.runs is None else self._own(keys))
        mark: Words | None = None
        next_mark = 0
        for level, sets in enumerate(self._stack.columns(keys)):
            missed = wanted & ~sets
            left = nonempty(missed, n)
            if not left.any():
                self.upper = level
                return self._exact()
            j = int(np.flatnonzero(left)[0])
            self.lower, self.pair = level + 1, Pair(n, int(np.flatnonzero(column(missed, j))[0]), j)
            if mark is not None and level % period == 0 and bool((mark == sets).all()):
                words = (
                    f"after {level:,} layers the pairs that are connected repeat themselves, and never hold all of the target"
                )
                return replace(unknown(self._claim, words), status="refuted", value=math.inf)
            if level == next_mark:
                mark, next_mark = sets, 2 * max(level, period)
        raise AssertionError("the layers never end")

    def _own(self, keys: Ints) -> Words:
        """The keys that are to reach themselves."""
        assert self._targets.runs is not None
        wanted = np.zeros(self._n, bool)
        for one in self._targets.runs:
            wanted[one.rows] |= _holds(one, one.rows)
        own = singletons(keys, self._n)
        own[:-1][~wanted] = 0
        return own

    # The verdicts

    def _exact(self) -> Verdict:
        few = f"{self.lower:,} {'layer is' if self.lower == 1 else 'layers are'} enough for all, and needed by {self.pair}"
        reason = few if self.lower else "every position reads itself without any layer"
        certificate: Certificate | None = None
        if self.pair is not None and self.lower <= MAX_PATH and not self._stack.selects:
            with self._allowance.within(1.0):
                certificate = _path(self._stack, self.pair.q, self.pair.k)
        verdict = proved(self._claim, reason, value=self.lower, certificate=certificate)
        return replace(verdict, witness=self.pair)

    def _refuted(self, never: _Never) -> Verdict:
        is_checked = self._is_known and not self._stack.selects and len(never.runs) <= MAX_RUNS
        certificate = ClosedSet(self._n, never.runs, never.pair.q, never.pair.k) if is_checked else None
        words = f"no number of layers connects {never.pair}"
        return refuted(self._claim, never.pair, lambda _: words, value=math.inf, certificate=certificate)

    def _so_far(self, reason: str) -> Verdict:
        if self.lower == 0 and self.upper == math.inf:
            return unknown(self._claim, reason)
        upper = None if self.upper == math.inf else int(self.upper)
        said = f"at least {self.lower:,}" if upper is None else f"between {self.lower:,} and {upper:,}"
        shown = f"the number of layers is {said}, by exact runs of some keys and of blocks of all; {reason}"
        return replace(bounded(self._claim, self.lower, upper, shown), witness=self.pair)


def _distances(stack: Stack, q: int) -> Ints:
    """Layers are walked from the top, so their number modulo the period says where to begin; then whole periods follow."""
    period = len(stack.layers)
    found = np.full(stack.n, -1)
    for extra in range(period):
        front = _only(q, stack.n)
        for index in reversed(range(extra)):
            front = stack.read(index, front)
        seen, layers = front, extra
        while front.any():
            better = front & ((found < 0) | (found > layers))
            found[better] = layers
            for index in reversed(range(period)):
                front = stack.read(index, front)
            front = front & ~seen
            seen, layers = seen | front, layers + period
    return found


def _distances_by_columns(stack: Stack, q: int) -> Ints:
    """Where unknown scores decide, each key needs a run of its own; exact lengths are not walked."""
    if not stack.residual:
        raise Unaffordable("walks of exact length are not followed through selections")
    found = np.full(stack.n, -1)
    for keys in _batches(stack):
        before: Words | None = None
        quiet = 0
        for level, sets in enumerate(stack.columns(keys)):
            here = some(sets[q], len(keys)) & (found[keys] < 0)
            found[keys[here]] = level
            quiet = quiet + 1 if before is not None and bool((sets == before).all()) else 0
            if (found[keys] >= 0).all() or quiet == len(stack.layers):
                break
            before = sets
    return found


def _path(stack: Stack, q: int, k: int) -> Path | None:
    hops = int(_distances(stack, q)[k])
    if hops < 0:
        return None
    below: list[npt.NDArray[np.uint8]] = []
    for _, sets in zip(range(hops), stack.columns(np.array([k])), strict=False):
        below.append(np.packbits(column(sets, 0), bitorder="little"))
        stack.allowance.hold(below[-1].nbytes)
    positions = [q]
    for index in reversed(range(hops)):
        here = positions[-1]
        keys = stack.layer(index).keys(here)
        keys = np.append(keys, here) if stack.residual else keys
        reaches = below[index][keys // 8] >> (keys % 8).astype(np.uint8) & 1 != 0
        positions.append(int(keys[np.argmax(reaches)]))
    return Path(stack.n, tuple(stack.number(index) for index in reversed(range(hops))), tuple(positions), stack.residual)


def _batches(stack: Stack) -> Iterator[Ints]:
    width = stack.width()
    for at in range(0, stack.n, width):
        yield np.arange(at, min(stack.n, at + width))


def _after(columns: Iterator[Words], layers: int) -> Words:
    return next(islice(columns, layers, None))


def _targets(pattern: Pattern, n: int, target: Target, inputs: Inputs, allowance: Allowance) -> Targets:
    match target:
        case None:
            return Targets(n, is_causal(pattern))
        case Relation():
            return Targets(n, False, tuple(relation_runs(target, n, allowance)))
    wanted = parse(target) if isinstance(target, str) else target
    layers = {id(layer): layer for layer in layers_at(wanted, n, "may", inputs, allowance)}
    return Targets(n, False, tuple(one for layer in layers.values() for one in layer.runs))


def _powers(layers: tuple[Layer, ...], n: int, most: int) -> tuple[tuple[Power, ...], int]:
    """The largest size of blocks that are mostly read in full, and the powers of a layer that make them at most ``most``.

    The size is 0 if there is none.
    """
    runs = layers[0].runs
    powers: tuple[Power, ...] = ()
    wide = max((one for one in runs if one.step == 1 and len(one.rows) == n), key=lambda one: one.longest, default=None)
    while True:
        size = _full_size((*runs, *(one for _, one in powers)), n)
        if size * most >= n:
            return powers, size
        further = squared(wide, n) if wide is not None and len(layers) == 1 else None
        if further is None or wide is None or further.longest <= wide.longest:
            return (), 0
        powers, wide = (*powers, (2 << len(powers), further)), further


def _full_size(runs: tuple[Runs, ...], n: int) -> int:
    """The largest size of blocks of which nearly all are read in full by every query of some block; 1 if there is none."""
    spans = [one.longest for one in runs if one.step == 1 and not one.is_constant]
    size = 1 << max(0, min(max(spans, default=1), n // 64).bit_length() - 1)
    while size > 1 and share_of_full(runs, n, size) <= 0.9:
        size //= 2
    return size


def _keys_of(blocks: Ints, size: int, n: int, most: int | None = None) -> Ints:
    """The positions of blocks; of at most ``most`` of them, spread evenly."""
    keys = (blocks[:, None] * size + np.arange(size)).reshape(-1)
    keys = keys[keys < n]
    return keys if most is None or len(keys) <= most else keys[np.linspace(0, len(keys) - 1, most).astype(np.intp)]


def _reads_at(layer: Layer, offset: int) -> Bools:
    """Which queries q read key q + offset."""
    found = np.zeros(layer.n, bool)
    for one in layer.runs:
        found[one.rows] |= _holds(one, one.rows + offset)
    return found


def _holds(runs: Runs, keys: Ints) -> Bools:
    """Whether row by row a key is in the run."""
    inside = (runs.first <= keys) & (keys <= runs.last)
    return inside if runs.step == 1 else inside & ((keys - runs.first) % runs.step == 0)


def _only(position: int, n: int) -> Bools:
    found = np.zeros(n, bool)
    found[position] = True
    return found


def _runs(held: Bools) -> tuple[tuple[int, int, int], ...]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], held, [False]]).astype(np.int8)))
    return tuple((int(first), int(end) - 1, 1) for first, end in edges.reshape(-1, 2))


def _check(n: int, start_layer: int, *positions: int) -> None:
    if not 1 <= n <= MAX_N:
        raise ValueError(f"n is a sequence length from 1 to {MAX_N:,}, got {n!r}")
    if start_layer < 0:
        raise ValueError(f"start_layer must be at least 0, the bottom layer, got {start_layer}")
    for position in positions:
        if not 0 <= position < n:
            raise ValueError(f"{position} is not a position of a sequence of n = {n:,}")


def _check_layers(layers: int) -> None:
    if layers < 0:
        raise ValueError(f"layers must be at least 0, got {layers}")
