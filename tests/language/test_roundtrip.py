"""Printing and parsing are inverse to each other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patternc import parse, presets
from patternc.language.parser import parse_program
from patternc.language.printer import show
from patternc.language.resolve import preset_definitions, walk
from patternc.language.syntax import Call, Chain, Definition, Expression, Integer, Keyword, List, Name, Program, Range, Unary
from patternc.source import Source, Span
from patternc.testing import patterns

NOWHERE = Span(Source(""), 0, 0)
names = st.sampled_from(["a", "b_", "_c", "K2", "causal", "q", "letter", "order", "android"])
numbers = st.integers(0, 2**31 - 1)


def chains(parts: st.SearchStrategy[Expression], operators: tuple[str, ...]) -> st.SearchStrategy[Chain]:
    mixed = operators[0] not in ("or", "and", "|", "&")

    @st.composite
    def one(draw: st.DrawFn) -> Chain:
        operands = draw(st.lists(parts, min_size=2, max_size=4))
        signs = [draw(st.sampled_from(operators)) for _ in operands[1:]] if mixed else [operators[0]] * (len(operands) - 1)
        return Chain(tuple(operands), tuple(signs), NOWHERE)

    return one()


def calls(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Call]:
    keywords = st.lists(st.builds(Keyword, names, parts, st.just(NOWHERE)), max_size=2).map(tuple)
    return st.builds(Call, names, st.lists(parts, max_size=3).map(tuple), keywords, st.just(NOWHERE))


def lists(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[List]:
    items = st.one_of(parts, st.builds(Range, parts, parts, st.just(NOWHERE)))
    return st.builds(List, st.lists(items, max_size=3).map(tuple), st.just(NOWHERE))


def larger(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    levels = [("or",), ("and",), ("|",), ("&",), ("+", "-"), ("*", "//", "%"), ("<", "<=", ">", ">=", "==", "!=")]
    unary = st.builds(Unary, st.sampled_from(["~", "-", "not"]), parts, st.just(NOWHERE))
    return st.one_of(unary, calls(parts), lists(parts), *(chains(parts, level) for level in levels))


leaves = st.one_of(st.builds(Name, names, st.just(NOWHERE)), st.builds(Integer, numbers, st.just(NOWHERE)))
trees = st.recursive(leaves, larger, max_leaves=12)


@settings(max_examples=300, deadline=None)
@given(trees)
def test_any_tree(tree: Expression) -> None:
    assert parse_program(show(tree)).body == tree


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["let", "pattern", "def"]), names, trees, trees), max_size=3),
    st.one_of(st.none(), trees),
)
def test_any_program(parts: list[tuple[str, str, Expression, Expression]], body: Expression | None) -> None:
    def definition(keyword: str, name: str, value: Expression, default: Expression) -> Definition:
        parameters = (Keyword("x", None, NOWHERE), Keyword("y", default, NOWHERE)) if keyword == "def" else ()
        return Definition(keyword, name, parameters, value, NOWHERE)

    program = Program(tuple(definition(*part) for part in parts), body)
    assert parse_program(show(program)) == program


@settings(max_examples=100, deadline=None)
@given(patterns(choices=True, inputs=True))
def test_patterns(text: str) -> None:
    tree = parse_program(text).body
    assert tree is not None
    assert parse_program(show(tree)).body == tree
    assert all(node.span.start < node.span.end <= len(text) for node in walk(tree))


def test_presets_print_as_what_they_are() -> None:
    for pattern in presets().values():
        assert parse(str(pattern)) == pattern
    for definition in preset_definitions().values():
        assert parse_program(show(definition)).definitions == (definition,)


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("((causal)) & (window(4))", "causal & window(4)"),
        ("(a | b) & c", "(a | b) & c"),
        ("a | (b & c)", "a | b & c"),
        ("a - (b - c)", "a - (b - c)"),
        ("(a - b) - c", "(a - b) - c"),
        ("~(a | b)", "~(a | b)"),
        ("~(~a)", "~~a"),
        ("f(4_096, x = 2K)", "f(4096, x=2048)"),
        ("[ 0 .. 63 , -1 , ]", "[0..63, -1]"),
        ("not (q < k) and (k < n or q == 0)", "not q < k and (k < n or q == 0)"),
    ],
)
def test_parentheses(written: str, printed: str) -> None:
    body = parse_program(written).body
    assert body is not None
    assert show(body) == printed
