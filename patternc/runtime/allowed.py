"""Which keys some queries may read, as a mask made for a few rows at a time on any device: for passes that stream rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from patternc.diagnostics import suggest
from patternc.pattern import Pattern, parse
from patternc.runtime.support import check_input, documents, table
from patternc.scalar import evaluate
from patternc.terms import Condition, Document, Layout, Meaning


@dataclass(frozen=True)
class Allowed:
    """A pattern without choices at one length, with its runtime inputs.

    Attributes:
        causal: whether the pattern is proved to read no later key, so that `width` may leave those out.
        tables: document ids (batch or 1, n) and block tables (batch or 1, blocks, blocks) by name.
    """

    meaning: Meaning
    causal: bool
    n: int
    n_q: int
    device: torch.device
    tables: Mapping[str, Tensor]

    def width(self, stop: int) -> int:
        """How many of the first keys hold all that the queries before ``stop`` may read."""
        return self.n - self.n_q + stop if self.causal else self.n

    def rows(self, start: int, stop: int) -> Tensor:
        """The mask of the queries start to stop: bool (batch or 1, stop - start, `width`)."""
        first = self.n - self.n_q
        q = torch.arange(first + start, first + stop, device=self.device)[:, None]
        k = torch.arange(self.width(stop), device=self.device)[None, :]
        held = torch.zeros(1, stop - start, k.shape[1], dtype=torch.bool, device=self.device)
        for term in self.meaning.terms:
            for condition in term.conditions:
                held = held | self._holds(condition, q, k)
        return held

    def _holds(self, condition: Condition, q: Tensor, k: Tensor) -> Tensor:
        held: Any = evaluate(condition.relation.predicate, {"q": q, "k": k, "n": self.n}, torch)
        for one in condition.filters:
            given = self.tables[one.name]
            if isinstance(one, Document):
                kept = given[:, q[:, 0], None] == given[:, None, k[0]]
            else:
                kept = given[:, q // one.block, k // one.block]
            held = (kept != one.negated) & held
        return torch.as_tensor(held, device=self.device)


def allowed(
    pattern: Pattern | str, inputs: Mapping[str, Any], *, batch: int, n_q: int, n: int, device: torch.device
) -> Allowed:
    """The keys that a pattern allows, with its runtime inputs by name.

    Raises:
        PatternError: the text is not a pattern, or its layers differ.
        ValueError: the pattern has choices, or heads that differ, or a runtime input is missing or does not fit.
        TypeError: a runtime input that the pattern does not have, or that is no tensor.
    """
    meaning, causal = _facts(pattern)
    uses = {use.name: use for use in meaning.inputs}
    for name in inputs:
        if name not in uses:
            hint = suggest(name, uses) or (f"its inputs are {', '.join(uses)}" if uses else "it has none")
            raise TypeError(f"the pattern has no runtime input '{name}'; {hint}")
    tables: dict[str, Tensor] = {}
    for name, use in uses.items():
        if name not in inputs:
            raise ValueError(f"the pattern needs the runtime input '{name}': pass {name}=...")
        check_input(name, inputs[name], device)
        if isinstance(use, Layout):
            tables[name] = table(name, inputs[name], batch, 1, n, use.block, device)[:, 0]
        else:
            tables[name] = documents(name, inputs[name], batch, n, device)
    return Allowed(meaning, causal, n, n_q, device, tables)


@lru_cache(maxsize=256)
def _facts(pattern: Pattern | str) -> tuple[Meaning, bool]:
    """What a pattern means, and whether it is causal."""
    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    if pattern.heads > 1:
        raise ValueError("all heads must read the same keys here, and this pattern has heads that differ")
    meaning = pattern.meaning()
    if meaning.picks:
        raise ValueError("this pattern chooses keys (random, topk): pass the chosen keys as indices instead")
    return meaning, bool(pattern.prove_causal())
