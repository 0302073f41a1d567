"""Which parts of an expression change nothing: operands of `|` that add no pair, of `&` and `-` that take none away.

A part counts as redundant if the pattern, at every layer, head and branch, holds the same pairs for every n without it. So
what stands around an operand counts: in `causal & (window(8) | ~causal)`, `~causal` adds nothing. Operands are tried from
the last to the first, and each that is found is gone before the next is tried: all that are found can be left out together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from patternc.analysis.differ import surely_differ
from patternc.analysis.inclusion import prove_equivalent
from patternc.analysis.members import by_branch
from patternc.analysis.verdict import worst
from patternc.diagnostics import PatternError
from patternc.language.printer import show
from patternc.language.resolve import MIXTURES, map_children
from patternc.language.syntax import Call, Chain, Expression, Integer, Unary
from patternc.pattern import Pattern
from patternc.relation import BudgetExceeded, budget
from patternc.source import Span

MAX_TRIED = 256
OPERATIONS = 4_000_000


_CALLED = re.compile(r"\s*\(")
_COMMENT = re.compile(r"#[^\n]*")

Trail: TypeAlias = tuple[int, ...]
"""Which operand to take at each level, from the root down."""


@dataclass(frozen=True)
class Operand:
    """A part of an expression, in the words it was written with.

    Attributes:
        expression: the part.
        operator: what joins it to its neighbours: ``|``, ``&`` or ``-``.
        reason: what it fails to do, or why that is not known.
    """

    expression: Expression
    operator: str
    reason: str

    @property
    def span(self) -> Span:
        """Where it was written: in the pattern, in a definition, or in a preset; with its arguments and parentheses."""
        return _whole(self.expression.span)

    @property
    def text(self) -> str:
        """The part as it was written."""
        return self.span.source.text[self.span.start : self.span.end]

    def __str__(self) -> str:
        line, column = self.span.position
        return f"'{self.text}' ({self.span.source.name}:{line}:{column}) {self.reason}"

    def to_json(self) -> dict[str, Any]:
        line, column = self.span.position
        place = {"source": self.span.source.name, "line": line, "column": column}
        return {"text": self.text, "operator": self.operator, "reason": self.reason, **place}


@dataclass(frozen=True)
class Redundancy:
    """The redundant operands of a pattern, in the order of its text, and what is left without them.

    Attributes:
        found: operands that can be left out, all together.
        undecided: operands of which it is not known, with the reasons.
        rest: the expression without what was found; the same pairs for every n.
    """

    found: tuple[Operand, ...]
    undecided: tuple[Operand, ...]
    rest: Pattern

    def __iter__(self) -> Iterator[Operand]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.found, *self.undecided))) or "every operand counts"

    def to_json(self) -> dict[str, Any]:
        found, undecided = ([operand.to_json() for operand in some] for some in (self.found, self.undecided))
        return {"found": found, "undecided": undecided, "rest": str(self.rest)}


def redundant_terms(pattern: Pattern) -> Redundancy:
    """The operands of `|`, `&` and `-` that change nothing, for every n, layer, head, runtime input, draw and score."""
    search = _Search(pattern)
    while search.finds_more():
        pass
    found, undecided = (tuple(sorted(some, key=_place)) for some in (search.found, search.undecided))
    return Redundancy(found, undecided, search.rest)


_FAILS = {"|": "adds no pair that the rest does not hold", "&": "restricts nothing", "-": "takes nothing away"}


@dataclass
class _Search:
    """Tries the operands of a tree, which shrinks as redundant ones are found."""

    rest: Pattern
    found: list[Operand] = field(default_factory=list)
    undecided: list[Operand] = field(default_factory=list)
    tried: int = 0

    def finds_more(self) -> bool:
        """Try every operand once; what is found may leave others without an effect."""
        before = len(self.found)
        self.undecided.clear()
        self._visit(())
        return len(self.found) > before

    def _visit(self, trail: Trail) -> None:
        node = _at(self.rest.expression, trail)
        if isinstance(node, Chain) and set(node.operators) <= _FAILS.keys():
            first = 1 if node.operators[0] == "-" else 0
            for index in reversed(range(first, len(node.operands))):
                self._try(trail, index)
            node = _at(self.rest.expression, trail)
        for index in range(len(_operands(node))):
            self._visit((*trail, index))

    def _try(self, trail: Trail, index: int) -> None:
        node = _at(self.rest.expression, trail)
        if not isinstance(node, Chain) or len(node.operands) <= index:
            return
        operator, operand = node.operators[0], node.operands[index]
        self.tried += 1
        if self.tried > MAX_TRIED:
            self.undecided.append(Operand(operand, operator, f"was not tried: {MAX_TRIED} others were"))
            return
        try:
            shorter = Pattern(_replaced(self.rest.expression, trail, _without(node, index)), self.rest.name)
            with budget(OPERATIONS):
                if surely_differ(self.rest, shorter):
                    return
                pairs = zip(by_branch(self.rest), by_branch(shorter), strict=True)
                same = worst("the same pairs", (prove_equivalent(one, other) for (one, _), (other, _) in pairs))
        except (BudgetExceeded, PatternError):
            reason = "was not decided: the exact set computation is over its operation budget"
            self.undecided.append(Operand(operand, operator, reason))
            return
        if same:
            self.rest = shorter
            self.found.append(Operand(operand, operator, _FAILS[operator]))
        elif same.status == "unknown":
            self.undecided.append(Operand(operand, operator, f"was not decided: {same.reason}"))


def _operands(node: Expression) -> tuple[Expression, ...]:
    """The patterns that a pattern is made of."""
    match node:
        case Chain(operands, operators) if set(operators) <= {*_FAILS, "+"}:
            return operands
        case Chain((Integer(), repeated), ("*",)):
            return (repeated,)
        case Unary("~", operand):
            return (operand,)
        case Call(function, (argument,)) if function in MIXTURES:
            return (argument,)
        case Call("gated", _, keywords):
            return tuple(keyword.value for keyword in keywords if keyword.value is not None)
    return ()


def _at(node: Expression, trail: Trail) -> Expression:
    for index in trail:
        node = _operands(node)[index]
    return node


def _replaced(node: Expression, trail: Trail, new: Expression) -> Expression:
    if not trail:
        return new
    old = _operands(node)[trail[0]]
    return map_children(node, lambda child: _replaced(child, trail[1:], new) if child is old else child)


def _without(node: Chain, index: int) -> Expression:
    kept = node.operands[:index] + node.operands[index + 1 :]
    return kept[0] if len(kept) == 1 else replace(node, operands=kept, operators=node.operators[1:])


def _whole(span: Span) -> Span:
    """A span of an expression, which ends with its last name, widened to the arguments and parentheses that belong to it."""
    source, text = span.source, span.source.text
    start, end = span.start, span.end
    if (follows := _CALLED.match(text, end)) is not None:
        end = _closing(text, follows.end())
    depth = lowest = 0
    for char in _COMMENT.sub("", text[start:end]):
        depth += (char in "([") - (char in ")]")
        lowest = min(lowest, depth)
    for _ in range(depth - lowest):
        end = _closing(text, end)
    for _ in range(-lowest):
        start = text.rindex("(", 0, start)
    return Span(source, start, end)


def _closing(text: str, start: int) -> int:
    """Just after the bracket that closes the one before ``start``."""
    depth, at = 1, start
    while depth:
        if (comment := _COMMENT.match(text, at)) is not None:
            at = comment.end()
            continue
        depth += (text[at] in "([") - (text[at] in ")]")
        at += 1
    return at


def _place(operand: Operand) -> tuple[str, int, str]:
    return operand.span.source.name, operand.span.start, show(operand.expression)
