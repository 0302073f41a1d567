"""Scalar expressions as source text: Python over integers or tensors, and Triton.

Only integers, enumerated operators and names that the emitter chose are ever printed.
"""

from __future__ import annotations

from collections.abc import Mapping

from patternc.scalar import Const, Op, Scalar, Var, bounds

POSITION_LIMIT = 1 << 24
"""Emitted kernels take sequences of at most this many positions; wider intermediate values use 64 bits."""


def python(expr: Scalar, names: Mapping[str, str] | None = None, *, tensors: bool = False) -> str:
    """Python source: of integers with ``and``/``or``, or elementwise of tensors with ``&``/``|``."""
    names = names or {}

    def show(node: Scalar) -> str:
        match node:
            case Const(value):
                return repr(value)
            case Var(name):
                return names.get(name, name)
            case Op("not", (a,)):
                return f"(~{show(a)})" if tensors else f"(not {show(a)})"
            case Op("where", (c, a, b)):
                return f"where({show(c)}, {show(a)}, {show(b)})" if tensors else f"({show(a)} if {show(c)} else {show(b)})"
            case Op(("min" | "max") as name, (a, b)):
                return f"{'tensor_' if tensors else ''}{name}({show(a)}, {show(b)})"
            case Op(name, args):
                symbol = {"and": "&", "or": "|"}.get(name, name) if tensors else name
                return "(" + f" {symbol} ".join(map(show, args)) + ")"

    return _bare(show(expr))


def triton(expr: Scalar, names: Mapping[str, str] | None = None) -> str:
    """Triton source. Division there rounds toward zero, so it goes through `div`/`mod` unless the operand is known >= 0."""
    names = names or {}

    def show(node: Scalar) -> str:
        match node:
            case Const(value):
                return repr(value)
            case Var(name):
                return names.get(name, name)
            case Op("not", (a,)):
                return f"(({show(a)}) == 0)"
            case Op("where", (c, a, b)):
                return f"tl.where({show(c)}, {show(a)}, {show(b)})"
            case Op("min", (a, b)):
                return f"tl.minimum({show(a)}, {show(b)})"
            case Op("max", (a, b)):
                return f"tl.maximum({show(a)}, {show(b)})"
            case Op(("//" | "%") as name, (a, b)):
                if bounds(a, Ranges())[0] >= 0:
                    return f"({show(a)} {name} {show(b)})"
                return f"{'div' if name == '//' else 'mod'}({show(a)}, {show(b)})"
            case Op(name, args):
                symbol = {"and": "&", "or": "|"}.get(name, name)
                return "(" + f" {symbol} ".join(map(show, args)) + ")"

    return _bare(show(expr))


def _bare(text: str) -> str:
    """Without the outermost parentheses, if they enclose the whole."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0 and i < len(text) - 1:
            return text
    return text[1:-1]


class Ranges(Mapping[str, tuple[int, int]]):
    """Every variable is a position, a tile index or a length: 0 to the position limit. Tiles hold ``tile`` rows or more."""

    def __init__(self, tile: int = 1):
        self._tile = tile

    def __getitem__(self, name: str) -> tuple[int, int]:
        return 0, POSITION_LIMIT // self._tile if name in ("I", "J", "x") else POSITION_LIMIT

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(())

    def __len__(self) -> int:
        return 0


def is_wide(*exprs: Scalar, tile: int = 1) -> bool:
    """Whether some intermediate value may not fit 32 bits, with tiles of that many rows or more."""
    spans = [bounds(expr, Ranges(tile)) for expr in exprs]
    return any(low < -(2**31) or high >= 2**31 for low, high in spans)
