"""Do two patterns surely differ? Told from a few rows at a few lengths, with scores that are chosen to tell them apart.

Draws are what they are. A selection without runtime filters or other choices beside it can be made to pick any one of its
candidates, by giving it the best score; and to leave it out, by giving it the worst, where there are more candidate blocks
than are picked. So two patterns differ if one holds a pair, for sure or by the best score, that the other does not hold or
leaves out for the worst score. Both are the same input where they have the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.dense import Evaluator
from patternc.pattern import Pattern
from patternc.relation import Relation
from patternc.scalar import Const, evaluate
from patternc.scorers import Given
from patternc.terms import Meaning, Random, Term, TopK

LENGTHS = (4, 13, 300, 6_000, 300_000)
MAX_PLACES = 16
ROWS = 8

Bools: TypeAlias = npt.NDArray[np.bool_]


def surely_differ(a: Pattern, b: Pattern) -> bool:
    """Whether some row of one of the first layers and heads shows a difference; False says nothing."""
    layers, heads = max(a.layers, b.layers), max(a.heads, b.heads)
    places = [(layer, head) for layer in range(layers) for head in range(heads)][:MAX_PLACES]
    return any(_differ(a, b, layer, head, n) for n in LENGTHS for layer, head in places)


@dataclass(frozen=True)
class _Rows:
    """Some rows of one head: pairs that are held for sure, those nothing is known of, and selections with their candidates."""

    sure: Bools
    unclear: Bools
    selections: tuple[tuple[TopK, Bools], ...]


def _differ(a: Pattern, b: Pattern, layer: int, head: int, n: int) -> bool:
    q = np.unique(np.linspace(0, n - 1, ROWS, dtype=np.int64))
    rows = (_rows(p.meaning(layer=layer % p.layers, head=head), head, q, n) for p in (a, b))
    return any(_shows_more(one, other) for one, other in permutations(rows, 2))


def _shows_more(one: _Rows, other: _Rows) -> bool:
    """Whether some pair is held on one side and can be kept out on the other at the same time."""
    absent = ~other.sure & ~other.unclear
    if (one.sure & absent & _left_out(other, None)).any():
        return True
    return any((candidates & absent & _left_out(other, choice.name)).any() for choice, candidates in one.selections)


def _left_out(rows: _Rows, favoured: str | None) -> Bools:
    """The pairs that no selection needs to pick, if the scores named ``favoured`` favour them."""
    out = np.ones_like(rows.sure)
    for choice, candidates in rows.selections:
        crowded = _blocks(candidates, choice.block) > choice.k
        out &= ~candidates | (crowded[:, None] & (choice.name != favoured))
    return out


def _blocks(candidates: Bools, block: int) -> npt.NDArray[np.int64]:
    starts = np.arange(0, candidates.shape[1], block)
    found: npt.NDArray[np.int64] = np.logical_or.reduceat(candidates, starts, axis=1).sum(1)
    return found


def _rows(meaning: Meaning, head: int, q: npt.NDArray[np.int64], n: int) -> _Rows:
    sure: list[Term] = []
    selections: list[tuple[TopK, Bools]] = []
    unclear = np.zeros((len(q), n), bool)
    for term in meaning.terms:
        plain = tuple(condition for condition in term.conditions if not condition.filters)
        filtered = len(plain) < len(term.conditions)
        match term.choices:
            case ():
                sure += [Term(plain)] if plain else []
                unclear |= _held(term.relation, q, n) if filtered else False
            case (TopK(scorer=Given(), forced=Const(False)) as choice,) if not filtered and choice.share == "head":
                selections.append((choice, _held(term.relation, q, n)))
            case choices if not filtered and all(isinstance(choice, Random) for choice in choices):
                sure.append(term)
            case _:
                unclear |= _held(term.relation, q, n)
    held = Evaluator(Meaning(tuple(sure)), n, head, {}).holds(q[:, None], np.arange(n)[None, :])
    return _Rows(held, unclear & ~held, tuple(selections))


def _held(relation: Relation, q: npt.NDArray[np.int64], n: int) -> Bools:
    values = {"q": q[:, None], "k": np.arange(n)[None, :], "n": n}
    return np.broadcast_to(np.asarray(evaluate(relation.predicate, values, np), bool), (len(q), n))
