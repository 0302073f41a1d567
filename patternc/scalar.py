"""Integer and boolean expressions over a few named variables: the small language that masks and loop bounds are kept in.

Conditions of the language (`where(...)`, the primitives) and everything the integer set library hands back (predicates,
loop bounds) are these trees; each backend only has to print them. Division rounds down and the remainder is never
negative, as in Python and in mathematics; divisors are positive constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Operator: TypeAlias = Literal["+", "-", "*", "//", "%", "min", "max", "<", "<=", "==", "!=", "and", "or", "not", "where"]


@dataclass(frozen=True, slots=True)
class Const:
    """A number or a truth value."""

    value: int | bool


@dataclass(frozen=True, slots=True)
class Var:
    """A position, a length, a loop variable, or a named truth value."""

    name: str


@dataclass(frozen=True, slots=True)
class Op:
    """An operator applied to its operands."""

    op: Operator
    args: tuple[Scalar, ...]


Scalar: TypeAlias = Const | Var | Op

TRUE, FALSE, ZERO = Const(True), Const(False), Const(0)
Q, K, N = Var("q"), Var("k"), Var("n")


def op(name: Operator, *args: Scalar | int) -> Scalar:
    """Build ``name(args)``, folding constants and the neutral elements."""
    nodes = tuple(Const(a) if isinstance(a, int) else a for a in args)
    if all(isinstance(a, Const) for a in nodes):
        return Const(_apply(name, [a.value for a in nodes if isinstance(a, Const)], min, max, _choose))
    match name, nodes:
        case ("+", (a, Const(0))) | ("+", (Const(0), a)) | ("-", (a, Const(0))):
            return a
        case ("*", (a, Const(1))) | ("*", (Const(1), a)) | ("//", (a, Const(1))):
            return a
        case ("*", (_, Const(0))) | ("*", (Const(0), _)) | ("%", (_, Const(1))):
            return ZERO
        case ("+", (a, Const(int(c)))) if c < 0:
            return op("-", a, -c)
        case "and", _:
            return _join("and", nodes, TRUE, FALSE)
        case "or", _:
            return _join("or", nodes, FALSE, TRUE)
        case "where", (Const(c), a, b):
            return a if c else b
        case (("min" | "max"), (a, b)) if a == b:
            return a
    return Op(name, nodes)


def conjunction(parts: Iterable[Scalar]) -> Scalar:
    """All of the parts; true where there are none."""
    return _join("and", tuple(parts), TRUE, FALSE)


def conjuncts(condition: Scalar) -> tuple[Scalar, ...]:
    """The parts that all must hold: the operands of an "and", or the condition itself."""
    return condition.args if isinstance(condition, Op) and condition.op == "and" else (condition,)


def disjunction(parts: Iterable[Scalar]) -> Scalar:
    """Any of the parts; false where there are none."""
    return _join("or", tuple(parts), FALSE, TRUE)


def _join(name: Literal["and", "or"], parts: tuple[Scalar, ...], neutral: Const, absorbing: Const) -> Scalar:
    flat: list[Scalar] = []
    for part in parts:
        flat += part.args if isinstance(part, Op) and part.op == name else [part]
    kept = tuple(dict.fromkeys(p for p in flat if p != neutral))
    if absorbing in kept:
        return absorbing
    return neutral if not kept else kept[0] if len(kept) == 1 else Op(name, kept)


def variables(expr: Scalar) -> frozenset[str]:
    """The names that occur in ``expr``."""
    match expr:
        case Var(name):
            return frozenset({name})
        case Op(_, args):
            return frozenset().union(*(variables(a) for a in args))
    return frozenset()


def size(expr: Scalar) -> int:
    """The number of operators and operands."""
    return 1 + sum(size(a) for a in expr.args) if isinstance(expr, Op) else 1


def substitute(expr: Scalar, values: Mapping[str, Scalar]) -> Scalar:
    """``expr`` with some of its variables replaced."""
    match expr:
        case Var(name):
            return values.get(name, expr)
        case Op(name, args):
            return op(name, *(substitute(a, values) for a in args))
    return expr


def evaluate(expr: Scalar, values: Mapping[str, Any], xp: Any = None) -> Any:
    """The value of ``expr``: of plain ints, or elementwise over arrays when ``xp`` (numpy or torch) is given."""
    match expr:
        case Const(value):
            return value
        case Var(name):
            return values[name]
        case Op(name, args):
            operands = [evaluate(a, values, xp) for a in args]
            if xp is None or not any(hasattr(a, "shape") for a in operands):
                return _apply(name, operands, min, max, _choose)
            if name in ("min", "max", "where"):
                like = next(a for a in operands if hasattr(a, "shape"))
                operands = [a if hasattr(a, "shape") else xp.asarray(a, **_placement(like)) for a in operands]
            return _apply(name, operands, xp.minimum, xp.maximum, xp.where)


def _placement(like: Any) -> dict[str, Any]:
    return {} if type(like).__module__ == "numpy" else {"device": like.device}


def _choose(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


def _apply(name: Operator, a: list[Any], minimum: Any, maximum: Any, where: Any) -> Any:
    match name:
        case "+":
            return a[0] + a[1]
        case "-":
            return a[0] - a[1]
        case "*":
            return a[0] * a[1]
        case "//":
            return a[0] // a[1]
        case "%":
            return a[0] % a[1]
        case "min":
            return minimum(a[0], a[1])
        case "max":
            return maximum(a[0], a[1])
        case "<":
            return a[0] < a[1]
        case "<=":
            return a[0] <= a[1]
        case "==":
            return a[0] == a[1]
        case "!=":
            return a[0] != a[1]
        case "and" | "or":
            out = a[0]
            for part in a[1:]:
                out = out & part if name == "and" else out | part
            return out
        case "not":
            return not a[0] if isinstance(a[0], bool) else ~a[0]
        case "where":
            return where(a[0], a[1], a[2])


def bounds(expr: Scalar, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """The least and the largest value that ``expr`` or any part of it can take (interval arithmetic)."""
    low, high = 0, 0

    def visit(node: Scalar) -> tuple[int, int]:
        nonlocal low, high
        span = _interval(node, [visit(a) for a in node.args] if isinstance(node, Op) else [], ranges)
        low, high = min(low, span[0]), max(high, span[1])
        return span

    visit(expr)
    return low, high


def _interval(node: Scalar, args: list[tuple[int, int]], ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    match node:
        case Const(value):
            return int(value), int(value)
        case Var(name):
            return ranges[name]
        case Op("+", _):
            return args[0][0] + args[1][0], args[0][1] + args[1][1]
        case Op("-", _):
            return args[0][0] - args[1][1], args[0][1] - args[1][0]
        case Op("*", _):
            products = [x * y for x in args[0] for y in args[1]]
            return min(products), max(products)
        case Op("//", (_, Const(int(d)))):
            return args[0][0] // d, args[0][1] // d
        case Op("%", (_, Const(int(d)))):
            return 0, d - 1
        case Op("min", _):
            return min(a[0] for a in args), min(a[1] for a in args)
        case Op("max", _):
            return max(a[0] for a in args), max(a[1] for a in args)
        case Op("where", _):
            return min(args[1][0], args[2][0]), max(args[1][1], args[2][1])
    return 0, 1


_PRECEDENCE = {"or": 1, "and": 2, "not": 3, "<": 4, "<=": 4, "==": 4, "!=": 4, "+": 5, "-": 5, "*": 6, "//": 6, "%": 6}


def text(expr: Scalar) -> str:
    """``expr`` as a person (or the language's own ``where``) writes it."""

    def show(node: Scalar, outer: int) -> str:
        match node:
            case Const(bool(value)):
                return "true" if value else "false"
            case Const(value):
                return str(value)
            case Var(name):
                return name
            case Op(("min" | "max" | "where") as name, args):
                return f"{name}({', '.join(show(a, 0) for a in args)})"
            case Op("not", (a,)):
                return _wrap(f"not {show(a, 4)}", 3, outer)
            case Op(name, args):
                level = _PRECEDENCE[name]
                first, *rest = args
                parts = [show(first, level), *(show(a, level + 1) for a in rest)]
                return _wrap(f" {name} ".join(parts), level, outer)

    return show(expr, 0)


def _wrap(shown: str, level: int, outer: int) -> str:
    return f"({shown})" if level < outer else shown
