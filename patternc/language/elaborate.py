"""Syntax to meaning: a closed expression (one head of one layer) becomes a union of terms over exact relations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, reduce
from math import lcm
from typing import Any, get_args

from patternc.diagnostics import PatternError, suggest
from patternc.language.parser import MAX_INTEGER, parse_program
from patternc.language.primitives import PRIMITIVES
from patternc.language.printer import show
from patternc.language.resolve import RESERVED, SCORING, check_keyword, count_arguments, preset_definitions, walk
from patternc.language.scoring import SCORERS
from patternc.language.syntax import Call, Chain, Expression, Integer, Keyword, List, Name, Range, Unary
from patternc.language.words import BadArgument, Count, Input, Positions, Scores, Size, Static, Word
from patternc.relation import ELABORATION_BUDGET, BudgetExceeded, Relation, budget
from patternc.scalar import FALSE, TRUE, Const, Op, Scalar, Var, bounds, conjunction, disjunction, op
from patternc.scorers import Given, Scorer
from patternc.source import Span
from patternc.terms import CannotComplement, Condition, Document, Layout, Meaning, Random, Share, TooManyTerms, TopK

_POSITIONS = ("q", "k", "n")
MAX_DIVISIONS = 4
MAX_PARTS = 128
MAX_VALUE = 2**62
_RANGES = dict.fromkeys(_POSITIONS, (0, MAX_INTEGER))
_COMPARISONS = {"<", "<=", ">", ">=", "==", "!="}


def meaning(node: Expression) -> Meaning:
    """The union of terms that a closed, mixture-free expression stands for.

    Raises:
        PatternError: unknown names, wrong arguments, types that do not fit, or sets too complex to compute exactly.
    """
    try:
        with budget(ELABORATION_BUDGET):
            found = _pattern(node).with_forced()
            for term in found.terms:
                for one in term.conditions:
                    one.relation.predicate  # noqa: B018 - every later use needs it, so it counts towards this budget
                for choice in term.choices:
                    if isinstance(choice, Random):
                        term.relation.block_rows(choice.block)
                    else:
                        choice.force.predicate  # noqa: B018
            return found
    except BudgetExceeded as error:
        error.__context__ = None  # islpy's errors refuse to be compared, which breaks tools that walk error chains
        message = f"this is too complex: {error}"
        raise PatternError("too-complex", message, node.span, "use fewer and smaller moduli in one condition") from None
    except TooManyTerms:
        raise PatternError("too-many-terms", "distributing '&' over '|' gives over 1,000 terms", node.span) from None


def _pattern(node: Expression) -> Meaning:
    match node:
        case Name(name, span):
            return _of_result(*_primitive(name, [], (), span))
        case Call("where", arguments, keywords, span):
            if len(arguments) != 1 or keywords:
                hint = "equality is '=='" if keywords else "as in where(0 <= q - k and q - k < 128)"
                raise PatternError("wrong-argument", "'where' takes one condition on q, k and n", span, hint)
            return Meaning.of_set(Condition(Relation.where(_periodic(condition(arguments[0]), span))))
        case Call(function, arguments, keywords, span):
            return _of_result(*_primitive(function, list(arguments), keywords, span))
        case Unary("~", operand, span):
            return _complement(_pattern(operand), span)
        case Chain(operands, operators) if set(operators) <= {"|", "&", "-"}:
            parts = [_pattern(operand) for operand in operands]
            if operators[0] == "-":
                rest = [_complement(part, operand.span) for part, operand in zip(parts[1:], operands[1:], strict=True)]
                return reduce(Meaning.__and__, rest, parts[0])
            return reduce(Meaning.__or__ if operators[0] == "|" else Meaning.__and__, parts)
        case Chain(operands, operators):
            raise _not_a_pattern(node, operators)
        case Integer(value, span):
            raise PatternError(
                "wrong-type",
                f"a pattern was expected, and {value} is a number",
                span,
                f"a number is an argument, as in window({value})",
            )
        case List(_, span):
            raise PatternError(
                "wrong-type", "a pattern was expected, and this is a list", span, "columns([0..3]) reads listed keys"
            )
        case Unary(operator, _, span):
            hint = "'~' is the complement of a pattern" if operator == "not" else "a - b removes the pairs of b from a"
            raise PatternError("wrong-type", f"'{operator}' does not apply to a pattern", span, hint)


def _not_a_pattern(node: Chain, operators: tuple[str, ...]) -> PatternError:
    if set(operators) & {"+", "*"}:
        hint = "sums and repeats of patterns stand inside heads(...) or layers(...); union is '|'"
    elif set(operators) & _COMPARISONS:
        hint = "a condition on positions is written where(...)"
    else:
        hint = "union is '|' and intersection is '&'"
    return PatternError("wrong-type", f"'{operators[0]}' does not join patterns", node.span, hint)


def _complement(value: Meaning, span: Span) -> Meaning:
    try:
        return ~value
    except CannotComplement as error:
        message = f"'{error}' has no complement: which keys it picks depends on its candidates"
        raise PatternError("no-complement", message, span, "complement the patterns beside it instead") from None


def _of_result(result: Any, span: Span) -> Meaning:
    match result:
        case str(text):
            return Meaning.of_set(Condition(Relation.where(primitive_condition(text))))
        case Layout() | Document():
            return Meaning.of_set(Condition(Relation.where(TRUE), (result,)))
        case Random() | TopK():
            return Meaning.of_choice(result)
    raise AssertionError(f"a primitive at {span} returned {result!r}")


@lru_cache(maxsize=4_096)
def primitive_condition(text: str) -> Scalar:
    """A primitive's own condition text as an expression over q, k, n."""
    body = parse_program(text, "<primitive>").body
    assert body is not None
    return condition(body)


