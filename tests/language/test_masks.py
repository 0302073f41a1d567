"""Masks, rows and counts of random expressions against masks computed from the syntax alone."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patternc import PatternError, parse
from patternc.pattern import Pattern
from patternc.testing import oracle_mask, patterns, random_inputs

LENGTHS = (1, 2, 6, 17, 40)


def parse_simple(text: str) -> Pattern:
    try:
        return parse(text)
    except PatternError as error:
        assert error.code in ("too-complex", "too-many-terms"), text
        assume(False)
        raise


@pytest.mark.parametrize(("choices", "inputs"), [(False, False), (True, False), (False, True), (True, True)])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mask_rows_and_count(choices: bool, inputs: bool, data: st.DataObject) -> None:
    pattern = parse_simple(data.draw(patterns(4, choices, inputs)))
    head = data.draw(st.integers(0, 3))
    for n in LENGTHS:
        given_inputs = random_inputs(pattern, n, heads=2, seed=n)
        want = oracle_mask(pattern, n, head, **given_inputs)
        assert np.array_equal(pattern.mask(n, head, **given_inputs), want), (str(pattern), n)
        assert pattern.nnz(n, head, **given_inputs) == want.sum(), (str(pattern), n)
        for q in {0, n // 2, n - 1}:
            runs = pattern.row(q, n, head, **given_inputs)
            keys = [key for first, last, step in runs for key in range(first, last + 1, step)]
            assert sorted(keys) == np.flatnonzero(want[q]).tolist(), (str(pattern), n, q)
            assert len(keys) == len(set(keys))
            assert runs == sorted(runs)


def test_the_strategy_draws_everything() -> None:
    """The properties above mean little if the expressions are empty or full, or leave words out."""
    drawn: list[str] = []

    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(patterns(3, choices=True, inputs=True))
    def collect(text: str) -> None:
        drawn.append(text)

    collect()
    words = ("self", "causal", "window(", "dilation", "local", "stride", "summary", "slot", "chunk", "blocks", "sinks", "rows")
    words += (
        "columns",
        "global",
        "..-",
        "where",
        "not",
        " and ",
        " or ",
        "//",
        "%",
        "~",
        " - ",
        " & ",
        " | ",
        "random",
        "pool",
    )
    words += ("topk", "block_scores2", "layout", "document")
    assert [word for word in words if not any(word in text for text in drawn)] == []
    static = [text for text in drawn if not any(word in text for word in ("random", "topk", "layout", "document"))]
    density = [oracle_mask(text, 17).mean() for text in static]
    assert len(static) > 50
    assert sum(0.02 < d < 0.98 for d in density) > len(density) / 2


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("stride(3) | stride(5) | stride(7) | stride(11) | stride(13) | stride(17) | stride(19) | stride(23)", 200),
        (
            "~(stride(5) | stride(7) | stride(11) | stride(13) | stride(17) | stride(19) | stride(23) | stride(29))",
            200,
        ),
    ],
)
def test_rows_without_a_closed_form(text: str, n: int) -> None:
    pattern, want = parse(text), oracle_mask(text, n)
    assert pattern.nnz(n) == want.sum()
    runs = pattern.row(77, n)
    assert sorted(key for a, b, s in runs for key in range(a, b + 1, s)) == np.flatnonzero(want[77]).tolist()


def test_large_n_needs_no_mask() -> None:
    n = 10**6
    keys_of_window = sum(min(q + 1, 4096) for q in range(n))
    sinks_beyond_it = sum(min(4, max(0, q - 4095)) for q in range(n))
    assert parse("causal & (window(4096) | sinks(4))").nnz(n) == keys_of_window + sinks_beyond_it
    n = 10**9
    assert parse("causal & (window(4) | stride(64))").row(n - 1, n)[0][2] == 64
    assert parse("global([0, -1])").row(5, n) == [(0, 0, 1), (n - 1, n - 1, 1)]


@pytest.mark.parametrize("n", [0, -1, 2**31, 2.0, "4"])
def test_lengths(n: object) -> None:
    for call in (parse("causal").mask, parse("causal").nnz):
        with pytest.raises(ValueError, match="sequence length"):
            call(n)  # type: ignore[arg-type]


def test_dense_limit() -> None:
    with pytest.raises(ValueError, match="too large for a dense computation"):
        parse("causal").mask(40_000)
    with pytest.raises(ValueError, match="not a position"):
        parse("causal").row(5, 5)


def test_document_inputs() -> None:
    pattern = parse("document(ids)")
    want = np.kron(np.eye(2, dtype=bool), np.ones((3, 3), bool))
    assert np.array_equal(pattern.mask(6, ids=[0, 0, 0, 4, 4, 4]), want)
    assert np.array_equal(pattern.mask(6, ids=[[0, 0, 0, 4, 4, 4], [9, 9, 9, 9, 9, 9]]), want)
    assert np.array_equal(pattern.mask(6, ids=np.array([0, 3, 6])), want)
    # An empty document in cu_seqlens holds no position.
    assert np.array_equal(pattern.mask(6, ids=np.array([0, 3, 3, 6])), want)


def test_inputs_by_head_and_batch() -> None:
    table = np.zeros((2, 3, 2, 2), bool)
    table[0, 1, 0, 1] = True
    assert parse("layout(t, 4)").mask(7, 1, t=table)[0].tolist() == [False] * 4 + [True] * 3
    assert not parse("layout(t, 4)").mask(7, 0, t=table).any()
    assert not parse("layout(t, 4)").mask(7, 1, t=table[1]).any()


@pytest.mark.parametrize(
    ("text", "inputs", "match"),
    [
        ("topk(s, 2)", {}, "needs the runtime input 's'"),
        ("topk(s, 2)", {"s": np.zeros((5, 6))}, "'s' has shape"),
        ("topk(s, 2, block=2)", {"s": np.zeros((5, 2))}, "'s' has shape"),
        ("layout(t, 2)", {"t": np.zeros((2, 2), bool)}, "'t' has shape"),
    ],
)
def test_wrong_inputs(text: str, inputs: dict[str, np.ndarray], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parse(text).mask(5, **inputs)


def test_negative_heads_and_layers_are_refused() -> None:
    pattern = parse("heads(causal + window(3))")
    for call in (pattern.mask, pattern.nnz, pattern.degrees):
        for wrong, words in (({"head": -1}, "head must be at least 0"), ({"layer": -1}, "layer must be at least 0")):
            with pytest.raises(ValueError, match=words):
                call(4, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="head must be at least 0"):
        pattern.head(-1)
