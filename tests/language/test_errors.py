"""Errors: what a PatternError holds, how it is shown, and that hostile input ends in one, and soon."""

import json
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from patternc import PatternError, parse, preset, presets
from patternc.diagnostics import Diagnostic
from patternc.language.resolve import MAX_VARIANTS
from patternc.pattern import parse_file
from patternc.relation import BudgetExceeded, Relation, budget
from patternc.scalar import Const, Var, op

SECONDS = 20.0  # what explodes takes hours; a busy machine takes some times one second
PRIMES = [p for p in range(3, 400) if all(p % d for d in range(2, p))]


def joined(separator: str, items: object) -> str:
    return separator.join(items)  # type: ignore[call-overload, no-any-return]


def doubling(operator: str, steps: int) -> str:
    lines = [f"let a{i} = a{i - 1} {operator} a{i - 1}" for i in range(1, steps)]
    return joined("\n", ["let a0 = stride(3)", *lines, f"a{steps - 1}"])


def where(operator: str, conditions: object) -> str:
    return f"where({joined(f' {operator} ', conditions)})"


def several(mixture: str, primitive: str, count: int) -> str:
    return f"{mixture}({joined('+', (f'{primitive}({i + 1})' for i in range(count)))})"


EXPLOSIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "open parentheses": ("too-deep", lambda: "(" * 60_000),
    "nested parentheses": ("too-deep", lambda: "(" * 30_000 + "full" + ")" * 30_000),
    "complements": ("too-deep", lambda: "~" * 60_000 + "full"),
    "minus signs": ("too-deep", lambda: f"where(q < {'-' * 60_000}1)"),
    "nots": ("too-deep", lambda: f"where({'not ' * 15_000}q < k)"),
    "nested lists": ("too-deep", lambda: f"rows({'[' * 70}{']' * 70})"),
    "doubling unions": ("too-large", lambda: doubling("|", 60)),
    "doubling intersections": ("too-large", lambda: doubling("&", 60)),
    "doubling differences": ("too-large", lambda: doubling("-", 60)),
    "doubling functions": ("too-large", lambda: f"def f(x) = x | x\n{'f(' * 60}full{')' * 60}"),
    "doubling defaults": (
        "too-large",
        lambda: "def a0(x=full) = x\n" + joined("\n", (f"def a{i}(x=a{i - 1}) = x | x" for i in range(1, 100))) + "\na99",
    ),
    "long chains of lets": (
        "too-deep",
        lambda: "let a0 = full\n" + joined("\n", (f"let a{i} = ~a{i - 1}" for i in range(1, 2_500))) + "\na2499",
    ),
    "long chains of names": (
        "too-deep",
        lambda: "let a0 = full\n" + joined("\n", (f"let a{i} = a{i - 1}" for i in range(1, 2_500))) + "\na2499",
    ),
    "a list in many places": (
        "too-large",
        lambda: "def f(G) = rows(G)\nlet a = f([" + joined(",", map(str, range(2_000))) + "])\n" + joined("|", ["a"] * 900),
    ),
    "a huge list": ("list-too-long", lambda: f"rows([{joined(',', map(str, range(11_000)))}])"),
    "huge moduli": ("too-complex", lambda: "stride(2147483647) & stride(2147483646) & stride(2147483645)"),
    "a union of odd strides": ("too-complex", lambda: joined("|", (f"stride({p})" for p in PRIMES[:40]))),
    "a union of many strides": ("too-complex", lambda: joined("|", (f"stride({i + 1})" for i in range(1_000)))),
    "a union of chunks": ("too-complex", lambda: joined("|", (f"chunk({p})" for p in PRIMES[:70]))),
    "a union of summaries": ("too-complex", lambda: joined("|", (f"summary({p}, 2)" for p in PRIMES))),
    "a union of dilations": ("too-complex", lambda: joined("|", (f"window(100, dilation={p})" for p in PRIMES[:40]))),
    "differences of dilations": (
        "too-complex",
        lambda: "full - " + joined(" - ", (f"window(100, dilation={p})" for p in PRIMES[:20])),
    ),
    "a union of points": (
        "too-complex",
        lambda: joined("|", (f"where(q == {7 * i} and k == {i * i % 1000})" for i in range(1_000))),
    ),
    "many moduli in one condition": ("too-complex", lambda: where("and", (f"(q + k) % {p} != 1" for p in PRIMES[:20]))),
    "moduli of many slopes": (
        "too-complex",
        lambda: where("and", (f"(q + {i}*k) // {p} % {p + 2} < 3" for i, p in enumerate(PRIMES[:20]))),
    ),
    "exclusive ors": (
        "too-complex",
        lambda: where("and", (f"(q % {p} != k % {p} or q // {p} == k // {p})" for p in PRIMES[:12])),
    ),
    "nested remainders": ("too-complex", lambda: f"where({'(' * 15}q{joined('', (f'*3+k)%{p}' for p in PRIMES[:15]))} == 0)"),
    "nested divisions": ("too-complex", lambda: f"where({'(' * 15}q{joined('', (f'*3+k)//{p}' for p in PRIMES[:15]))} == 0)"),
    "huge products": ("integer-too-large", lambda: f"window({joined('*', ['2147483647'] * 1_000)})"),
    "huge products in a condition": ("integer-too-large", lambda: f"where(q < {joined('*', ['2147483647'] * 100)})"),
    "huge coefficients": ("integer-too-large", lambda: f"where(q * {joined('*', ['2147483647'] * 90)} < k)"),
    "long products": ("too-large", lambda: f"where(q * {joined('*', ['2147483647'] * 900)} < k)"),
    "long sums": ("too-large", lambda: f"where({joined('+', ['q'] * 900)} < k)"),
    "long conditions": ("too-complex", lambda: where("or", (f"q == {2 * i}" for i in range(1_000)))),
    "lines of many slopes": ("too-complex", lambda: where("and", (f"q + {i}*k != {i * i}" for i in range(200)))),
    "a huge dilation": ("integer-too-large", lambda: "window(2147483647, dilation=2147483647)"),
    "a huge number": ("integer-too-large", lambda: f"window({'9' * 60_000})"),
    "a huge name": ("unknown-name", lambda: "a" * 60_000),
    "huge repeats": ("too-many-repeats", lambda: "heads(2000000000 * causal + full)"),
    "periods that multiply": (
        "too-many-repeats",
        lambda: joined(" & ", (f"layers({p - 1} * full + causal)" for p in PRIMES[:9])),
    ),
    "layers times heads": (
        "too-large",
        lambda: joined(" & ", (f"{m}({joined('+', (f'window({i + 1})' for i in range(60)))})" for m in ("layers", "heads"))),
    ),
    "nested heads": ("too-deep", lambda: "heads(full+" * 63 + "full" + ")" * 63),
    "many heads of many parts": (
        "too-large",
        lambda: f"heads({joined('+', (f'window({i + 1})' for i in range(200)))}) & ({joined('|', ['self'] * 900)})",
    ),
    "a union of random": ("too-complex", lambda: joined("|", (f"random(2, seed={i})" for i in range(1_000)))),
    "a longer union of random": ("too-many-terms", lambda: joined("|", (f"random(2, seed={i})" for i in range(1_001)))),
    "products of unions of random": (
        "too-many-terms",
        lambda: joined("&", (f"(random(2, seed={i}) | random(3, seed={i}))" for i in range(12))),
    ),
    "products of unions of tables": (
        "too-many-terms",
        lambda: joined("&", (f"(layout(a{i}, 4) | layout(b{i}, 4))" for i in range(12))),
    ),
    "complements of tables": (
        "too-many-terms",
        lambda: f"~({joined('|', (f'(layout(a{i}, 4) & layout(b{i}, 4))' for i in range(12)))})",
    ),
    "draws from an irregular set": (
        "too-complex",
        lambda: f"random(2) - ({joined('|', (f'stride({p})' for p in PRIMES[:9]))})",
    ),
    "many arguments": ("too-large", lambda: f"window({joined(',', ['1'] * 20_000)})"),
    "many keywords": ("unknown-argument", lambda: f"window({joined(',', (f'a{i}=1' for i in range(5_000)))})"),
    "many comparisons": ("too-many-terms", lambda: f"where({joined(' < ', ['q', 'k'] * 1_500)})"),
    "many bars": ("syntax", lambda: "|" * 60_000),
    "many commas": ("syntax", lambda: f"window({',' * 60_000})"),
    "many brackets": ("syntax", lambda: "[]" * 30_000),
    "many expressions": ("two-expressions", lambda: joined("\n", ["full"] * 8_000)),
    "many line ends": ("empty", lambda: "\n" * 60_000),
    "null characters": ("illegal-character", lambda: "\0" * 1_000),
    "half a surrogate pair": ("illegal-character", lambda: "causal & \ud800"),
}


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Grammar and presets are read once, before any time is taken."""
    presets()


@pytest.mark.parametrize("name", EXPLOSIONS)
def test_explosions_end_soon(name: str) -> None:
    code, text = EXPLOSIONS[name]
    source = text()
    started = time.process_time()
    with pytest.raises(PatternError) as caught:
        parse(source)
    assert time.process_time() - started < SECONDS
    assert caught.value.code == code
    assert len(str(caught.value)) < 1_000


FINE: dict[str, Callable[[], str]] = {
    "many layers and heads": lambda: "layers(4095 * full + causal) & heads(4095 * full + causal)",
    "layers and heads that differ": lambda: f"{several('layers', 'window', 10)} & {several('heads', 'stride', 10)}",
    "nested mixtures": lambda: "heads(3*full+" * 30 + "full" + ")" * 30,
    "a long list": lambda: f"rows([{joined(',', (str(2 * i) for i in range(100)))}])",
    "a joined list": lambda: f"rows([{joined(',', map(str, range(9_999)))}])",
    "many tables": lambda: joined("|", (f"layout(t{i}, 4)" for i in range(200))),
    "many draws": lambda: joined("|", (f"causal & random(2, seed={i})" for i in range(60))),
    "long differences": lambda: "full - " + joined(" - ", (f"local({i + 1})" for i in range(500))),
    "a long condition": lambda: where("or", (f"q == {2 * i}" for i in range(100))),
    "wide numbers": lambda: "where(1000000 * q - 999999 * k < 2147483647 and k // 2147483647 == 0)",
}


@pytest.mark.parametrize("name", FINE)
def test_large_but_fine(name: str) -> None:
    source = FINE[name]()
    started = time.process_time()
    pattern = parse(source)
    assert time.process_time() - started < SECONDS
    assert pattern.expression is not None
    assert len(pattern._distinct) <= MAX_VARIANTS


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='causlwindo()[]|&~-+*/%<>=!.,;:#0123456789_KMqkn \n\t"é', max_size=60))
@example("")
@example("(")
@example("window(")
@example("[0..")
@example("let")
@example("def f(")
@example("causal &\n")
@example("1..2")
@example(";;")
@example("where(")
@example("heads(2*)")
def test_any_text_parses_or_raises_a_pattern_error(text: str) -> None:
    try:
        parse(text)
    except PatternError as error:
        check_shape(error)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "causal",
                "window",
                "(",
                ")",
                "[",
                "]",
                "|",
                "&",
                "~",
                "-",
                "+",
                "*",
                "//",
                "%",
                "<",
                "==",
                ",",
                "=",
                "..",
                "4",
                "2K",
                "q",
                "k",
                "n",
                "where",
                "heads",
                "layers",
                "not",
                "and",
                "or",
                "let",
                "def",
                "\n",
                "random",
                "topk",
                "ids",
            ]
        ),
        max_size=14,
    )
)
def test_any_words_parse_or_raise_a_pattern_error(words: list[str]) -> None:
    try:
        parse(" ".join(words))
    except PatternError as error:
        check_shape(error)


def check_shape(error: PatternError) -> None:
    assert error.code
    assert error.message
    assert "\n" not in error.message.replace("'\n'", "")
    if error.span is not None:
        line, column = error.span.position
        assert line >= 1
        assert column >= 1
        assert 0 <= error.span.start <= len(error.span.source.text)
    json.dumps(error.diagnostic.to_json())
    assert str(error).startswith(f"error[{error.code}]: ")


def raised(text: str, name: str = "<pattern>") -> PatternError:
    with pytest.raises(PatternError) as caught:
        parse(text, name)
    return caught.value


def shown(text: str, name: str = "<pattern>") -> list[str]:
    return str(raised(text, name)).split("\n")


def test_attributes() -> None:
    error = raised("causal\n  & windw(4)", "my.pat")
    assert isinstance(error, ValueError)
    assert (error.code, error.message, error.hint) == ("unknown-name", "unknown pattern 'windw'", "did you mean 'window'?")
    assert error.span is not None
    assert error.span.source.text[error.span.start : error.span.end] == "windw"
    assert error.diagnostic.to_json() == {
        "code": "unknown-name",
        "message": "unknown pattern 'windw'",
        "line": 2,
        "column": 5,
        "hint": "did you mean 'window'?",
    }


def test_caret() -> None:
    assert shown("causal\n  & windw(4)", "my.pat") == [
        "error[unknown-name]: unknown pattern 'windw'",
        " --> my.pat:2:5",
        "  |",
        "2 |   & windw(4)",
        "  |     ^^^^^",
        "hint: did you mean 'window'?",
    ]


def test_caret_after_tabs_lines_up() -> None:
    lines = shown("\tcausal &\twindw")
    assert lines[3] == "1 | \tcausal &\twindw"
    assert lines[4] == "  | \t        \t^^^^^"


def test_caret_after_wide_characters_counts_characters() -> None:
    lines = shown("# é ∀ 漢\ncausal & ∀")
    assert lines[1] == " --> <pattern>:2:10"
    assert lines[3:5] == ["2 | causal & ∀", "  |          ^"]


def test_caret_at_the_end_of_the_text() -> None:
    lines = shown("causal & (window(4)\n\n")
    assert lines[3:5] == ["1 | causal & (window(4)", "  |                    ^"]
    assert lines[5] == "hint: add ')'"


def test_caret_does_not_leave_the_line() -> None:
    lines = shown("causal\n+ full")
    assert lines[3:5] == ["1 | causal", "  | ^^^^^^"]


@pytest.mark.parametrize("before", [0, 50, 61, 100, 5_000, 30_000])
def test_caret_on_very_long_lines(before: int) -> None:
    lines = shown("causal |" + " " * before + "windw" + " | causal" * 900)
    text, caret = lines[3], lines[4]
    assert len(text) < 130
    assert text[caret.index("^") : caret.rindex("^") + 1] == "windw"
    assert lines[1] == f" --> <pattern>:1:{9 + before}"


def test_carriage_returns_are_not_shown() -> None:
    assert shown("causal &\r\nwindw\r\n")[3] == "2 | windw"


def test_an_error_without_a_place() -> None:
    assert str(Diagnostic("empty", "there is nothing")) == "error[empty]: there is nothing"
    assert Diagnostic("empty", "there is nothing").to_json()["line"] is None


def test_layers_that_differ() -> None:
    pattern = parse("layers(causal + window(4))")
    with pytest.raises(PatternError) as caught:
        pattern.mask(4)
    assert caught.value.code == "which-layer"
    assert pattern.mask(4, layer=1).sum() == pattern.layer(3).mask(4).sum() == 16


def test_unknown_preset() -> None:
    with pytest.raises(PatternError, match="did you mean 'bigbird'"):
        preset("bigbrid")
    assert preset("bigbird").name == "bigbird"


def test_errors_in_files_name_the_file() -> None:
    with pytest.raises(PatternError, match=r"mine\.pat:2:18"):
        parse_file("pattern a = causal\npattern b = a & windw(4)".replace("a & ", "a &  "), "mine.pat")


def test_budgets_are_restored() -> None:
    for _ in range(2):
        with pytest.raises(BudgetExceeded), budget(50):
            Relation.where(op("==", op("%", op("+", Var("q"), Const(987_654)), 1_013), 5)).equals(
                Relation.where(op("<", Var("q"), 3))
            )
        assert raised("|".join(f"stride({p})" for p in PRIMES[:40])).code == "too-complex"
        assert parse("causal & stride(3)").mask(4).sum() == 5
