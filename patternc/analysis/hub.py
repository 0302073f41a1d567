"""Is there a hub: a position that every query reads and that reads every key, in every layer?

A layer holds R, the union of its heads, and every position keeps what it has (the residual stream). Position x is a *hub*
if (q, x) and (x, k) are in R for all q, k other than x. Then any q reaches any k in two layers, q to x to k: the hop
diameter is at most 2.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np

from patternc.analysis.certificate import Star
from patternc.analysis.held import diagonal
from patternc.analysis.period import Layers, Period, at, period, small_run, space
from patternc.analysis.verdict import Verdict, proved, unknown
from patternc.pattern import Pattern
from patternc.relation import BudgetExceeded, Pair, Relation, budget
from patternc.scalar import ZERO, K, N, Q, op, text

CLAIM = "some position is read by every other query and reads every other key, in every layer"
LATEST = 1 << 20
"""Where no hub exists for some n, one that exists from some n up to this on is told."""


class Place(NamedTuple):
    """Where hubs are: as the text of a condition on q, in words, and as a number if it does not depend on n."""

    condition: str
    words: str
    value: int | None


def hub(pattern: Pattern, n: int | None = None) -> Verdict:
    """Whether some position is a hub, for every n or at one, whatever the runtime inputs, draws and scores.

    A proof's ``value`` is the position, where it does not depend on n, and its certificate a `Star`. A refutation's witness
    is at an n without a hub: a pair that keeps position 0 from being one.
    """
    try:
        with budget():
            return _decide(pattern, n)
    except BudgetExceeded:
        return unknown(CLAIM, "the exact set computation is over its operation budget")


def _decide(pattern: Pattern, n: int | None) -> Verdict:
    layers = period(pattern, n, residual=True)
    sure, possible = (_hubs(reduce(Relation.__and__, found), n) for found in (layers.sure, layers.possible))
    lacking = _lengths_without(sure, n)
    if lacking.is_empty():
        place = _place(sure, n)
        reason = f"{place.words} is one{'' if n is not None else ' for every n'}: any two positions are at most 2 hops apart"
        return proved(CLAIM, reason, value=place.value, certificate=Star(n, place.condition))
    never = _lengths_without(possible, n).sample()
    if never is not None:
        pair = _obstacle(layers, never.n)
        return _refuted(pair, f"{_words(pair)}{_later(lacking, sure) if n is None else ''}")
    found = small_run(pattern, _obstacle_of_run, n)
    if found is not None:
        setting = f", with {found.setting}" if found.setting else ""
        return _refuted(found.pair, f"{_words(found.pair)}{setting}")
    return unknown(CLAIM, "runtime inputs or draws decide it, and none of the small runs tried is without one")


def _hubs(relation: Relation, n: int | None) -> Relation:
    """The pairs (x, x) of the hubs x of a relation that holds the diagonal."""
    missing = space(n) - relation
    return at(diagonal(), n) - missing.queries() - missing.inverse().queries()


def _lengths_without(hubs: Relation, n: int | None) -> Relation:
    """All pairs of the lengths without a hub."""
    return space(n) - hubs.queries().inverse().queries()


def _place(hubs: Relation, n: int | None) -> Place:
    if n is not None:
        pair = hubs.sample()
        assert pair is not None
        return _position(str(pair.q), pair.q)
    for x, words, value in ((ZERO, "0", 0), (op("-", N, 1), "n - 1", None)):
        if (Relation.where(op("==", Q, x)) & diagonal()).is_subset(hubs):
            return _position(words, value)
    rows = hubs.queries()
    words = f"any position q with {text(rows.predicate)}"
    return Place(text(rows.condition), words, None)


def _position(x: str, value: int | None) -> Place:
    return Place(f"q == {x}", f"position {x}", value)


def _obstacle(layers: Period, n: int) -> Pair:
    """A pair that keeps position 0 from being a hub at n."""
    beside_zero = Relation.where(op("or", op("==", Q, 0), op("==", K, 0)))
    for relation in layers.possible:
        pair = at((space(n) - relation) & beside_zero, n).sample()
        if pair is not None:
            return pair
    raise AssertionError("position 0 is a hub")


def _obstacle_of_run(layers: Layers) -> tuple[int, int] | None:
    """As `_obstacle`, for masks without a hub; None if there is one."""
    each = np.logical_and.reduce(layers) | np.eye(len(layers[0]), dtype=bool)
    if (each.all(0) & each.all(1)).any():
        return None
    column, row = np.flatnonzero(~each[:, 0]), np.flatnonzero(~each[0])
    return (0, int(row[0])) if len(row) else (int(column[0]), 0)


def _later(lacking: Relation, hubs: Relation) -> str:
    """From which n on there is a hub after all, in words; "" where no such n is found."""

    def settled(n: int) -> bool:
        return (lacking & Relation.where(op("<=", n, N))).is_empty()

    if not settled(LATEST):
        return ""
    low, high = 1, LATEST  # not settled, settled
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    first = at(hubs, high).sample()
    assert first is not None
    return f"; from n = {high} on there is one (at n = {high}, position {first.q})"


def _refuted(pair: Pair, reason: str) -> Verdict:
    return Verdict("refuted", CLAIM, reason, pair)


def _words(pair: Pair) -> str:
    return f"no position is one at n = {pair.n}; position 0 is not, as query {pair.q} does not read key {pair.k} in some layer"
