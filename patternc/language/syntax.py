"""The syntax tree: frozen nodes that remember where they were written. Spans do not take part in comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from patternc.source import Span


@dataclass(frozen=True, slots=True)
class Integer:
    """A number; its size suffix is multiplied in."""

    value: int
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Name:
    """A primitive, a definition, a position or a runtime input."""

    name: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Range:
    """``first..last`` in a list, both ends included."""

    first: Expression
    last: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class List:
    """Positions and ranges of positions."""

    items: tuple[Expression | Range, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Keyword:
    """``name=value`` in a call, or a parameter of a ``def`` (whose value is its default, if it has one)."""

    name: str
    value: Expression | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A primitive, a `def` or a mixture with its arguments."""

    function: str
    arguments: tuple[Expression, ...]
    keywords: tuple[Keyword, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Unary:
    """``operator`` is one of ``~``, ``-``, ``not``."""

    operator: str
    operand: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Chain:
    """Operands of one precedence level joined by its operators, left to right: ``a - b + c``, ``0 <= q < k``."""

    operands: tuple[Expression, ...]
    operators: tuple[str, ...]
    span: Span = field(compare=False, repr=False)


Expression: TypeAlias = Integer | Name | List | Call | Unary | Chain


@dataclass(frozen=True, slots=True)
class Definition:
    """``let name = value``, ``pattern name = value`` or ``def name(parameters) = value``."""

    keyword: str
    name: str
    parameters: tuple[Keyword, ...]
    value: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Assert:
    """``assert claim``, for every n, or ``at`` one."""

    claim: Expression
    at: Integer | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Program:
    """Definitions, the expression they serve (None in a file of definitions), and what is claimed about them."""

    definitions: tuple[Definition, ...]
    body: Expression | None
    asserts: tuple[Assert, ...] = ()
