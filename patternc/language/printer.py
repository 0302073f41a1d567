"""Syntax trees back to text: ``parse(print(tree)) == tree``."""

from __future__ import annotations

from patternc.language.syntax import (
    Assert,
    Call,
    Chain,
    Definition,
    Expression,
    Integer,
    Keyword,
    List,
    Name,
    Program,
    Range,
    Unary,
)

LEVELS = (
    ("or",),
    ("and",),
    ("not",),
    ("<", "<=", ">", ">=", "==", "!="),
    ("|",),
    ("&",),
    ("+", "-"),
    ("*", "//", "%"),
    ("~",),
)
_LEVEL = {operator: level for level, operators in enumerate(LEVELS) for operator in operators}
_UNARY_LEVEL = {"not": _LEVEL["not"], "~": _LEVEL["~"], "-": _LEVEL["~"]}


def show(tree: Program | Definition | Assert | Expression) -> str:
    """The text of a tree, with the parentheses it needs and no others."""
    match tree:
        case Program(definitions, body, asserts):
            middle = [] if body is None else [_after_definitions(body)]
            return "\n".join([*map(show, definitions), *middle, *map(show, asserts)])
        case Definition("def", name, parameters, value):
            return f"def {name}({', '.join(_keyword(p) for p in parameters)}) = {_show(value, 0)}"
        case Definition(keyword, name, _, value):
            return f"{keyword} {name} = {_show(value, 0)}"
        case Assert(claim, at):
            return f"assert {_show(claim, 0)}{'' if at is None else f' at {at.value}'}"
        case _:
            return _show(tree, 0)


def _after_definitions(body: Expression) -> str:
    text = show(body)
    return f"({text})" if text.startswith("-") else text  # a line that starts with '-' would continue the one before


def _keyword(node: Keyword) -> str:
    return node.name if node.value is None else f"{node.name}={_show(node.value, 0)}"


def _item(node: Expression | Range) -> str:
    if isinstance(node, Range):
        return f"{_show(node.first, 0)}..{_show(node.last, 0)}"
    return _show(node, 0)


def _show(node: Expression, outer: int) -> str:
    match node:
        case Integer(value):
            return str(value)
        case Name(name):
            return name
        case List(items):
            return f"[{', '.join(map(_item, items))}]"
        case Call(function, arguments, keywords):
            return f"{function}({', '.join([*(_show(a, 0) for a in arguments), *map(_keyword, keywords)])})"
        case Unary(operator, operand):
            level = _UNARY_LEVEL[operator]
            shown = f"{operator}{' ' if operator == 'not' else ''}{_show(operand, level)}"
        case Chain(operands, operators):
            level = _LEVEL[operators[0]]
            shown = _show(operands[0], level + 1)
            for operator, operand in zip(operators, operands[1:], strict=True):
                shown += f" {operator} {_show(operand, level + 1)}"
    return f"({shown})" if level < outer else shown
