"""How far information travels at one n, by running the graph: for patterns with draws, and where relations are too complex.

For a set of keys, one pass over the layers, bottom first, gives the queries that reach each of them (`columns`), exactly. The
largest number of layers that any key needs is the hop diameter. Few keys give a lower bound with a pair that attains it;
blocks of keys (`patternc.analysis.quotient`) give upper bounds, first of large blocks, then of halves of those that are not
settled; keys in blocks that stay unsettled are run one by one, as long as time allows. If all pairs are to be connected,
a landmark v gives another upper bound: what all need to reach v, and v needs to reach all.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from patternc.analysis.allowance import Unaffordable
from patternc.analysis.bitsets import Ints, Words, column, nonempty, only, singletons, some
from patternc.analysis.certificate import Certificate, ClosedSet, Joint
from patternc.analysis.edges import Layer, check_dense, is_causal, layers_at, relation_runs
from patternc.analysis.gaps import Gap, check_keys, look_for_gaps
from patternc.analysis.quotient import NEVER, Quotient, keys_of, powers_for
from patternc.analysis.stack import Stack
from patternc.analysis.steps import Target
from patternc.analysis.targets import Targets
from patternc.analysis.tracing import MAX_RUNS, chain, path
from patternc.analysis.verdict import Verdict, bounded, proved, refuted, unknown
from patternc.pattern import Pattern, parse
from patternc.relation import BudgetExceeded, Pair, Relation

MAX_PATH = 4_096
MOST_BLOCKS = (8_192, 1_024)
_PROBES = 256
_SMALL = 1_024


def numeric_diameter(pattern: Pattern, n: int, *, target: Target = None, **options: Any) -> Verdict:
    """The least number of layers that connects every pair of the target at ``n``, as the verdict's ``value``.

    Proved if it is exact, with a pair that needs so many layers, a `Path` for it and a `Chain` that shows that fewer are not
    enough for it; that they are enough for all is what running the graph says. Refuted, with the value infinity, if some
    pair is never connected; without runtime inputs a `ClosedSet` shows it. Bounded, if time or memory end before: ``lower``
    is attained by the witness, and ``upper`` (None: no such bound) holds for all pairs.

    Args:
        target: the pairs to connect; by default k <= q if no layer reads ahead, else all pairs.
        options: those of `patternc.analysis.stack.Stack.of`: mode, residual, start_layer, limits and runtime inputs by name.

    Raises:
        ValueError: n or the starting layer is out of range, or an input has the wrong shape.
    """
    claim = (
        f"layers connect {'every query with every key that it is to reach' if target is None else 'the target'} at n = {n:,}"
    )
    wanted = parse(target) if isinstance(target, str) else target
    try:
        stack = Stack.of(pattern, n, target=wanted if isinstance(wanted, Pattern) else None, **options)
        targets = _targets(pattern, stack, wanted)
    except (Unaffordable, BudgetExceeded) as error:
        return unknown(claim, str(error))
    return _Search(stack, targets, claim, pattern.inputs).run()


class _Search:
    """One search for the number of layers; what is known at any time is ``lower``, ``upper`` and the pair for ``lower``."""

    def __init__(self, stack: Stack, targets: Targets, claim: str, inputs: tuple[str, ...]):
        self._stack, self._targets, self._claim, self._inputs = stack, targets, claim, inputs
        self._allowance, self._n = stack.allowance, stack.n
        self.lower = 0
        self.upper: float = math.inf
        self._pace = math.inf  # seconds for a key
        self._open: tuple[Ints, int] | None = None  # the blocks that are not settled, and their size
        self.pair: Pair | None = None

    def run(self) -> Verdict:
        try:
            return self._grow() if self._stack.grows else self._walks()
        except Unaffordable as error:
            return self._so_far(str(error))
        except Gap as gap:
            return self._refuted(gap)

    def _grow(self) -> Verdict:
        """The search where more layers connect more."""
        with self._allowance.within(0.3):
            self.upper = look_for_gaps(self._stack, self._targets)
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
                check_keys(self._stack, self._targets, keys)
            before = sets

    def _by_blocks(self, most: int) -> None:
        """Lower ``upper`` by blocks, first at most so many, halving those that are not settled while that is not too dear."""
        stack, n = self._stack, self._n
        powers, size = powers_for(stack.layers, n, most)
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
            self._run_all(keys_of(blocks[depths == worst], size, n, stack.width()))
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
            seen, layers = only(int(marks[j]), n), 0
            while not seen.all() and arrived[j] + layers < self.upper:
                for index in reversed(range(len(stack.layers))):
                    seen = stack.read(index, seen)
                layers += len(stack.layers)
            if seen.all():
                self.upper = min(self.upper, int(arrived[j]) + layers)

    def _open_keys(self, done: Ints) -> Ints:
        """Keys that may need more layers than ``lower``."""
        keys = np.arange(self._n) if self._open is None else keys_of(*self._open, self._n)
        return np.setdiff1d(keys, done, assume_unique=True)

    # Walks of exact length, where a position may be lost

    def _walks(self) -> Verdict:
        """The search where more layers need not connect more: all pairs at once, until the layers repeat themselves."""
        with self._allowance.within(0.3):
            look_for_gaps(self._stack, self._targets)
        n, period = self._n, len(self._stack.layers)
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
        own = singletons(keys, self._n)
        own[:-1][~Layer(self._n, self._targets.runs).reads_at(0)] = 0
        return own

    # The verdicts

    def _exact(self) -> Verdict:
        few = f"{self.lower:,} {'layer is' if self.lower == 1 else 'layers are'} enough for all, and needed by {self.pair}"
        reason = few if self.lower else "every position reads itself without any layer"
        verdict = proved(self._claim, reason, value=self.lower, certificate=self._certificate())
        return replace(verdict, witness=self.pair)

    def _certificate(self) -> Certificate | None:
        """The witness is reached through so many layers and, if no inputs decide it, not through fewer."""
        stack, pair = self._stack, self.pair
        if pair is None or self.lower > MAX_PATH or stack.selects or not stack.grows or not self._is_checked:
            return None
        with self._allowance.within(1.0):
            way = path(stack, pair.q, pair.k)
            fewer = None if self._inputs else chain(stack, pair.q, pair.k, self.lower - 1)
            return way if way is None or fewer is None else Joint((way, fewer))
        return None

    @property
    def _is_checked(self) -> bool:
        """Whether the pattern alone tells which pairs there are: a verifier has no inputs."""
        return not any(name in self._stack.inputs for name in self._inputs)

    def _refuted(self, gap: Gap) -> Verdict:
        short = self._is_checked and not self._stack.selects and len(gap.runs) <= MAX_RUNS
        certificate = ClosedSet(self._n, gap.runs, gap.pair.q, gap.pair.k) if short else None
        words = f"no number of layers connects {gap.pair}"
        return refuted(self._claim, gap.pair, lambda _: words, value=math.inf, certificate=certificate)

    def _so_far(self, reason: str) -> Verdict:
        if self.lower == 0 and self.upper == math.inf:
            return unknown(self._claim, reason)
        upper = None if self.upper == math.inf else int(self.upper)
        said = f"at least {self.lower:,}" if upper is None else f"between {self.lower:,} and {upper:,}"
        shown = f"the number of layers is {said}, by exact runs of some keys and of blocks of all; {reason}"
        return replace(bounded(self._claim, self.lower, upper, shown), witness=self.pair)


def _targets(pattern: Pattern, stack: Stack, wanted: Pattern | Relation | None) -> Targets:
    n = stack.n
    match wanted:
        case None:
            return Targets(n, is_causal(pattern))
        case Relation():
            return Targets(n, False, tuple(relation_runs(wanted, n, stack.allowance)))
    layers = {id(layer): layer for layer in layers_at(wanted, n, "may", stack.inputs, stack.allowance)}
    return Targets(n, False, tuple(one for layer in layers.values() for one in layer.runs))