def condition(node: Expression) -> Scalar:
    """A condition of `where(...)`: comparisons of whole-number expressions joined by and, or, not."""
    match node:
        case Name("true"):
            return TRUE
        case Name("false"):
            return FALSE
        case Unary("not", operand):
            return op("not", condition(operand))
        case Chain(operands, operators) if operators[0] in ("and", "or"):
            parts = [condition(operand) for operand in operands]
            return conjunction(parts) if operators[0] == "and" else disjunction(parts)
        case Chain(operands, operators) if operators[0] in _COMPARISONS:
            values = [_bounded(operand) for operand in operands]
            return conjunction(_compare(o, a, b) for o, a, b in zip(operators, values, values[1:], strict=False))
        case Chain(_, ("|" | "&", *_)):
            raise _joins_patterns(node)
        case Name(name) | Call(name) if name in PRIMITIVES:
            hint = f"join '{name}' and where(...) with '&'"
            raise PatternError("wrong-type", f"'{name}' is a pattern, and a condition was expected", node.span, hint)
    message = "a condition was expected, such as q - k < 128"
    raise PatternError("wrong-type", message, node.span, "compare with <, <=, ==, !=, >= or >")


def _joins_patterns(node: Chain) -> PatternError:
    operator = node.operators[0]
    hint = f"write '{'or' if operator == '|' else 'and'}'"
    return PatternError("wrong-type", f"'{operator}' joins patterns, and this is a condition", node.span, hint)


def _bounded(node: Expression) -> Scalar:
    if sum(1 for _ in walk(node)) > MAX_PARTS:
        raise PatternError("too-large", f"this number has over {MAX_PARTS} parts", node.span, "add the constants up")
    value = _number(node)
    if max(map(abs, bounds(value, _RANGES))) > MAX_VALUE:
        raise PatternError("integer-too-large", "this number can grow over 2^62", node.span, "use smaller factors")
    return value


def _compare(operator: str, a: Scalar, b: Scalar) -> Scalar:
    match operator:
        case ">":
            return op("<", b, a)
        case ">=":
            return op("<=", b, a)
    return op(operator, a, b)  # type: ignore[arg-type]


