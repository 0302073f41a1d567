"""Names to what they stand for: definitions inlined, mixtures indexed. What is left needs no environment.

A pattern is a function of (layer, head): `layers(...)` and `heads(...)` are schedules that repeat, and `select` takes the
one that a layer and a head use. `gated(...)` names several attentions of one layer: `select` takes one of them too, and
`joined` says what they read together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from math import lcm
from types import MappingProxyType

from patternc.diagnostics import PatternError, suggest
from patternc.language.parser import check_limits, parse_program
from patternc.language.primitives import PRIMITIVES
from patternc.language.scoring import SCORERS
from patternc.language.syntax import (
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
from patternc.source import Span

MAX_NODES = 20_000
MAX_INLINED_DEPTH = 128
MAX_VARIANTS = 1_000
MAX_PERIOD = 4_096
MIXTURES = ("heads", "layers")
GATED = "gated"
SCORING = frozenset(SCORERS) - {"indexer"}  # a plain `indexer` is a name as any other
RESERVED = frozenset({"q", "k", "n", "all", "true", "false", "where", *MIXTURES, GATED, *PRIMITIVES, *SCORING})

Definitions = Mapping[str, Definition]


def presets_text() -> str:
    """The text of `grammar/presets.pat`."""
    return files("patternc.grammar").joinpath("presets.pat").read_text("utf-8")


@lru_cache(maxsize=1)
def preset_definitions() -> Definitions:
    """The definitions of `grammar/presets.pat`, by name."""
    return MappingProxyType({d.name: d for d in parse_program(presets_text(), "presets.pat").definitions})


def resolve(program: Program) -> Expression:
    """The program's expression with every definition inlined.

    Raises:
        PatternError: names defined twice or wrongly, recursion, wrong arguments of a `def`, or too large a result.
    """
    own = _own_definitions(program)
    if program.body is None:
        if not program.definitions:
            raise PatternError("empty", "there is no pattern here", None, 'write one, such as "causal & window(4096)"')
        last = program.definitions[-1]
        raise PatternError(
            "no-expression", "there are definitions here, but no expression to use", last.span, f"end with '{last.name}'"
        )
    return Inliner(own).inlined(program.body)


def named_patterns(program: Program) -> dict[str, Expression]:
    """Every `pattern name = ...` of a file, inlined."""
    own = _own_definitions(program)
    return {d.name: Inliner(own).inlined(d.value) for d in program.definitions if d.keyword == "pattern"}


def inliner(program: Program) -> Inliner:
    """What writes out other expressions of a program; all of them together may have as many parts as one.

    Raises:
        PatternError: names defined twice or wrongly.
    """
    return Inliner(_own_definitions(program))


def _own_definitions(program: Program) -> Definitions:
    own: dict[str, Definition] = {}
    for definition in program.definitions:
        for name, span in [(definition.name, definition.span), *((p.name, p.span) for p in definition.parameters)]:
            if name in RESERVED:
                raise PatternError(
                    "reserved-name", f"'{name}' is a word of the language and cannot be redefined", span, f"call it '{name}_'"
                )
        for i, parameter in enumerate(definition.parameters):
            if parameter.name in [p.name for p in definition.parameters[:i]]:
                raise PatternError(
                    "defined-twice", f"'{definition.name}' has two parameters '{parameter.name}'", parameter.span
                )
        if definition.name in own:
            raise PatternError("defined-twice", f"'{definition.name}' is already defined", definition.span)
        own[definition.name] = definition
    return own


class Inliner:
    """Substitutes definitions and parameters, counting the nodes that the written-out tree would have."""

    def __init__(self, own: Definitions):
        self._definitions = {**preset_definitions(), **own}
        self._active: list[str] = []
        self._nodes = 0
        self._depth = 0

    def defines(self, name: str) -> bool:
        """Whether the name is one of the definitions, the presets among them."""
        return name in self._definitions

    def inlined(self, root: Expression) -> Expression:
        """``root`` without definitions, within the limits."""
        written_out = self.inline(root)
        check_limits(written_out, MAX_INLINED_DEPTH)
        branches(written_out)
        return written_out

    def inline(self, node: Expression, parameters: Mapping[str, Expression] = MappingProxyType({})) -> Expression:
        self._count(node, 1)
        if self._depth == MAX_INLINED_DEPTH:
            message = f"written out, this is nested deeper than {MAX_INLINED_DEPTH} levels"
            raise PatternError("too-deep", message, node.span, "each definition that uses another adds a level")
        self._depth += 1
        changed = self._inline(node, parameters)
        self._depth -= 1
        return changed

    def _count(self, node: Expression, parts: int) -> None:
        self._nodes += parts
        if self._nodes > MAX_NODES:
            raise PatternError(
                "too-large", f"written out, this has over {MAX_NODES:,} parts", node.span, "definitions multiply when they nest"
            )

    def _inline(self, node: Expression, parameters: Mapping[str, Expression]) -> Expression:
        match node:
            case Name(name) if name in parameters:
                self._count(node, sum(1 for _ in walk(parameters[name])))
                return parameters[name]
            case Name(name, span) if name in self._definitions:
                return self._expand(self._definitions[name], {}, span)
            case Call(function, arguments, keywords, span) if function in self._definitions:
                definition = self._definitions[function]
                if definition.keyword != "def":
                    raise PatternError("not-callable", f"'{function}' takes no arguments", span, f"write '{function}'")
                inlined = [self.inline(a, parameters) for a in arguments]
                named = [(k.name, self.inline(_value(k), parameters), k.span) for k in keywords]
                return self._expand(definition, self._bind(definition, inlined, named, span), span)
            case _:
                return map_children(node, lambda child: self.inline(child, parameters))

    def _expand(self, definition: Definition, bound: Mapping[str, Expression], span: Span) -> Expression:
        if definition.name in self._active:
            chain = " -> ".join([*self._active[self._active.index(definition.name) :], definition.name])
            raise PatternError("recursion", f"'{definition.name}' is defined by itself: {chain}", span)
        if definition.parameters and not bound:
            bound = self._bind(definition, [], [], span)
        self._active.append(definition.name)
        expanded = self.inline(definition.value, bound)
        self._active.pop()
        return expanded

    def _bind(
        self, definition: Definition, arguments: list[Expression], keywords: list[tuple[str, Expression, Span]], span: Span
    ) -> dict[str, Expression]:
        names = [p.name for p in definition.parameters]
        if len(arguments) > len(names):
            raise PatternError(
                "too-many-arguments",
                f"'{definition.name}' takes {count_arguments(len(names))}, and this is one more",
                arguments[len(names)].span,
            )
        bound = dict(zip(names, arguments, strict=False))
        for name, value, at in keywords:
            check_keyword(definition.name, name, names, bound, at)
            bound[name] = value
        for parameter in definition.parameters:
            if parameter.name not in bound:
                if parameter.value is None:
                    raise PatternError(
                        "missing-argument",
                        f"'{definition.name}' needs '{parameter.name}'",
                        span,
                        f"its arguments are {', '.join(names)}",
                    )
                bound[parameter.name] = self.inline(parameter.value)
        return bound


def check_keyword(function: str, name: str, known: list[str], bound: Mapping[str, object], span: Span) -> None:
    """Refuse a keyword argument that the function does not have, or that was given before."""
    if name not in known:
        hint = suggest(name, known) or (f"its arguments are {', '.join(known)}" if known else None)
        raise PatternError("unknown-argument", f"'{function}' has no argument '{name}'", span, hint)
    if name in bound:
        raise PatternError("duplicate-argument", f"'{function}' got '{name}' twice", span)


def count_arguments(number: int) -> str:
    """ "no arguments", "1 argument", "2 arguments"."""
    return "no arguments" if number == 0 else f"{number} argument{'s' if number > 1 else ''}"


def _value(keyword: Keyword) -> Expression:
    assert keyword.value is not None
    return keyword.value


def map_children(node: Expression, change: Callable[[Expression], Expression]) -> Expression:
    """``node`` with ``change`` applied to its direct subexpressions."""
    match node:
        case List(items):
            return replace(node, items=tuple(_map_item(item, change) for item in items))
        case Call(_, arguments, keywords):
            changed = tuple(replace(k, value=change(_value(k))) for k in keywords)
            return replace(node, arguments=tuple(map(change, arguments)), keywords=changed)
        case Unary(_, operand):
            return replace(node, operand=change(operand))
        case Chain(operands):
            return replace(node, operands=tuple(map(change, operands)))
    return node


def _map_item(item: Expression | Range, change: Callable[[Expression], Expression]) -> Expression | Range:
    return replace(item, first=change(item.first), last=change(item.last)) if isinstance(item, Range) else change(item)


def walk(node: Expression) -> Iterator[Expression]:
    """The node and everything below it."""
    yield node
    below: list[Expression] = []
    map_children(node, lambda child: below.append(child) or child)  # type: ignore[func-returns-value]
    for child in below:
        yield from walk(child)


def chooses(node: Expression) -> bool:
    """Whether something in it picks from what stands beside it."""
    return any(isinstance(part, Call) and part.function in ("random", "topk") for part in walk(node))


def branches(node: Expression) -> tuple[str, ...]:
    """The names of the attentions that ``gated(...)`` joins in a pattern; none where there is no such part.

    Raises:
        PatternError: it stands where it would not join whole attentions, or layers have branches of other names.
    """
    joins = [part for part in walk(node) if isinstance(part, Call) and part.function == GATED]
    whole = list(_whole(node)) if joins else []
    if len(joins) > len(whole):
        misplaced = next(part for part in joins if not any(part is one for one in whole))
        message = "'gated' joins whole attentions, and this is a part of one"
        hint = "it stands by itself, beside '&' or '|', or in layers(...); heads(...) stands in its branches"
        raise PatternError("gated", message, misplaced.span, hint)
    found: tuple[str, ...] = ()
    for call in whole:
        names = tuple(keyword.name for keyword in call.keywords)
        if call.arguments or not names:
            example = "gated(local=window(512), far=stride(64))"
            raise PatternError("gated", "'gated' takes patterns, each with a name", call.span, f"as in {example}")
        for i, keyword in enumerate(call.keywords):
            check_keyword(GATED, keyword.name, list(names), dict.fromkeys(names[:i]), keyword.span)
        if found and names != found:
            message = f"other layers have the branches {', '.join(found)}"
            raise PatternError("gated", message, call.span, "give them the same names, in this order")
        found = names
    return found


def _whole(node: Expression) -> Iterator[Call]:
    """The ``gated(...)`` whose branches each make a whole attention: at most one for a layer."""
    match node:
        case Call(function) if function == GATED:
            yield node
        case Call("layers", (argument,)):
            parts = argument.operands if isinstance(argument, Chain) and set(argument.operators) == {"+"} else (argument,)
            for part in parts:
                yield from _whole(part.operands[-1] if isinstance(part, Chain) and part.operators == ("*",) else part)
        case Chain(operands, operators) if set(operators) <= {"|", "&"}:
            yield from next((found for operand in operands if (found := list(_whole(operand)))), [])
        case Chain((first, *_), ("-", *_)):
            yield from _whole(first)


def joined(node: Expression) -> Expression:
    """The pattern with each ``gated(...)`` as the union of its branches: what they read together."""
    if isinstance(node, Call) and node.function == GATED:
        values = tuple(_value(keyword) for keyword in node.keywords)
        return values[0] if len(values) == 1 else Chain(values, ("|",) * (len(values) - 1), node.span)
    return map_children(node, joined)


def mixture_items(call: Call) -> list[tuple[int, Expression]]:
    """The (repeat, pattern) items of ``heads(4 * A + 4 * B)`` or ``layers(...)``, and the branches of ``gated(...)``."""
    if call.function == GATED:
        return [(1, _value(keyword)) for keyword in call.keywords]
    if len(call.arguments) != 1 or call.keywords:
        raise PatternError(
            "mixture", f"'{call.function}' takes one sum of patterns", call.span, f"{call.function}(4 * causal + full)"
        )
    (argument,) = call.arguments
    parts = argument.operands if isinstance(argument, Chain) and set(argument.operators) == {"+"} else (argument,)
    items = []
    for part in parts:
        match part:
            case Chain((Integer(repeat, span), pattern), ("*",)):
                if repeat < 1:
                    raise PatternError("not-positive", f"a pattern is repeated at least once, not {repeat} times", span)
                items.append((repeat, pattern))
            case Chain(_, operators) if set(operators) & {"*", "+", "//", "%"}:
                message = f"'{call.function}' takes a sum of patterns, each with a repeat before it"
                raise PatternError("mixture", message, part.span, f"{call.function}(4 * (causal & window(128)) + causal)")
            case _:
                items.append((1, part))
    if sum(repeat for repeat, _ in items) > MAX_PERIOD:
        raise PatternError(
            "too-many-repeats", f"'{call.function}' repeats after at most {MAX_PERIOD:,} {call.function}", call.span
        )
    return items


def period(node: Expression, mixture: str) -> int:
    """After how many heads (layers) the pattern repeats; 1 where there is no such mixture."""
    found = 1
    for part in walk(node):
        if isinstance(part, Call) and part.function == mixture:
            found = lcm(found, sum(repeat for repeat, _ in mixture_items(part)))
            if found > MAX_PERIOD:
                raise PatternError(
                    "too-many-repeats", f"these {mixture} repeat only after {found:,}, over {MAX_PERIOD:,}", part.span
                )
    return found


def variants(node: Expression) -> list[tuple[int, int, Expression]]:
    """Every distinct pattern among the layers and heads, with a (layer, head) that uses it.

    Raises:
        PatternError: there are too many of them.
    """
    found: dict[Expression, tuple[int, int]] = {}
    parts = 0
    for layer in _turns(node, "layers"):
        of_layer = joined(select(node, {"layers": layer}))
        for head in _turns(of_layer, "heads"):
            one = select(of_layer, {"heads": head})
            parts += sum(1 for _ in walk(one))
            if parts > MAX_NODES:
                message = f"written out for every layer and head, this has over {MAX_NODES:,} parts"
                raise PatternError("too-large", message, node.span, "layers(...) and heads(...) multiply when they are joined")
            found.setdefault(one, (layer, head))
    if len(found) > MAX_VARIANTS:
        message = f"the layers and heads use {len(found):,} different patterns, over {MAX_VARIANTS:,}"
        raise PatternError("too-large", message, node.span, "layers(...) and heads(...) multiply when they are joined")
    return [(layer, head, one) for one, (layer, head) in found.items()]


def joint_variants(a: Expression, b: Expression) -> list[tuple[int, int, Expression, Expression]]:
    """Every distinct pair of patterns that one layer and head of both use, with such a layer and head."""
    joined = Chain((a, b), ("|",), a.span)
    pairs = ((layer, head, one.operands) for layer, head, one in variants(joined) if isinstance(one, Chain))
    return [(layer, head, operands[0], operands[1]) for layer, head, operands in pairs]


def _turns(node: Expression, mixture: str) -> list[int]:
    """For each combination of items that the mixtures of one kind take together, the first index that takes it."""
    size = period(node, mixture)
    mixtures = (part for part in walk(node) if isinstance(part, Call) and part.function == mixture)
    shapes = dict.fromkeys(tuple(repeat for repeat, _ in mixture_items(part)) for part in mixtures)
    columns = [[i for i, repeat in enumerate(shape) for _ in range(repeat)] for shape in shapes]
    taken = zip(*(column * (size // len(column)) for column in columns), strict=True) if columns else [()]
    first: dict[tuple[int, ...], int] = {}
    for index, items in enumerate(taken):
        first.setdefault(items, index)
    return list(first.values())


def select(node: Expression, chosen: Mapping[str, int]) -> Expression:
    """The pattern of one head, layer and/or branch, such as ``{"heads": 3}``."""
    if isinstance(node, Call) and node.function in chosen:
        items = mixture_items(node)
        index = chosen[node.function] % sum(repeat for repeat, _ in items)
        for repeat, pattern in items:
            if index < repeat:
                return select(pattern, chosen)
            index -= repeat
    return map_children(node, lambda child: select(child, chosen))
