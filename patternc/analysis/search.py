"""Concrete runs at small n, with extreme runtime inputs: whatever such a run shows is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.dense import Evaluator
from patternc.relation import Pair, everything
from patternc.terms import Document, Filter, Layout, Meaning, TopK

MAX_N = 2_304
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 23, 32, 45, 64)

_EXTREMES: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Layout, ("every block table empty", "every block table full")),
    (Document, ("every position a document of its own", "all positions one document")),
    (TopK, ("scores that fall with the key", "scores that rise with the key", "low scores on the diagonal")),
)

Mask: TypeAlias = npt.NDArray[np.bool_]
Test: TypeAlias = Callable[..., "tuple[int, int] | None"]
"""Given the mask of each meaning, the query and key that settle the question, or None."""


@dataclass(frozen=True)
class Found:
    """A pair that a concrete run shows, and the runtime inputs of that run in words ("" where there are none)."""

    pair: Pair
    setting: str


def search(meanings: Sequence[Meaning], head: int, test: Test, n: int | None = None) -> Found | None:
    """The first of the small runs, or of those at one n, whose masks pass ``test``.

    The meanings share their inputs and must not clash.
    """
    for size in _sizes(meanings) if n is None else (n,):
        for setting, inputs in _settings(meanings, size):
            at = test(*(_mask(meaning, size, head, inputs) for meaning in meanings))
            if at is not None:
                return Found(Pair(size, *at), setting)
    return None


def first(mask: Mask) -> tuple[int, int] | None:
    """The first true (q, k) of a mask."""
    at = np.argwhere(mask)
    return (int(at[0][0]), int(at[0][1])) if len(at) else None


def _mask(meaning: Meaning, n: int, head: int, inputs: dict[str, Any]) -> Mask:
    return Evaluator(meaning, n, head, inputs).holds(np.arange(n)[:, None], np.arange(n)[None, :])


def _sizes(meanings: Sequence[Meaning]) -> list[int]:
    terms = [term for meaning in meanings for term in meaning.terms]
    choices = [choice for term in terms for choice in term.choices]
    tables = [f for term in terms for c in term.conditions for f in c.filters if isinstance(f, Layout)]
    blocks = {use.block for use in (*tables, *choices)}
    crowded = {choice.k * choice.block + 1 for choice in choices if isinstance(choice, TopK)}
    of_blocks = {n for b in blocks if b > 1 for n in (b, b + 1, 2 * b, 3 * b + 1)}
    return sorted({*SIZES, *(n for n in crowded | of_blocks | _turns(meanings) if n <= MAX_N)})


def _turns(meanings: Sequence[Meaning]) -> set[int]:
    """The first lengths at which a condition holds a pair, or what is held for sure lacks one."""
    held = [c.relation for meaning in meanings for term in meaning.terms for c in term.conditions]
    lacking = [everything() - meaning.static for meaning in meanings]
    return {pair.n for relation in (*held, *lacking) if (pair := relation.sample()) is not None}


def _settings(meanings: Sequence[Meaning], n: int) -> Iterator[tuple[str, dict[str, Any]]]:
    uses = list(dict.fromkeys(use for m in meanings for use in m.inputs))
    for chosen in product(*(words if any(isinstance(use, kind) for use in uses) else ("",) for kind, words in _EXTREMES)):
        inputs = {use.name: _value(use, n, *chosen) for use in uses}
        for position, name in enumerate(dict.fromkeys(use.name for use in uses if isinstance(use, TopK))):
            inputs[name] = inputs[name] * (-1) ** position  # two selectors pull in opposite directions
        yield ", ".join(word for word in chosen if word), inputs


def _value(use: Filter | TopK, n: int, table: str, documents: str, scores: str) -> Any:
    match use:
        case Layout(_, block):
            side = -(-n // block)
            return np.full((side, side), table.endswith("full"))
        case Document():
            return np.zeros(n, np.int64) if documents.endswith("one document") else np.arange(n)
        case TopK():
            q, k = np.arange(n)[:, None], np.arange(n)[None, :]
            slope = -1.0 if "fall" in scores else 1.0
            return np.where(q == k, -1.0, 1.0 + k) if "diagonal" in scores else slope * (k + 0.0 * q)
