"""Asserts: what they say, that they leave the program's meaning alone, and that what is no claim is an error."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc import PatternError
from patternc.language.asserts import BOUNDS, EQUAL, INCLUSIONS, MEASURES, PROPERTIES, SUBSET, Claim, claims
from patternc.language.parser import parse_program
from patternc.language.printer import show
from patternc.language.resolve import presets_text
from patternc.language.syntax import Assert, Call, Chain, Expression, Integer, Name, Program
from patternc.pattern import parse_asserts
from patternc.source import Source, Span
from patternc.testing import patterns

SECONDS = 20.0  # what explodes takes hours; a busy machine takes some times one second
NOWHERE = Span(Source(""), 0, 0)


# Round trips

trees = patterns(2, choices=True, inputs=True).map(lambda text: parse_program(text).body)
words = st.sampled_from([*PROPERTIES, *MEASURES, "at", "for", "all", "n", "assertion"])
numbers = st.integers(0, 2**31 - 1).map(lambda value: Integer(value, NOWHERE))
atoms = st.one_of(
    words.map(lambda word: Name(word, NOWHERE)),
    st.builds(lambda word, tree: Call(word, (tree,), (), NOWHERE), words, trees),
)
comparisons = st.builds(
    lambda left, sign, right: Chain((left, right), (sign,), NOWHERE),
    st.one_of(atoms, trees),
    st.sampled_from([*BOUNDS, "!="]),
    st.one_of(numbers, trees),
)
asserts = st.builds(Assert, st.one_of(atoms, comparisons, trees), st.one_of(st.none(), numbers), st.just(NOWHERE))


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.none(), trees), st.lists(asserts, min_size=1, max_size=4).map(tuple))
def test_print_and_parse_are_inverse(body: Expression | None, lines: tuple[Assert, ...]) -> None:
    program = Program((), body, lines)
    assert parse_program(show(program)) == program


@settings(max_examples=60, deadline=None)
@given(asserts, st.sampled_from(["", " for all n", "  for\tall  n"]), st.sampled_from(["\n", ";", "\r\n"]))
def test_the_span_is_the_whole_line(line: Assert, end: str, separator: str) -> None:
    written = show(line) + (end if line.at is None else "")
    text = f"causal{separator}{written}{separator}assert full"
    first, second = parse_program(text).asserts
    assert (first, second.claim) == (line, Name("full", NOWHERE))
    assert text[first.span.start : first.span.end] == written


# What they say


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("causal", ("causal", None, "", 0)),
        ("causal(near)", ("causal", None, "", 0)),
        ("hub(near) at 64", ("hub", 64, "", 0)),
        ("hops <= 2", ("hops", None, "<=", 2)),
        ("hops() <= 2", ("hops", None, "<=", 2)),
        ("hops <= 2 for all n", ("hops", None, "<=", 2)),
        ("hops(near) < 2 * w - 1 at 1K", ("hops", 1024, "<", 7)),
        ("coverage(near) == -w at 1_000_000", ("coverage", 1_000_000, "==", -4)),
        ("coverage >= w at 2M", ("coverage", 2 << 20, ">=", 4)),
        ("hops > 0", ("hops", None, ">", 0)),
        ("near <= full", (SUBSET, None, "", 0)),
        ("full >= near", (SUBSET, None, "", 0)),
        ("near == near at 9", (EQUAL, 9, "", 0)),
    ],
)
def test_forms(text: str, want: tuple[str, int | None, str, int]) -> None:
    near, full, body = (pc.parse(t).expression for t in ("causal & window(4)", "full", "self"))
    program = f"let w = 4\npattern near = causal & window(w)\nself\nassert {text}"
    (claim,) = parse_asserts(program)
    assert (claim.guarantee, claim.n, claim.operator, claim.limit) == want
    assert claim.subject == (near if "near" in text else body)
    assert claim.name == ("near" if "near" in text else None)
    assert claim.other == {SUBSET: full, EQUAL: near}.get(claim.guarantee)
    assert claim.line == parse_program(program).asserts[0]


def test_subjects_that_are_no_name_have_none() -> None:
    for text in ("causal(near | near)", "causal(f(3))", "causal(causal)", "near & near <= causal"):
        (claim,) = parse_asserts(f"pattern near = self\ndef f(w) = window(w)\nassert {text}")
        assert claim.name is None
    (claim,) = parse_asserts("assert causal(mistral)")
    assert (claim.name, claim.subject) == ("mistral", pc.preset("mistral").expression)


def test_a_claim_speaks_of_the_names_in_its_line() -> None:
    a, b = parse_asserts("pattern a = self\npattern b = a\nassert a == b & full\nassert hops(b) == 1 at 4")
    assert [[claim.speaks_of(name) for name in ("a", "b", "hops", "n")] for claim in (a, b)] == [
        [True, True, False, False],
        [False, True, False, False],
    ]
    assert not Claim("causal", pc.parse("full").expression, "a").speaks_of("a")


@settings(max_examples=60, deadline=None)
@given(trees, st.permutations(["pattern a = causal", "body", "assert causal(a)", "assert hops <= 2 at 4", "assert a <= full"]))
def test_they_take_no_part_in_the_program(body: Expression, lines: list[str]) -> None:
    text = "\n".join(f"({show(body)})" if line == "body" else line for line in lines)
    assert pc.parse(text).expression == body
    assert [show(line) for line in parse_program(text).asserts] == [line for line in lines if line.startswith("assert")]


def test_their_patterns_are_read_when_they_are_asked_for() -> None:
    text = "causal\nassert nonempty(windw(4))"
    assert pc.parse(text) == pc.parse("causal")
    with pytest.raises(PatternError, match=r"mine:2:17(.|\n)*did you mean 'window'"):
        parse_asserts(text, "mine")
    with pytest.raises(PatternError, match="unknown pattern 'windw'"):
        parse_asserts("assert full <= windw(4)")


def test_words_of_claims_are_no_reserved_names() -> None:
    for word in (*PROPERTIES[1:], *MEASURES, "at", "for", "asserted"):
        assert pc.parse(f"let {word} = 4\nwindow({word})").equivalent("window(4)")
    assert pc.parse("causal & document(at)").inputs == ("at",)


def test_the_shipped_patterns_have_asserts() -> None:
    assert len(parse_asserts(presets_text(), "presets.pat")) > 20
    assert claims(parse_program("causal")) == ()


# Hostile text


def long(line: str, count: int) -> str:
    return "causal\n" + f"assert {line}\n" * count


EXPLOSIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "nested claims": ("too-deep", lambda: long("(" * 70 + "causal" + ")" * 70, 1)),
    "complements": ("too-deep", lambda: long("~" * 20_000 + "full <= full", 1)),
    "doubling": (
        "too-large",
        lambda: (
            "full\nlet a0 = full\n" + "\n".join(f"let a{i} = a{i - 1} | a{i - 1}" for i in range(1, 60)) + "\nassert hub(a59)"
        ),
    ),
    "many lines of large patterns": (
        "too-large",
        lambda: "pattern a = " + " | ".join(["causal"] * 900) + "\na\n" + "assert a <= a\n" * 1_000,
    ),
    "a huge limit": ("integer-too-large", lambda: long(f"hops <= {'9' * 1_000}", 1)),
    "a huge product": ("integer-too-large", lambda: long(f"hops <= {'*'.join(['2147483647'] * 100)}", 1)),
    "a huge length": ("integer-too-large", lambda: long("hops <= 2 at 4294967296", 1)),
    "recursion": ("recursion", lambda: "let a = a\nfull\nassert causal(a)"),
    "a long chain": ("wrong-type", lambda: long(" < ".join(["hops"] * 900), 1)),
}


@pytest.mark.parametrize("name", EXPLOSIONS)
def test_explosions_end_soon(name: str) -> None:
    code, text = EXPLOSIONS[name]
    source = text()
    pc.presets()
    started = time.process_time()
    with pytest.raises(PatternError) as caught:
        pc.parse(source)
    assert time.process_time() - started < SECONDS
    assert caught.value.code == code


def test_claims_are_refused_by_their_depth_before_they_are_walked() -> None:
    for line in ("~" * 20_000 + "full <= full", "causal(" + "~" * 65 + "full)"):
        with pytest.raises(PatternError, match="too-deep"):
            parse_program(f"assert {line}")


def test_many_asserts_are_fine() -> None:
    assert len(parse_asserts(long("hops(window(4)) <= 2 at 16", 1_500))) == 1_500


TOKENS = ["assert", "at", "for all n", "for", "all", "n", "hops", "causal", "hub", "window(3)", "a", "4", "1K", "2k"]
TOKENS += ["<=", "<", "==", "!=", "|", "&", "~", "not", "and", "(", ")", "\n", ";", "let", "pattern", "=", ","]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=10).map(" ".join))
def test_any_words_are_claims_or_raise_a_pattern_error(text: str) -> None:
    try:
        found = parse_asserts(f"pattern a = full\nassert {text}")
    except PatternError as error:
        assert error.span is not None or error.code in ("empty", "no-expression")
        assert str(error).startswith(f"error[{error.code}]: ")
    else:
        assert all(c.guarantee in (*PROPERTIES, *MEASURES, SUBSET, EQUAL) and c.n != 0 for c in found)


def test_signs_are_those_of_the_grammar() -> None:
    assert set(INCLUSIONS) < set(BOUNDS)
    for sign in BOUNDS:
        assert claims(parse_program(f"full\nassert hops {sign} 2"))[0].operator == sign