def _number(node: Expression) -> Scalar:
    """A whole-number expression over q, k, n, linear up to floor division and remainder by constants."""
    match node:
        case Integer() | Unary("-", Integer()):
            return op("+", _constant(node), 0)
        case Name(name, span):
            if name not in _POSITIONS:
                raise PatternError(
                    "unknown-name", f"unknown name '{name}' in a condition", span, "conditions speak of q, k and n"
                )
            return Var(name)
        case Unary("-", operand):
            return op("-", 0, _number(operand))
        case Chain(operands, operators) if set(operators) <= {"+", "-"}:
            value = _number(operands[0])
            for operator, operand in zip(operators, operands[1:], strict=True):
                value = op(operator, value, _number(operand))  # type: ignore[arg-type]
            return value
        case Chain(operands, operators) if set(operators) <= {"*", "//", "%"}:
            value = _number(operands[0])
            for operator, operand in zip(operators, operands[1:], strict=True):
                value = _product(operator, value, _number(operand), operand.span)
            return value
        case Chain(_, ("|" | "&", *_)):
            raise _joins_patterns(node)
        case Call(function, _, _, span):
            raise PatternError(
                "wrong-type",
                f"'{function}(...)' cannot stand in a condition",
                span,
                "join patterns outside where(...) with '&'",
            )
    raise PatternError("wrong-type", "a number was expected here", node.span, "numbers are built from q, k, n with + - * // %")


def _product(operator: str, a: Scalar, b: Scalar, span: Span) -> Scalar:
    a_value, b_value = (_constant_value(x) for x in (a, b))
    if operator == "*":
        if a_value is None and b_value is None:
            raise PatternError(
                "not-linear", "a product of two variables is not allowed", span, "one of the two factors must be a constant"
            )
        return op("*", a, b) if a_value is not None else op("*", b, a)
    if b_value is None:
        raise PatternError("not-linear", f"'{operator}' by a variable is not allowed", span, "divide by a constant")
    if b_value == 0:
        raise PatternError("division-by-zero", "division by zero", span)
    if b_value < 0:
        raise PatternError(
            "not-positive", f"'{operator}' by a negative number is not allowed", span, "divide by a positive constant"
        )
    if _divisions(a) == MAX_DIVISIONS:
        message = f"divisions are nested more than {MAX_DIVISIONS} deep"
        raise PatternError("too-complex", message, span, "write it as several conditions joined by 'and'")
    return op(operator, a, b)  # type: ignore[arg-type]


def _divisions(value: Scalar) -> int:
    """How deep divisions and remainders are nested; the exact sets grow exponentially with it."""
    match value:
        case Op(name, args):
            return max(map(_divisions, args)) + (name in ("//", "%"))
    return 0


def _periodic(value: Scalar, span: Span) -> Scalar:
    if _period(value) > MAX_VALUE:
        message = "the divisors in this condition repeat together only after over 2^62 positions"
        raise PatternError("too-complex", message, span, "use fewer and smaller moduli in one condition")
    return value


def _period(value: Scalar) -> int:
    match value:
        case Op(("//" | "%"), (a, Const(divisor))):
            return _period(a) * divisor
        case Op(_, args):
            return lcm(*map(_period, args))
    return 1


def _constant_value(value: Scalar) -> int | None:
    return int(value.value) if isinstance(value, Const) else None


def _primitive(name: str, arguments: list[Expression], keywords: tuple[Keyword, ...], span: Span) -> tuple[Any, Span]:
    primitive = PRIMITIVES.get(name)
    if primitive is None:
        raise _unknown(name, span)
    return _built(primitive, arguments, keywords, span), span


def _built(word: Word, arguments: list[Expression], keywords: tuple[Keyword, ...], span: Span) -> Any:
    bound, spans = _bind(word, arguments, keywords, span)
    try:
        return word.build(**bound)
    except BadArgument as error:
        raise PatternError("wrong-argument", str(error), spans.get(error.argument, span), error.hint) from None


def _unknown(name: str, span: Span) -> PatternError:
    match name:
        case "q" | "k" | "n":
            hint = "conditions on positions are written where(...)"
            return PatternError("wrong-type", f"'{name}' is a position, not a pattern", span, hint)
        case "true" | "false" | "all":
            hint = "'none' is the pattern without pairs" if name == "false" else "'full' is the pattern of all pairs"
            return PatternError("wrong-type", f"'{name}' is not a pattern", span, hint)
        case "where" | "heads" | "layers" | "gated":
            examples = {"where": "where(q - k < 128)", "gated": "gated(local=window(512), far=stride(64))"}
            example = examples.get(name, f"{name}(4 * causal + full)")
            return PatternError("missing-argument", f"'{name}' needs an argument", span, f"as in {example}")
    if name in SCORING:
        hint = f"scorers stand in topk(...), as in {SCORERS[name].example}"
        return PatternError("wrong-type", f"'{name}' is a scorer, not a pattern", span, hint)
    known = (RESERVED | preset_definitions().keys()) - {"q", "k", "n", "all", "true", "false", *SCORING}
    hint = suggest(name, known) or "a runtime input stands in layout(...), document(...) or topk(...)"
    return PatternError("unknown-name", f"unknown pattern '{name}'", span, hint)


