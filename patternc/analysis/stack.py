"""The layers of a pattern at one n, stacked: what they connect, as packed sets for many keys at once, or from one query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from patternc.analysis.allowance import Allowance, Unaffordable
from patternc.analysis.arguments import check_arguments
from patternc.analysis.attractor import forced
from patternc.analysis.bitsets import Bools, Ints, Reader, Words, singletons
from patternc.analysis.edges import Inputs, Layer, layers_at
from patternc.analysis.steps import Mode
from patternc.language.elaborate import scorer_names
from patternc.language.resolve import walk
from patternc.language.syntax import Name
from patternc.pattern import Pattern

SECONDS = 20.0
BYTES = 1 << 30
_BYTES_OF_A_POSITION = 48  # of the arrays that every run needs
_WIDTH = 256  # keys of a batch, where n is large


@dataclass(frozen=True, eq=False)
class Stack:
    """The layers of one period at one n, from the starting layer up."""

    n: int
    layers: tuple[Layer, ...]
    start: int
    residual: bool
    allowance: Allowance
    inputs: Inputs

    @staticmethod
    def of(
        pattern: Pattern,
        n: int,
        *,
        mode: Mode = "may",
        residual: bool = True,
        start_layer: int = 0,
        limit_seconds: float = SECONDS,
        limit_bytes: int = BYTES,
        target: Pattern | None = None,
        **inputs: Any,
    ) -> Stack:
        """The layers of a pattern at n.

        Args:
            mode: "may" takes every pair that some value of the missing runtime inputs allows, "must" those that every value
                does.
            residual: whether each layer also passes on every position itself; otherwise walks have exactly as many steps as
                there are layers.
            start_layer: the layer of the schedule at the bottom.
            limit_seconds: how long to try; it ends soon after.
            limit_bytes: how large the arrays may become.
            target: what the layers are to connect, if its runtime inputs are given too.
            inputs: runtime inputs by name, as for `Pattern.mask`.

        Raises:
            ValueError: n or the starting layer is out of range, or an input has the wrong shape or an unknown name.
            Unaffordable: it takes longer or needs more memory than allowed.
            BudgetExceeded: the exact set computation is over its budget.
        """
        check_arguments(n, mode=mode, start_layer=start_layer)
        for name in inputs.keys() - {*_names(pattern), *(_names(target) if target else ())}:
            raise ValueError(f"there is no option and no runtime input '{name}'; the inputs are {list(pattern.inputs)}")
        allowance = Allowance(limit_seconds, limit_bytes)
        allowance.fits(_BYTES_OF_A_POSITION * n)
        layers = layers_at(pattern, n, mode, inputs, allowance)
        turn = start_layer % len(layers)
        return Stack(n, layers[turn:] + layers[:turn], start_layer, residual, allowance, inputs)

    @cached_property
    def distinct(self) -> tuple[Layer, ...]:
        return tuple({id(layer): layer for layer in self.layers}.values())

    @cached_property
    def selects(self) -> bool:
        """Whether what is read depends on scores that are not known."""
        return any(layer.selections for layer in self.layers)

    @cached_property
    def grows(self) -> bool:
        """Whether more layers connect more: every position keeps what it has, or reads itself in every layer."""
        return self.residual or all(bool(layer.reads_at(0).all()) for layer in self.distinct)

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

    def after(self, layers: int, keys: Ints) -> Words:
        """The queries that reach each key through so many layers."""
        return next(islice(self.columns(keys), layers, None))

    def width(self) -> int:
        """Keys of a batch, so that its arrays fit."""
        words = self.allowance.room // (10 * 8 * (self.n + 1))
        if words < 1:
            raise Unaffordable(f"one batch of keys needs more memory than is left of {self.allowance.memory >> 20:,} MiB")
        return 64 * min(words, -(-self.n // 64), max(_WIDTH // 64, (1 << 17) // self.n))

    def batches(self) -> Iterator[Ints]:
        """All keys, as many at a time as fit."""
        width = self.width()
        for at in range(0, self.n, width):
            yield np.arange(at, min(self.n, at + width))


def _names(pattern: Pattern) -> set[str]:
    """The names in an expression: of runtime inputs too that make no difference, as in `none & document(ids)`."""
    names = {node.name for node in walk(pattern.expression) if isinstance(node, Name)}
    return names | scorer_names(pattern.expression)
