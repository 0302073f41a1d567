"""Text to syntax tree. The grammar is data (`grammar/pattern.lark`); the messages are written here, not by the generator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Any

from lark import Lark, Token, UnexpectedCharacters, UnexpectedToken, v_args
from lark.exceptions import VisitError
from lark.visitors import Transformer_NonRecursive

from patternc.diagnostics import PatternError
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
from patternc.source import Source, Span

MAX_SOURCE_BYTES = 64 * 1024
MAX_DEPTH = 64
MAX_ITEMS = 10_000
MAX_OPERANDS = 1_000
MAX_INTEGER = 2**31 - 1

_SUFFIX = {"": 1, "K": 1 << 10, "M": 1 << 20}
_INTEGER = re.compile(r"([0-9]+(?:_[0-9]+)*)([KM]?)")
_OPENERS = {"(": ")", "[": "]"}
_BINARY = {"|", "&", "+", "-", "*", "//", "%", "<", "<=", ">", ">=", "==", "!=", "and", "or", "=", ",", "..", "~", "not"}
_LEADING = _BINARY - {"~", "not"} | {")", "]"}


def parse_program(text: str, name: str = "<pattern>") -> Program:
    """Parse definitions, an optional expression and what is claimed about them.

    Raises:
        PatternError: the text is not in the language or over a limit; the error holds the place and a hint.
    """
    source = Source(text, name)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
        raise PatternError("source-too-long", f"the source is over {MAX_SOURCE_BYTES // 1024} KiB", Span(source, 0, 1))
    _check_nesting(source)
    try:
        items: list[Definition | Assert | Expression] = _Builder(source).transform(_lark().parse(text))
    except UnexpectedCharacters as error:
        raise _unexpected_character(source, error.pos_in_stream or 0) from None
    except UnexpectedToken as error:
        raise _unexpected_token(source, error) from None
    except VisitError as error:
        raise error.orig_exc from None
    definitions = tuple(item for item in items if isinstance(item, Definition))
    asserts = tuple(item for item in items if isinstance(item, Assert))
    bodies = [item for item in items if not isinstance(item, Definition | Assert)]
    if len(bodies) > 1:
        message = "a program holds one expression, and this is a second one"
        raise PatternError(
            "two-expressions", message, bodies[1].span, "name it with 'let' or 'pattern', or join the two with '|' or '&'"
        )
    defaults = [p.value for d in definitions for p in d.parameters if p.value]
    for root in (*(d.value for d in definitions), *defaults, *bodies, *(a.claim for a in asserts)):
        check_limits(root, MAX_DEPTH)
    return Program(definitions, bodies[0] if bodies else None, asserts)


def _check_nesting(source: Source) -> None:
    """Depth and balance of brackets, and signs in a row, before any recursive work."""
    stack: list[tuple[str, int]] = []
    comment, signs = False, 0
    for offset, char in enumerate(source.text):
        comment = char != "\n" if comment else char == "#"
        if comment or char.isspace():
            continue
        signs = signs + 1 if char in "~-" else 0
        if signs > MAX_DEPTH + 1:  # the first may join two operands
            raise _too_deep(Span(source, offset, offset + 1))
        if char in _OPENERS:
            stack.append((char, offset))
            if len(stack) > MAX_DEPTH:
                raise _too_deep(Span(source, offset, offset + 1))
        elif char in ")]":
            if not stack or _OPENERS[stack[-1][0]] != char:
                hint = f"'{stack[-1][0]}' is closed by '{_OPENERS[stack[-1][0]]}'" if stack else "remove it"
                raise PatternError("unbalanced", f"'{char}' closes nothing", Span(source, offset, offset + 1), hint)
            stack.pop()
    if stack:
        opener, offset = stack[-1]
        end = len(source.text.rstrip())
        line, column = source.position(offset)
        message = f"'{opener}' at line {line}, column {column} is never closed"
        raise PatternError("unclosed", message, Span(source, end, end + 1), f"add '{_OPENERS[opener]}'")


def _too_deep(span: Span, limit: int = MAX_DEPTH) -> PatternError:
    return PatternError("too-deep", f"nesting is deeper than {limit} levels", span, "name the inner parts with 'let'")


def check_limits(root: Expression, max_depth: int) -> None:
    """Refuse trees that recursive work could not walk, and lists and chains that are too long."""
    stack: list[tuple[Any, int]] = [(root, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > max_depth:
            raise _too_deep(node.span, max_depth)
        match node:
            case List(items) if len(items) > MAX_ITEMS:
                raise PatternError(
                    "list-too-long", f"a list holds at most {MAX_ITEMS:,} items", node.span, "use a range such as 0..63"
                )
            case Chain(operands) if len(operands) > MAX_OPERANDS:
                raise PatternError("too-many-terms", f"an expression joins at most {MAX_OPERANDS:,} terms", node.span)
        stack += [(child, depth + 1) for child in _children(node)]


def _children(node: Any) -> Iterator[Any]:
    match node:
        case Range(first, last):
            yield from (first, last)
        case List(items):
            yield from items
        case Call(_, arguments, keywords):
            yield from arguments
            yield from (k.value for k in keywords)
        case Unary(_, operand):
            yield operand
        case Chain(operands):
            yield from operands


class _Postlex:
    """Keeps a line end only between two statements: not in brackets, beside a binary operator, or at either end."""

    always_accept = ("_NEWLINE",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        depth, previous, held = 0, "=", None
        for token in stream:
            if token.type == "_NEWLINE":
                held = token if depth == 0 and previous not in _BINARY else None
                continue
            text = str(token)
            if held is not None and text not in _LEADING:
                yield held
            held = None
            depth += (text in _OPENERS) - (text in (")", "]"))
            previous = text
            yield token


@lru_cache(maxsize=1)
def _lark() -> Lark:
    grammar = files("patternc.grammar").joinpath("pattern.lark").read_text("utf-8")
    return Lark(grammar, parser="lalr", lexer="basic", postlex=_Postlex(), propagate_positions=True, maybe_placeholders=True)


_EXPECTED = {"RPAR": "')'", "RSQB": "']'", "COMMA": "','", "EQUAL": "'='"}
_STARTS_EXPRESSION = {"NAME", "INTEGER", "LPAR"}
_OPERATORS = {"VBAR", "AMPERSAND", "PLUS", "MINUS", "STAR", "SLASH", "PERCENT", "COMPARE", "AND", "OR"}
_HINTS = {
    "||": "union is '|'",
    "&&": "intersection is '&'",
    "/": "division rounds down and is written '//'",
    "!": "complement is '~'",
    "^": "a symmetric difference is (a - b) | (b - a)",
    "=": "equality is '=='",
    '"': "names are written without quotes",
    "'": "names are written without quotes",
    "≤": "write '<='",
    "≥": "write '>='",
    "≠": "write '!='",
    "\N{MINUS SIGN}": "write '-'",
    ".": "numbers are whole, and a range in a list is written 0..63",
}


def _unexpected_character(source: Source, offset: int) -> PatternError:
    char = source.text[offset]
    hint = next((h for mark, h in _HINTS.items() if source.text.startswith(mark, offset)), None)
    return PatternError("illegal-character", f"illegal character {char!r}", Span(source, offset, offset + 1), hint)


def _unexpected_token(source: Source, error: UnexpectedToken) -> PatternError:
    token, accepts = error.token, set(error.accepts or error.expected)
    if token.type == "$END" or (token.type == "_NEWLINE" and not source.text[token.start_pos :].strip()):
        end = len(source.text.rstrip())
        span, found = Span(source, end, end + 1), "the text ends here"
    else:
        start = token.start_pos or 0
        span = Span(source, start, start + len(token))
        found = "this line ends" if token.type == "_NEWLINE" else f"found '{token}'"
    wanted = [shown for token_type, shown in _EXPECTED.items() if token_type in accepts]
    if _STARTS_EXPRESSION <= accepts:
        wanted = ["an expression"]
    elif accepts & _OPERATORS:
        wanted = ["an operator", *wanted]
    elif accepts <= {"_NEWLINE", "$END"}:
        wanted = ["the end of the line"]
    elif accepts <= {"NAME", "_NEWLINE", "RPAR"}:
        wanted = ["a name", *wanted]
    hint = None
    before = source.text[: span.start].rstrip()
    if token.type in ("VBAR", "AMPERSAND") and before.endswith(str(token)):
        hint = _HINTS[str(token) * 2]
    elif token == "=" and "an operator" in wanted:
        hint = _HINTS["="]
    elif token.type in ("INTEGER", "LSQB") and "an operator" in wanted and re.search(r"[A-Za-z_]\w*$", before):
        hint = "arguments stand in parentheses, as in window(4) or global([0])"
    elif token.type in ("AT", "FOR_ALL") or ("AT" in accepts and token in ("at", "for")):
        hint = "an assert ends in 'for all n', or in 'at' and a number, such as 'at 4K'"
    elif token.type in ("NAME", "LPAR", "INTEGER", "TILDE") and "an operator" in wanted:
        hint = "join two patterns with '|' (union) or '&' (intersection)"
    elif token.type in ("LET", "DEF", "PATTERN"):
        hint = f"'{token}' is a keyword and starts a definition on a line of its own"
    elif token.type == "ASSERT":
        hint = "'assert' is a keyword and starts a claim on a line of its own"
    return PatternError("syntax", f"{found}, where {_one_of(wanted)} was expected", span, hint)


def _one_of(wanted: list[str]) -> str:
    return "something else" if not wanted else wanted[0] if len(wanted) == 1 else f"{', '.join(wanted[:-1])} or {wanted[-1]}"


@v_args(inline=True)
class _Builder(Transformer_NonRecursive[Token, Any]):
    """Turns lark's tree into ours; lark calls the method named like the rule."""

    def __init__(self, source: Source):
        super().__init__()
        self._source = source

    def _span(self, token: Token) -> Span:
        start = token.start_pos or 0
        return Span(self._source, start, start + len(token))

    def start(self, *items: Definition | Assert | Expression) -> list[Definition | Assert | Expression]:
        return list(items)

    def body(self, value: Expression) -> Expression:
        return value

    def let(self, name: Token, value: Expression) -> Definition:
        return Definition("let", str(name), (), value, self._span(name))

    def named(self, name: Token, value: Expression) -> Definition:
        return Definition("pattern", str(name), (), value, self._span(name))

    def function(self, name: Token, parameters: tuple[Keyword, ...] | None, value: Expression) -> Definition:
        return Definition("def", str(name), parameters or (), value, self._span(name))

    @v_args(meta=True, inline=True)
    def claim(self, meta: Any, value: Expression, at: Integer | None) -> Assert:
        return Assert(value, at, Span(self._source, meta.start_pos, meta.end_pos))

    def every(self, _: Token) -> None:
        return None

    def at(self, _: Token, number: Token) -> Integer:
        return self.integer(number)

    def parameters(self, *items: Keyword | None) -> tuple[Keyword, ...]:
        return tuple(item for item in items if item is not None)

    def parameter(self, name: Token, default: Expression | None) -> Keyword:
        return Keyword(str(name), default, self._span(name))

    def integer(self, token: Token) -> Integer:
        span = self._span(token)
        match = _INTEGER.fullmatch(token)
        if match is None:
            raise _bad_number(token, span)
        digits, suffix = match.groups()
        value = int(digits.replace("_", "")[:12]) * _SUFFIX[suffix]
        if value > MAX_INTEGER:
            raise PatternError("integer-too-large", f"{token} is over {MAX_INTEGER:,} (2^31 - 1)", span)
        return Integer(value, span)

    def name(self, token: Token) -> Name:
        return Name(str(token), self._span(token))

    def keyword(self, name: Token, value: Expression) -> Keyword:
        return Keyword(str(name), value, self._span(name))

    def arguments(self, *items: Expression | Keyword | None) -> tuple[Expression | Keyword, ...]:
        return tuple(item for item in items if item is not None)

    def call(self, name: Token, arguments: tuple[Expression | Keyword, ...] | None) -> Call:
        positional: list[Expression] = []
        keywords: list[Keyword] = []
        for item in arguments or ():
            if isinstance(item, Keyword):
                keywords.append(item)
            elif keywords:
                message = "a positional argument cannot follow a keyword argument"
                raise PatternError("argument-order", message, item.span, "move it before the keyword arguments")
            else:
                positional.append(item)
        return Call(str(name), tuple(positional), tuple(keywords), self._span(name))

    def item(self, first: Expression, last: Expression | None) -> Expression | Range:
        return first if last is None else Range(first, last, first.span.to(last.span))

    def items(self, *items: Expression | Range | None) -> tuple[Expression | Range, ...]:
        return tuple(item for item in items if item is not None)

    @v_args(meta=True, inline=True)
    def list(self, meta: Any, items: tuple[Expression | Range, ...] | None) -> List:
        return List(items or (), Span(self._source, meta.start_pos, meta.end_pos))

    def group(self, value: Expression) -> Expression:
        return value

    @v_args(meta=True, inline=True)
    def complement(self, meta: Any, operand: Expression) -> Unary:
        return Unary("~", operand, Span(self._source, meta.start_pos, operand.span.end))

    @v_args(meta=True, inline=True)
    def unary_not(self, meta: Any, operand: Expression) -> Unary:
        return Unary("not", operand, Span(self._source, meta.start_pos, operand.span.end))

    def negative(self, minus: Token, operand: Expression) -> Unary:
        return Unary("-", operand, self._span(minus).to(operand.span))

    def _joined(self, operator: str, *operands: Expression) -> Chain:
        operators = (operator,) * (len(operands) - 1)
        return Chain(operands, operators, operands[0].span.to(operands[-1].span))

    def expression(self, *operands: Expression) -> Chain:
        return self._joined("or", *operands)

    def conjunct(self, *operands: Expression) -> Chain:
        return self._joined("and", *operands)

    def union(self, *operands: Expression) -> Chain:
        return self._joined("|", *operands)

    def intersection(self, *operands: Expression) -> Chain:
        return self._joined("&", *operands)

    def _mixed(self, *items: Expression | Token) -> Chain:
        operands = tuple(item for item in items if not isinstance(item, Token))
        operators = tuple(str(item) for item in items if isinstance(item, Token))
        return Chain(operands, operators, operands[0].span.to(operands[-1].span))

    comparison = sum = product = _mixed


def _bad_number(token: Token, span: Span) -> PatternError:
    digits = re.match(r"[0-9_]*", token)
    number, rest = (digits.group(), token[digits.end() :]) if digits else (str(token), "")
    if rest.upper() in ("K", "M"):
        hint = f"write {number}*{rest} for a product, {number}{rest.upper()} for {number} * {_SUFFIX[rest.upper()]:,}"
    elif rest:
        hint = f"write {number}*{rest} for a product; the size suffixes are K and M"
    else:
        hint = "underscores stand between digits, as in 4_096"
    return PatternError("bad-number", f"'{token}' is not a number", span, hint)