def _bind(
    word: Word, arguments: list[Expression], keywords: tuple[Keyword, ...], span: Span
) -> tuple[dict[str, Any], dict[str, Span]]:
    parameters = inspect.signature(word.build, eval_str=True).parameters
    names = list(parameters)
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(arguments) > len(positional):
        by_name = [name for name in names if name not in positional]
        without = f" {'without a name' if len(positional) == 1 else 'without names'}" if by_name else ""
        message = f"'{word.name}' takes {count_arguments(len(positional))}{without}, and this is one more"
        example = "group" if by_name and parameters[by_name[0]].annotation == Share else 2
        hint = f"{', '.join(by_name)} are given by name, as in {by_name[0]}={example}" if by_name else f"as in {word.example}"
        raise PatternError("too-many-arguments", message, arguments[len(positional)].span, hint)
    given: dict[str, Expression] = dict(zip(positional, arguments, strict=False))
    spans = {name: value.span for name, value in given.items()}
    for keyword in keywords:
        check_keyword(word.name, keyword.name, names, given, keyword.span)
        assert keyword.value is not None
        given[keyword.name] = keyword.value
        spans[keyword.name] = keyword.value.span
    for name, parameter in parameters.items():
        if name not in given and parameter.default is parameter.empty:
            raise PatternError("missing-argument", f"'{word.name}' needs '{name}'", span, f"as in {word.example}")
    values = {name: _argument(word, name, value, parameters[name].annotation) for name, value in given.items()}
    return values, spans


def _argument(word: Word, name: str, node: Expression, kind: Any) -> Any:
    label = f"'{name}' of '{word.name}'"
    if kind == (Size | None):
        if name == "pool" and isinstance(node, Name) and node.name == "all":
            return None
        kind = Size
    elif kind == (Count | None):
        kind = Count
    if kind == Scores:
        return _scorer(node, label)
    if kind == Share:
        return _share(node, label)
    if kind == (Static | None):
        return _static(node, label)
    if kind in (Input, Input | None):
        if not isinstance(node, Name) or node.name in RESERVED:
            raise _not_an_input(node, f"{label} is the name of a runtime input")
        return node.name
    if kind is Positions:
        return _positions(node, label)
    value = _integer(node, label)
    if kind is Size and value < 1:
        raise PatternError("not-positive", f"{label} must be positive, got {value}", node.span)
    if kind is Count and value < 0:
        raise PatternError("negative", f"{label} must not be negative, got {value}", node.span)
    return value


def _not_an_input(node: Expression, message: str) -> PatternError:
    hint = "a plain name, given to the kernel as a keyword argument"
    if isinstance(node, Name):
        hint = f"'{node.name}' is a word of the language; call the input '{node.name}_'"
    return PatternError("wrong-type", message, node.span, hint)


def _scorer(node: Expression, label: str) -> Scorer:
    """A word for a scorer, or the name of a runtime input."""
    match node:
        case Name(name, span) if name in SCORING:
            return _of_word(SCORERS[name], [], (), span)
        case Name(name) if name not in RESERVED:
            return Given(name)
        case Call(function, arguments, keywords, span) if function in SCORERS:
            return _of_word(SCORERS[function], list(arguments), keywords, span)
        case Call(function, _, _, span) if function not in RESERVED:
            hint = suggest(function, SCORERS) or f"the scorers are {', '.join(SCORERS)}, and names of runtime inputs"
            raise PatternError("unknown-name", f"unknown scorer '{function}'", span, hint)
    message = f"{label} is a scorer or the name of a runtime input"
    if isinstance(node, Name):
        raise _not_an_input(node, message)
    raise PatternError("wrong-type", message, node.span, f"the scorers are {', '.join(SCORERS)}")


