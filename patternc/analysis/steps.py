"""What one layer lets a position read from: the step that every question about several layers is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from patternc.analysis.held import causal_pairs, certain, diagonal, realisable, union
from patternc.pattern import Pattern, parse
from patternc.relation import Relation, everything
from patternc.terms import Meaning, Random, Term, TopK

Mode: TypeAlias = Literal["may", "must"]
Target: TypeAlias = Pattern | str | Relation | None
"""Pairs that layers ought to connect; None for those that they could if they all were dense."""


@dataclass(frozen=True, eq=False)
class Pick:
    """A term of one head with a choice that no relation describes: draws, or in mode "must" a selection."""

    head: int
    term: Term
    candidates: Relation
    """Every pair that the term may hold."""

    @property
    def is_random(self) -> bool:
        """Whether it is decided by draws alone, which are the same in every run."""
        return all(isinstance(choice, Random) for choice in self.term.choices)


@dataclass(frozen=True, eq=False)
class Step:
    """The pairs of one layer: all of ``relation``, and of each of ``choices`` some of its candidates."""

    relation: Relation
    choices: tuple[Pick, ...] = ()

    @property
    def is_affine(self) -> bool:
        """Whether the relation is all there is."""
        return not self.choices

    @cached_property
    def possible(self) -> Relation:
        """Every pair that the layer may hold."""
        return union([self.relation, *(pick.candidates for pick in self.choices)])


def steps(pattern: Pattern, mode: Mode = "may", residual: bool = True, start: int = 0) -> tuple[Step, ...]:
    """One step for each layer of the period, from layer ``start`` up; its heads are united, as many as the period has.

    Mode "may" takes every pair that some runtime input or score allows, "must" only those that all of them do. Layers
    that are alike share one step. With ``residual`` every position also reads itself.

    Raises:
        BudgetExceeded: the exact set computation is over its budget.
    """
    known: dict[Pattern, Step] = {}
    layers = [pattern.layer(start + index) for index in range(pattern.layers)]
    return tuple(known[layer] if layer in known else known.setdefault(layer, _step(layer, mode, residual)) for layer in layers)


def at_length(relations: Iterable[Relation], n: int | None) -> list[Relation]:
    """The relations at one n, or as they are where n is None; those that are one object stay one."""
    if n is None:
        return list(relations)
    known: dict[int, Relation] = {}
    return [known[id(r)] if id(r) in known else known.setdefault(id(r), r.at(n)) for r in relations]


def target_pairs(pattern: Pattern, target: Target = None) -> Relation:
    """The pairs that layers ought to connect: those of ``target``, or by default k <= q if no layer reads ahead, else all.

    Whether a layer reads ahead is asked of its relation, with all that runtime inputs, draws and scores may bring about.
    """
    if isinstance(target, Relation):
        return target
    if target is not None:
        return union(step.possible for step in steps(parse(target) if isinstance(target, str) else target, "may", False))
    causal = all(step.possible.is_subset(causal_pairs()) for step in set(steps(pattern, "may", False)))
    return causal_pairs() if causal else everything()


def _step(layer: Pattern, mode: Mode, residual: bool) -> Step:
    sure: list[Relation] = [diagonal()] if residual else []
    picks: list[Pick] = []
    for head in range(layer.heads):
        meaning = layer.meaning(head=head)
        sure.append(_settled(meaning, mode))
        picks += [Pick(head, term, realisable(term.conditions)) for term in meaning.picks if not _is_settled(term, mode)]
    relation = union(sure)
    return Step(relation, tuple(pick for pick in picks if not pick.candidates.is_subset(relation)))


def _settled(meaning: Meaning, mode: Mode) -> Relation:
    if mode == "must":
        return certain(meaning.conditions)
    free = [term.conditions for term in meaning.terms if _is_settled(term, mode)]
    return union(realisable(conditions) for conditions in free)


def _is_settled(term: Term, mode: Mode) -> bool:
    """Whether a relation says all about the term: scores may favour any candidate, and none is certain to be favoured."""
    return not term.choices or (mode == "may" and all(isinstance(choice, TopK) for choice in term.choices))
