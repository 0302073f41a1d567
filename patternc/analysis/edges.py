"""The layers of a pattern at one n, as runs of keys of each query: what is static, drawn, or given at run time.

Static conditions come in closed form. Draws are runs of one key (or one block of keys, cut down by their conditions).
Documents and block tables cut runs down. What has no such form is read off the dense mask, where that is affordable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from patternc.analysis.allowance import Allowance, Unaffordable
from patternc.analysis.bitsets import Bools, Ints, Reader, Runs
from patternc.analysis.held import causal_pairs, certain, realisable
from patternc.analysis.steps import Mode, steps
from patternc.dense import MAX_DENSE, Evaluator
from patternc.pattern import Pattern
from patternc.random_edges import draw
from patternc.relation import BudgetExceeded, Loop, Relation
from patternc.scalar import evaluate
from patternc.terms import Condition, Document, Filter, Layout, Meaning, Random, Term, TopK

Inputs = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Selection:
    """Each query reads what all selectors take: each takes some k blocks of the candidates (all, if there are no more).

    The scores that choose them are not known. The runs of the candidates are disjoint.
    """

    candidates: tuple[Runs, ...]
    k: tuple[int, ...]
    block: int

    def fewest(self, candidates: Ints) -> Ints:
        """How many candidate blocks a query reads at least, of so many: each selector leaves out all but its k."""
        left_out = sum((np.maximum(candidates - k, 0) for k in self.k), np.zeros_like(candidates))
        return np.maximum(candidates - left_out, 0)


@dataclass(frozen=True, eq=False)
class Layer:
    """What every query reads in one layer: the keys of all runs, and of each selection some."""

    n: int
    runs: tuple[Runs, ...]
    selections: tuple[Selection, ...] = field(default=())

    def keys(self, q: int) -> Ints:
        """The keys that one query surely reads."""
        found = [one.keys(q) for one in self.runs]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.intp)

    def reads_at(self, offset: int) -> Bools:
        """Which queries q surely read key q + offset."""
        found = np.zeros(self.n, bool)
        for one in self.runs:
            found[one.rows] |= one.holds(one.rows + offset)
        return found

    def mark(self, readers: Bools) -> Bools:
        """The keys of any of the queries."""
        out = np.zeros(self.n, bool)
        for one in self.runs:
            one.mark(readers, out)
        return out

    def reader(self, allowance: Allowance) -> Reader:
        reader = Reader.of(self.runs, self.n)
        allowance.hold(reader.nbytes)
        return reader


def layers_at(pattern: Pattern, n: int, mode: Mode, inputs: Inputs, allowance: Allowance) -> tuple[Layer, ...]:
    """The layers of one period at ``n``, bottom first, the heads of each united (as many as the period has).

    Mode "may" takes every pair that some value of the missing inputs allows, "must" those that every value does; a
    selection without scores then stays a `Selection`. Inputs that are given are used as they are. Layers that are alike
    are one object.

    Raises:
        Unaffordable: it would take too long or too much memory.
        ValueError: an input of the wrong shape.
    """
    known: dict[Pattern, Layer] = {}
    found: list[Layer] = []
    for index in range(pattern.layers):
        one = pattern.layer(index)
        if one not in known:
            meanings = {one.head(head) if one.meaning(head=head).is_static else head: head for head in range(one.heads)}
            parts = [_Head(one.meaning(head=head), n, head, mode, inputs, allowance) for head in meanings.values()]
            runs = tuple(r for part in parts for r in part.runs())
            known[one] = Layer(n, runs, tuple(s for part in parts for s in part.selections()))
        found.append(known[one])
    return tuple(found)


def relation_runs(relation: Relation, n: int, allowance: Allowance) -> list[Runs]:
    """The pairs of a relation at ``n``, disjoint.

    Raises:
        Unaffordable: it has no closed form and ``n`` is large, or too long a one.
    """
    try:
        loops = relation.rows
    except BudgetExceeded:
        check_dense(n, "the keys of a row have no closed form", allowance, 48)
        held = np.zeros((n, n), bool) | evaluate(
            relation.predicate, {"q": np.arange(n)[:, None], "k": np.arange(n), "n": n}, np
        )
        return list(mask_runs(held))
    found: list[Runs] = []
    for loop in loops:
        one = _loop_runs(loop, n, allowance)
        at = next((i for i, other in enumerate(found) if _are_pieces(one, other)), len(found))
        found[at : at + 1] = [one if at == len(found) else _joined(found[at], one)]
    return [one for one in found if len(one.rows)]


def _are_pieces(a: Runs, b: Runs) -> bool:
    """Whether two loops can be seen as one: of the same step, for different queries, and neither one run for all."""
    same = a.step == b.step and not a.is_constant and not b.is_constant
    return same and (a.rows[-1] < b.rows[0] or b.rows[-1] < a.rows[0])


def _joined(a: Runs, b: Runs) -> Runs:
    one, other = (a, b) if a.rows[0] < b.rows[0] else (b, a)
    rows, first, last = (np.concatenate(p) for p in ((one.rows, other.rows), (one.first, other.first), (one.last, other.last)))
    return Runs(rows, first, last, one.step)


def _loop_runs(loop: Loop, n: int, allowance: Allowance) -> Runs:
    allowance.fits(48 * n)
    q = np.arange(n)
    at = {"q": q, "n": n}
    first, count = (np.zeros(n, np.intp) + evaluate(e, at, np) for e in (loop.start, loop.count))
    some = count > 0
    runs = Runs(q[some], first[some], (first + (count - 1) * loop.step)[some], loop.step)
    allowance.hold(runs.nbytes)
    return runs


def mask_runs(mask: Bools) -> Iterator[Runs]:
    """The pairs of a dense mask: the first run of every row, the second, and so on."""
    n = len(mask)
    padded = np.zeros((n, mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    rows, at = np.nonzero(np.diff(padded, axis=1))
    rows, first, last = rows[::2], at[::2], at[1::2] - 1
    yield from _ranked(rows, first, last)


def mask_of(runs: Iterable[Runs], n: int) -> Bools:
    """The dense mask of runs."""
    mask = np.zeros((n, n), bool)
    for one in runs:
        ends = np.zeros((n, n + one.step), np.int8)
        np.add.at(ends, (one.rows, one.first), 1)
        np.add.at(ends, (one.rows, one.last + one.step), -1)
        for residue in range(one.step):
            ends[:, residue :: one.step] = np.cumsum(ends[:, residue :: one.step], axis=1)
        mask |= ends[:, :n] > 0
    return mask


def _ranked(rows: Ints, first: Ints, last: Ints) -> Iterator[Runs]:
    """Runs grouped so that each group has a row at most once; the rows ascend."""
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    order = np.argsort(rank, kind="stable")
    for mine in np.split(order, np.flatnonzero(np.diff(rank[order])) + 1):
        if len(mine):
            yield Runs(rows[mine], first[mine], last[mine])


class _Head:
    """One head of one layer at one n."""

    def __init__(self, meaning: Meaning, n: int, head: int, mode: Mode, inputs: Inputs, allowance: Allowance):
        self._meaning, self._n, self._head, self._mode, self._allowance = meaning, n, head, mode, allowance
        self._inputs = {use.name: inputs[use.name] for use in meaning.inputs if use.name in inputs}

    def runs(self) -> Iterator[Runs]:
        """All that is read for sure: given the inputs, or whatever (mode "may": for some value of) those that are missing."""
        for term in self._meaning.terms:
            draws = [choice for choice in term.choices if isinstance(choice, Random)]
            selects = len(draws) < len(term.choices)
            if selects and self._has_all(term):
                yield from self._picked(term)
            elif draws and not (selects and self._mode == "must"):
                yield from self._drawn(term, draws)
            elif not selects or self._mode == "may":
                yield from self._set(term.conditions)

    def selections(self) -> Iterator[Selection]:
        """The selections whose scores are missing, in mode "must", with what they surely select from."""
        for term in self._meaning.terms:
            kinds = [choice for choice in term.choices if isinstance(choice, TopK)]
            if self._mode == "may" or not kinds or self._has_all(term) or not self._are_given(term.conditions):
                continue
            draws = [choice for choice in term.choices if isinstance(choice, Random)]
            runs = list(self._drawn(term, draws) if draws else self._set(term.conditions))
            if len(term.conditions) > 1:
                runs = self._held(mask_runs(self._united(runs)))
            smallest: dict[str, int] = {}
            for one in kinds:
                smallest[one.name] = min(one.k, smallest.get(one.name, one.k))
            if len({one.block for one in kinds}) == 1:
                yield Selection(tuple(runs), tuple(smallest.values()), kinds[0].block)

    def _united(self, runs: list[Runs]) -> Bools:
        """The dense mask of runs that may overlap."""
        check_dense(self._n, "what is selected from is not known in closed form", self._allowance)
        return mask_of(runs, self._n)

    def _has_all(self, term: Term) -> bool:
        return self._are_given(term.conditions) and all(c.name in self._inputs for c in term.choices if isinstance(c, TopK))

    def _are_given(self, conditions: Iterable[Condition]) -> bool:
        return all(f.name in self._inputs for c in conditions for f in c.filters)

    def _set(self, conditions: tuple[Condition, ...]) -> Iterator[Runs]:
        given = [c for c in conditions if self._are_given([c])]
        missing = [c for c in conditions if not self._are_given([c])]
        for condition in given:
            runs = relation_runs(condition.relation, self._n, self._allowance)
            yield from reduce(self._cut, condition.filters, runs)
        if missing:
            yield from relation_runs(self._unknown(missing), self._n, self._allowance)

    def _unknown(self, conditions: Iterable[Condition]) -> Relation:
        return realisable(conditions) if self._mode == "may" else certain(conditions)

    def _cut(self, runs: list[Runs], f: Filter) -> list[Runs]:
        """What a filter leaves of the runs."""
        match f:
            case Document():
                return self._cut_by_document(runs, f)
            case Layout():
                return self._cut_by_table(runs, f)

    def _cut_by_document(self, runs: list[Runs], f: Document) -> list[Runs]:
        n = self._n
        ids = np.asarray(self._inputs[f.name])
        flat = ids.reshape(-1, ids.shape[-1])[0]
        ids = flat if len(flat) == n else np.searchsorted(flat, np.arange(n), side="right")
        starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        if len(np.unique(ids[starts])) < len(starts):
            raise ValueError(f"the document ids '{f.name}' must not return to a document that has ended")
        mine = np.searchsorted(starts, np.arange(n), side="right") - 1
        low = starts[mine]
        high = np.concatenate([starts[1:], [n]])[mine] - 1
        if not f.negated:
            return self._held(r.clipped(low[r.rows], high[r.rows]) for r in runs)
        before = self._held(r.clipped(0, low[r.rows] - 1) for r in runs)
        return before + self._held(r.clipped(high[r.rows] + 1, n) for r in runs)

    def _cut_by_table(self, runs: list[Runs], f: Layout) -> list[Runs]:
        n, block = self._n, f.block
        side = -(-n // block)
        table = np.asarray(self._inputs[f.name])
        if table.shape[-2:] != (side, side):
            raise ValueError(f"'{f.name}' has shape {table.shape}; the last two axes must be {(side, side)} at n = {n}")
        while table.ndim > 3:
            table = table[0]
        table = (table if table.ndim == 2 else table[self._head % len(table)]).astype(bool) != f.negated
        found: list[Runs] = []
        for blocks in mask_runs(table):
            low, high = np.full(side, n), np.full(side, -1)
            low[blocks.rows], high[blocks.rows] = blocks.first * block, blocks.last * block + block - 1
            found += self._held(r.clipped(low[r.rows // block], high[r.rows // block]) for r in runs)
        return found

    def _held(self, runs: Iterable[Runs]) -> list[Runs]:
        kept: list[Runs] = []
        for one in runs:
            if len(one.rows):
                self._allowance.hold(one.nbytes)
                kept.append(one)
        return kept

    def _drawn(self, term: Term, draws: list[Random]) -> list[Runs]:
        """The pairs that every draw of a term picks and its conditions hold."""
        if len(draws) == 1 and draws[0].block == 1 and not any(c.filters for c in term.conditions):
            return [r for low, high in self._intervals(term, draws[0]) for r in self._held([Runs.of(self._rows, low, high)])]
        runs = list(self._set(term.conditions))
        for choice in draws:
            picked = list(self._intervals(term, choice))
            runs = self._held(r.clipped(low[r.rows], high[r.rows]) for low, high in picked for r in runs)
        return runs

    def _intervals(self, term: Term, choice: Random) -> Iterator[tuple[Ints, Ints]]:
        """The first and the last key of the block that each query takes in every draw; none is (n, n - 1)."""
        n, block = self._n, choice.block
        side = -(-n // block)
        self._allowance.fits(8 * side * (3 * choice.draws + 32))
        try:
            loops = term.relation.block_rows(block)
        except BudgetExceeded:
            raise Unaffordable("what is drawn from has no closed form") from None
        picked = draw(choice, loops, self._head, np.arange(side), n, np)
        while picked:
            self._allowance.check()
            blocks = picked.pop()[self._rows // block]
            yield np.where(blocks < 0, n, blocks * block), np.minimum(np.where(blocks < 0, n, blocks * block + block), n) - 1

    @property
    def _rows(self) -> Ints:
        return np.arange(self._n)

    def _picked(self, term: Term) -> Iterator[Runs]:
        """The pairs of a term with scores that are given."""
        n = self._n
        check_dense(n, "a selection by given scores is dense", self._allowance, 24)
        evaluator = Evaluator(Meaning((term,)), n, self._head, self._inputs)
        yield from self._held(mask_runs(evaluator.holds(self._rows[:, None], self._rows[None, :])))


def check_dense(n: int, why: str, allowance: Allowance, size: int = 16) -> None:
    """Refuse dense work on (n, n) arrays of ``size`` bytes a pair where it is too large.

    Raises:
        Unaffordable: it is.
    """
    if n > MAX_DENSE:
        raise Unaffordable(f"{why}, and n = {n:,} is over {MAX_DENSE:,}")
    allowance.fits(size * n * n)


def is_causal(pattern: Pattern) -> bool:
    """Whether no layer reads a later key, whatever the inputs, draws and scores, for every n.

    Raises:
        BudgetExceeded: the exact set computation is over its budget.
    """
    return all(step.possible.is_subset(causal_pairs()) for step in set(steps(pattern, "may")))