def scorer_names(node: Expression) -> set[str]:
    """The texts of the scorers in a closed expression, also of those whose selections hold no pair."""
    calls = [part for part in walk(node) if isinstance(part, Call) and part.function == "topk"]
    given = [[*call.arguments[:1], *(k.value for k in call.keywords if k.name == "scorer")] for call in calls]
    return {str(_scorer(one, "'scorer' of 'topk'")) for found in given for one in found if one is not None}


def _of_word(word: Word, arguments: list[Expression], keywords: tuple[Keyword, ...], span: Span) -> Scorer:
    scorer: Scorer = _built(word, arguments, keywords, span)
    return scorer


def _share(node: Expression, label: str) -> str:
    if isinstance(node, Name) and node.name in get_args(Share):
        return node.name
    hint = "share=group picks alike for the query heads that share a key head, share=query for all"
    raise PatternError("wrong-type", f"{label} is {_one_of(get_args(Share))}", node.span, hint)


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _static(node: Expression, label: str) -> Static:
    """A pattern that is known for every n."""
    found = _pattern(node)
    if not found.is_static:
        hint = "choices and runtime inputs stand beside 'topk', joined with '&'"
        raise PatternError("not-static", f"{label} is a pattern without choices and runtime inputs", node.span, hint)
    return Static(found.static, show(node))


def _integer(node: Expression, label: str) -> int:
    value: int | None = _constant(node)
    if value is None:
        hint = None
        if isinstance(node, Call) or (isinstance(node, Name) and node.name in RESERVED | preset_definitions().keys()):
            hint = "a number was expected, not a pattern"
        elif isinstance(node, Name):
            hint = f"'{node.name}' is not defined; name a number with 'let {node.name} = 4096'"
        raise PatternError("wrong-type", f"{label} is a number", node.span, hint)
    if abs(value) > MAX_INTEGER:
        raise PatternError("integer-too-large", f"{value} is over {MAX_INTEGER:,} (2^31 - 1)", node.span)
    return value


_FOLD: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}


def _constant(node: Expression) -> Any:
    """The value of a constant whole-number expression, or None if it is not one."""
    match node:
        case Integer(value):
            return value
        case Unary("-", operand):
            value = _constant(operand)
            return None if value is None else -value
        case Chain(operands, operators) if set(operators) <= _FOLD.keys():
            values = [_constant(operand) for operand in operands]
            if None in values:
                return None
            total = values[0]
            for operator, operand, value in zip(operators, operands[1:], values[1:], strict=True):
                if operator in ("//", "%") and value == 0:
                    raise PatternError("division-by-zero", "division by zero", operand.span)
                total = _FOLD[operator](total, value)
                if abs(total) > MAX_VALUE:
                    raise PatternError("integer-too-large", "this number is over 2^62", node.span, "use smaller factors")
            return total
    return None


def _positions(node: Expression, label: str) -> Positions:
    if not isinstance(node, List):
        raise PatternError("wrong-type", f"{label} is a list of positions", node.span, "as in [0, 5, -1] or [0..63]")
    if not node.items:
        raise PatternError("empty-list", f"{label} is empty", node.span, "'none' is the pattern without pairs")
    ranges: list[tuple[int, int]] = []
    for item in node.items:
        first, last = (item.first, item.last) if isinstance(item, Range) else (item, item)
        a, b = _integer(first, f"a position in {label}"), _integer(last, f"a position in {label}")
        if (a < 0) == (b < 0) and a > b:
            raise PatternError("empty-range", f"the range {a}..{b} is empty", item.span, f"write {b}..{a}")
        ranges.append((a, b))
    return _merged(ranges)


def _merged(ranges: list[tuple[int, int]]) -> Positions:
    """Sorted, with touching ranges of one sign joined: [0, 1, 2] is one range."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(set(ranges)):
        before = merged[-1] if merged else None
        if before and (before[0] < 0) == (before[1] < 0) == (first < 0) == (last < 0) and first <= before[1] + 1:
            merged[-1] = (before[0], max(before[1], last))
        else:
            merged.append((first, last))
    return tuple(merged)
