"""The named parts of a pattern: what its topmost union is made of, once `&` and `-` are distributed over it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from patternc.language.printer import show
from patternc.language.resolve import chooses
from patternc.language.syntax import Chain, Expression
from patternc.pattern import Pattern
from patternc.report.colours import PALETTE
from patternc.terms import Meaning

MAX_PARTS = len(PALETTE)
_MAX_PRODUCT = 64


@dataclass(frozen=True)
class Part:
    """One arm of the union: ``label`` is what tells it from the other arms."""

    expression: Expression
    label: str

    @property
    def text(self) -> str:
        """The whole expression of the part."""
        return show(self.expression)

    @cached_property
    def meaning(self) -> Meaning:
        """What the part means; the union over all parts is what the pattern means."""
        return Pattern(self.expression).meaning()


def parts(expression: Expression) -> tuple[Part, ...]:
    """The parts of one layer and head's expression, at most as many as there are colours."""
    found = _split(expression)
    if len(found) > MAX_PARTS:
        kept, rest = found[: MAX_PARTS - 1], found[MAX_PARTS - 1 :]
        found = [*kept, Part(_chain("|", [part.expression for part in rest]), f"{len(rest)} more parts")]
    return tuple(found)


def _split(node: Expression) -> list[Part]:
    match node:
        case Chain(operands, ("|", *_)):
            return [part for operand in operands for part in _split(operand)]
        case Chain(operands, ("&", *_)):
            return _distribute(node, operands)
        case Chain((first, *rest), ("-", *_)) if len(arms := _split(first)) > 1:
            return [Part(_chain("-", [arm.expression, *rest]), arm.label) for arm in arms]
    return [_whole(node)]


def _distribute(node: Expression, operands: tuple[Expression, ...]) -> list[Part]:
    factors = []
    for operand in operands:
        arms = _split(operand)
        if any(chooses(other) for other in operands if other is not operand):
            arms = _grouped(arms)
        factors.append(arms)
    if prod(map(len, factors)) > _MAX_PRODUCT or all(len(arms) == 1 for arms in factors):
        return [_whole(node)]
    found = []
    for combination in product(*factors):
        told = [arm.label for arm, arms in zip(combination, factors, strict=True) if len(arms) > 1]
        found.append(Part(_chain("&", [arm.expression for arm in combination]), " & ".join(told)))
    return found


def _grouped(arms: list[Part]) -> list[Part]:
    """The arms without choices as one: a choice beside them picks from the whole of them."""
    free = [arm for arm in arms if not chooses(arm.expression)]
    if len(free) < 2:
        return arms
    together = _chain("|", [arm.expression for arm in free])
    return [Part(together, " | ".join(arm.label for arm in free)), *(arm for arm in arms if chooses(arm.expression))]


def _whole(node: Expression) -> Part:
    return Part(node, show(node))


def _chain(operator: str, operands: list[Expression]) -> Expression:
    if len(operands) == 1:
        return operands[0]
    return Chain(tuple(operands), (operator,) * (len(operands) - 1), operands[0].span.to(operands[-1].span))
