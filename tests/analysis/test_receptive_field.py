"""What a query sees through several layers equals the rows of dense products, and the closed forms of windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis.receptive_field import MAX_ROWS, field_sizes, receptive_field
from patternc.diagnostics import PatternError
from patternc.relation import BudgetExceeded
from patternc.testing import patterns


def layered() -> st.SearchStrategy[str]:
    single = patterns(max_depth=2)
    return st.one_of(
        single, st.lists(single, min_size=2, max_size=3).map(lambda p: f"layers({' + '.join(f'({x})' for x in p)})")
    )


def dense(pattern: pc.Pattern, layers: int, n: int) -> np.ndarray:
    reach = np.eye(n, dtype=bool)
    for layer in range(layers):
        reach = ((pattern.mask(n, layer=layer) | np.eye(n, dtype=bool)).astype(int) @ reach.astype(int)) > 0
    return reach


@settings(max_examples=50, deadline=None)
@given(text=layered(), layers=st.integers(0, 4), n=st.integers(1, 20), data=st.data())
def test_fields_equal_dense_products(text: str, layers: int, n: int, data: st.DataObject) -> None:
    q = data.draw(st.integers(0, n - 1))
    try:
        pattern = pc.parse(text)
        runs = receptive_field(pattern, layers, q, n)
        at_q, at_most = field_sizes(pattern, layers, n, q), field_sizes(pattern, layers, n)
    except (PatternError, BudgetExceeded):
        assume(False)
    keys = [k for first, last, step in runs for k in range(first, last + 1, step)]
    assert sorted(keys) == np.flatnonzero(dense(pattern, layers, n)[q]).tolist()
    assert len(keys) == len(set(keys))
    powers = [dense(pattern, depth, n) for depth in range(layers + 1)]
    assert at_q == tuple(int(m[q].sum()) for m in powers)
    assert at_most == tuple(int(m.sum(1).max()) for m in powers)


@pytest.mark.parametrize("n", [10**6, 10**9])
def test_windows_grow_by_w_minus_1(n: int) -> None:
    causal, two_sided = pc.parse("causal & window(4096)"), pc.parse("local(512)")
    assert causal.field_sizes(6, n, q=n - 1) == tuple(layers * 4095 + 1 for layers in range(7))
    assert two_sided.field_sizes(6, n, q=n // 2) == tuple(layers * 512 + 1 for layers in range(7))
    assert causal.receptive_field(3, n - 1, n) == ((n - 1 - 3 * 4095, n - 1, 1),)


@pytest.mark.parametrize(
    "expression", ["causal & random(3)", "layers(random(1) + window(3))", "window(2) | random(1, block=4)"]
)
def test_drawn_keys_are_followed(expression: str) -> None:
    pattern, n = pc.parse(expression), 60
    for layers in range(4):
        reach = dense(pattern, layers, n)
        for q in (0, 7, 59):
            runs = pattern.receptive_field(layers, q, n)
            assert sorted(k for a, b, s in runs for k in range(a, b + 1, s)) == np.flatnonzero(reach[q]).tolist()
            assert pattern.field_sizes(layers, n, q)[-1] == reach[q].sum()


def test_a_dilated_window_sees_one_residue() -> None:
    field = pc.parse("causal & window(5, dilation=4)").receptive_field(2, 100, 1000)
    assert field == ((68, 100, 4),)


def test_the_top_layer_comes_first() -> None:
    pattern = pc.parse("layers((causal & window(3)) + (causal & stride(10)))")
    assert pattern.receptive_field(1, 50, 100) == ((48, 50, 1),)
    assert len([k for a, b, s in pattern.receptive_field(2, 50, 100) for k in range(a, b + 1, s)]) == 16  # near each tenth
    assert pattern.field_sizes(2, 100, q=50) == (1, 3, 16)


def test_layers_that_do_not_commute() -> None:
    pattern = pc.parse("layers(where(k == 5) + where(q - k == 1))")
    assert pattern.receptive_field(2, 9, 20) == ((5, 5, 1), (8, 9, 1))
    assert pattern.field_sizes(2, 20) == (1, 2, 3)
    assert pattern.field_sizes(2, 20, q=9) == (1, 2, 3)


def test_the_largest_field_at_a_million() -> None:
    assert pc.parse("causal & (window(1024) | sinks(4))").field_sizes(3, 10**6) == (1, 1028, 2051, 3074)


def test_sizes_that_stop_growing_are_kept() -> None:
    assert pc.parse("chunk(10)").field_sizes(500, 95) == (1, *[10] * 500)


def test_bad_calls_are_refused() -> None:
    window = pc.parse("causal & window(4)")
    for call in (lambda: window.receptive_field(-1, 0, 5), lambda: window.receptive_field(1, 5, 5)):
        with pytest.raises(ValueError, match=r"layers must be from 0 to 4,096|not a position"):
            call()
    with pytest.raises(ValueError, match="name one with q="):
        window.field_sizes(2, MAX_ROWS + 1)
    with pytest.raises(ValueError, match="not described by a relation"):
        pc.parse("causal & random(3)").field_sizes(2, 10)
    with pytest.raises(ValueError, match="n is a sequence length"):
        window.field_sizes(2, 0)
