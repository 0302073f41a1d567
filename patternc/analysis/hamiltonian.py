"""Is there a Hamiltonian path: can a walk along "reads" visit every position once?

The graph is the union of all layers of a period and all heads. In a causal pattern every step goes to an earlier position,
so the only such walk is n - 1, n - 2, ..., 0. It exists exactly if every query q >= 1 reads key q - 1 in some layer, and
that is also exactly when every key reaches every later query through enough layers: a way from q to q - 1 stays within
the two.
"""

from __future__ import annotations

import numpy as np

from patternc.analysis.held import causal_pairs, diagonal, union
from patternc.analysis.period import Layers, at, merged, period, places, small_run, space, unread
from patternc.analysis.search import Mask, first
from patternc.analysis.verdict import Verdict, proved, refuted, unknown
from patternc.pattern import Pattern
from patternc.relation import BudgetExceeded, Pair, Relation, budget
from patternc.scalar import K, Q, op

CLAIM = "the layers of one period together hold a Hamiltonian path"
OVER = "the exact set computation is over its operation budget"
MAX_TRIED = 11
"""Up to here every order is tried."""
MAX_CLOSED = 64
"""Up to here reachability is computed from a dense mask."""


def hamiltonian_path(pattern: Pattern, n: int | None = None) -> Verdict:
    """Whether there is a Hamiltonian path, for every n or at one, whatever the runtime inputs, draws and scores.

    Causal patterns of inequalities are always decided; the witness is the first missing (q, q - 1). Of others, a path is
    certified by a band (every query reads the position before it, or every one that after it), and refuted by two positions
    of which neither reaches the other, by two that read nothing or that nothing reads, or by trying all orders at
    a small n. What none of this decides is unknown.
    """
    try:
        with budget():
            return _decide(pattern, n)
    except BudgetExceeded as error:
        return unknown(CLAIM, str(error) or OVER)


def back() -> Relation:
    """The pairs (q, q - 1)."""
    return Relation.where(op("==", op("-", Q, K), 1))


def _decide(pattern: Pattern, n: int | None) -> Verdict:
    layers = period(pattern, n, residual=False)
    sure, possible = union(layers.sure), union(layers.possible)
    if at(back(), n).is_subset(sure):
        return proved(CLAIM, "every query reads the position before it: n - 1, n - 2, ..., 0")
    causal = possible.is_subset(causal_pairs())
    if not causal and at(back().inverse(), n).is_subset(sure):
        return proved(CLAIM, "every query reads the position after it: 0, 1, ..., n - 1")
    if causal:
        never = at(back(), n) - possible
        if not never.is_empty():
            return refuted(CLAIM, never.sample(), _missing)
        if n is not None and not pattern.inputs:
            return _drawn(pattern, n)
    elif (ends := _two_ends(possible, n)) is not None:
        return ends
    found = small_run(pattern, _gap if causal else _apart, n)
    if found is not None:
        return refuted(CLAIM, found.pair, _missing if causal else _cut_off, found.setting)
    found = small_run(pattern, _no_order, n)
    if found is not None:
        setting = f", with {found.setting}" if found.setting else ""
        return Verdict("refuted", CLAIM, f"all orders of the positions were tried at n = {found.pair.n}{setting}")
    if n is not None and not pattern.inputs and small_run(pattern, _order, n) is not None:
        return proved(CLAIM, f"trying the orders of the positions at n = {n} finds one")
    if causal:
        return unknown(CLAIM, "runtime inputs or draws decide it, and none of the small runs tried lacks one")
    return unknown(CLAIM, "no band of neighbours holds one, and nothing that was tried rules one out")


def _two_ends(possible: Relation, n: int | None) -> Verdict | None:
    """A refutation by two positions that read no other, or that no other reads: only one can be the end, or the start."""
    steps = possible - diagonal()
    for edges, words in ((steps, "reads any other position"), (steps.inverse(), "is read by any other position")):
        ends = space(n) - edges.queries()
        pair = ((ends & ends.inverse()) - diagonal()).sample()
        if pair is not None:
            return Verdict("refuted", CLAIM, f"neither {pair.q} nor {pair.k} {words} at n = {pair.n}", pair)
    return None


def _drawn(pattern: Pattern, n: int) -> Verdict:
    """The answer for a causal pattern without runtime inputs at one n: what it draws decides it."""
    q = unread(pattern, n, 1, places(pattern))
    if q is not None:
        return refuted(CLAIM, Pair(n, q, q - 1), _missing)
    return proved(CLAIM, f"every query reads the position before it, by what is drawn at n = {n}")


def _gap(layers: Layers) -> tuple[int, int] | None:
    rows = np.flatnonzero(~np.diagonal(merged(layers), -1)) + 1
    return (int(rows[0]), int(rows[0]) - 1) if len(rows) else None


def closure(mask: Mask) -> Mask | None:
    """What each position reaches, itself included; None for masks that are too large."""
    if len(mask) > MAX_CLOSED:
        return None
    reach = mask | np.eye(len(mask), dtype=bool)
    for _ in range(len(mask).bit_length()):
        reach = reach @ reach
    return reach


def _apart(layers: Layers) -> tuple[int, int] | None:
    """Two positions of which neither reaches the other."""
    reach = closure(merged(layers))
    return None if reach is None else first(np.tril(~(reach | reach.T)))


def _no_order(layers: Layers) -> tuple[int, int] | None:
    mask = merged(layers)
    return (0, 0) if len(mask) <= MAX_TRIED and not _has_order(mask) else None


def _order(layers: Layers) -> tuple[int, int] | None:
    mask = merged(layers)
    return (0, 0) if len(mask) <= MAX_TRIED and _has_order(mask) else None


def _has_order(mask: Mask) -> bool:
    """Whether some order of all positions is a path: by dynamic programming over sets of visited positions (bits)."""
    n = len(mask)
    reads = [sum(1 << k for k in range(n) if mask[q, k]) for q in range(n)]
    ends = [0] * (1 << n)  # of each set, the positions at which a path through it can end
    for q in range(n):
        ends[1 << q] = 1 << q
    for visited in range(1, 1 << n):
        for q in range(n):
            if ends[visited] >> q & 1:
                further = reads[q] & ~visited
                while further:
                    bit = further & -further
                    ends[visited | bit] |= bit
                    further ^= bit
    return ends[-1] != 0


def _missing(pair: Pair) -> str:
    return f"query {pair.q} does not read key {pair.k} in any layer, at n = {pair.n}, and no other way leads there"


def _cut_off(pair: Pair) -> str:
    return f"neither of {pair.k} and {pair.q} reaches the other at n = {pair.n}, through any number of layers"
