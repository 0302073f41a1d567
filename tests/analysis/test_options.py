"""Every question about stacked layers takes the same options, and they mean the same in each."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis.verify import verify
from patternc.diagnostics import PatternError
from patternc.relation import BudgetExceeded
from patternc.testing import patterns

SCHEDULE = pc.parse("layers((causal & window(3)) + (causal & stride(10)) + (causal & random(1)))")
PACKED = pc.parse("causal & window(3) & document(ids)")


def products(pattern: pc.Pattern, n: int, layers: int, *, residual: bool, start: int) -> list[np.ndarray]:
    """What 0, 1, ... layers connect, by dense products."""
    found = [np.eye(n, dtype=bool)]
    for index in range(layers):
        layer = pattern.layer(start + index)
        mask = np.logical_or.reduce([layer.mask(n, head) for head in range(layer.heads)])
        found.append((mask | np.eye(n, dtype=bool) if residual else mask) @ found[-1])
    return found


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(patterns(max_depth=2, choices=True), min_size=1, max_size=3),
    n=st.integers(1, 12),
    residual=st.booleans(),
    start=st.integers(0, 4),
    data=st.data(),
)
def test_pairs_and_fields_equal_dense_products(
    texts: list[str], n: int, residual: bool, start: int, data: st.DataObject
) -> None:
    q, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    options = {"residual": residual, "start_layer": start}
    try:
        pattern = pc.parse(f"layers({' + '.join(f'({text})' for text in texts)})")
        assume(not pattern.inputs)
        found = pattern.distance(q, k, n, **options)
        fields = [pattern.receptive_field(layers, q, n, **options) for layers in range(4)]
        sizes = pattern.field_sizes(3, n, q, **options)
    except (PatternError, BudgetExceeded):
        assume(False)
    dense = products(pattern, n, max(5, (n + 1) * len(texts)), residual=residual, start=start)
    wanted = next((depth for depth, connected in enumerate(dense) if connected[q, k]), math.inf)
    assert found.value == wanted or (not residual and found.value is None and wanted == math.inf)
    assert found.certificate is None or verify(pattern, found) == []
    for depth, runs in enumerate(fields):
        keys = [key for first, last, step in runs for key in range(first, last + 1, step)]
        assert sorted(keys) == np.flatnonzero(dense[depth][q]).tolist()
    assert sizes == tuple(int(connected[q].sum()) for connected in dense[:4])
    if residual:
        depth = data.draw(st.integers(0, 5))
        connected = dense[min(depth, len(dense) - 1)][q, k]
        assert pattern.reachable(q, k, depth, n, start_layer=start).status == ("proved" if connected else "refuted")


def test_the_starting_layer_of_a_pair() -> None:
    for start, layers in ((0, 2), (1, 1), (2, 3)):  # the stride is in layer 1
        found = SCHEDULE.distance(50, 40, 100, start_layer=start)
        assert (found.value, verify(SCHEDULE, found)) == (layers, [])
    assert SCHEDULE.reachable(50, 40, 1, 100, start_layer=1)
    assert SCHEDULE.reachable(50, 40, 1, 100).status == "refuted"
    drawn = {k for a, b, s in SCHEDULE.layer(2).row(50, 100) for k in range(a, b + 1, s)}
    assert {a for a, _, _ in SCHEDULE.receptive_field(1, 50, 100, start_layer=2)} == drawn | {50}


def test_walks_of_exact_length() -> None:
    alternate = pc.parse("where((q - k) % 2 == 1)")
    assert alternate.distance(0, 0, 8, residual=False).value == 0
    assert alternate.distance(4, 2, 8, residual=False).value == 2
    assert alternate.receptive_field(1, 4, 8, residual=False) == ((1, 7, 2),)
    assert alternate.receptive_field(2, 4, 8, residual=False) == ((0, 6, 2),)
    assert alternate.field_sizes(3, 8, residual=False) == (1, 4, 4, 4)
    assert pc.parse("causal - self").field_sizes(9, 5, residual=False) == (1, 4, 3, 2, 1, 0, 0, 0, 0, 0)
    past = pc.parse("where(q - k == 1)")
    found = past.distance(7, 4, 9, residual=False)
    assert (found.value, verify(past, found)) == (3, [])
    with pytest.raises(ValueError, match="reachable follows residual streams"):
        past.reachable(7, 4, 3, 9, residual=False)


def test_runtime_inputs_may_be_given() -> None:
    n, ids = 12, np.array([0] * 5 + [1] * 7)
    inside = "causal & document(ids)"
    assert PACKED.hop_diameter(n, ids=ids).value == math.inf
    assert PACKED.hop_diameter(n, target=inside, ids=ids).value == 3
    assert PACKED.hop_diameter(n, target=inside, ids=np.array([0, 5, 5, 12])).value == 3, "cu_seqlens, one document empty"
    assert PACKED.distance(11, 5, n, ids=ids).value == 3
    assert PACKED.distance(11, 4, n, ids=ids).value == math.inf
    assert PACKED.reachable(11, 5, 3, n, ids=ids)
    assert PACKED.receptive_field(2, 6, n, ids=ids) == ((5, 6, 1),)
    assert PACKED.field_sizes(3, n, 11, ids=ids) == (1, 3, 5, 7)
    assert PACKED.coverage(n, target=inside, ids=ids).value == 3


def test_unknown_words_and_numbers_are_refused() -> None:
    for ask in (
        lambda: SCHEDULE.hop_diameter(9, start=1),
        lambda: SCHEDULE.distance(1, 0, 9, ids=[0]),
        lambda: SCHEDULE.receptive_field(1, 0, 9, layer=1),
        lambda: SCHEDULE.coverage(9, q=1),
    ):
        with pytest.raises(ValueError, match="there is no option and no runtime input '"):
            ask()
    with pytest.raises(ValueError, match="pass n, its length"):
        PACKED.hop_diameter(ids=[0])
    for wrong, words in (
        ({"n": 9.0}, "n is a sequence length from 1 to 2,147,483,647, got 9.0"),
        ({"q": 1.0}, "1.0 is not a position of a sequence of n = 9"),
        ({"k": 9}, "9 is not a position"),
        ({"n": None, "k": 2**31}, "2147483648 is not a position"),
        ({"layers": 2.5}, "layers must be at least 0, got 2.5"),
        ({"mode": "can"}, "mode is 'may' or 'must', got 'can'"),
        ({"start_layer": 0.5}, "start_layer must be at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            SCHEDULE.reachable(**{"q": 1, "k": 0, "layers": 2, "n": 9, **wrong})
    for ask in (SCHEDULE.hop_diameter, SCHEDULE.coverage):
        with pytest.raises(ValueError, match="mode is 'may' or 'must'"):
            ask(9, mode="can")
    with pytest.raises(ValueError, match="mode is 'may' or 'must'"):
        verify(SCHEDULE, SCHEDULE.hop_diameter(9), "can")
    for ask in (
        lambda: SCHEDULE.distance(1, 0, 9, start_layer=-1),
        lambda: SCHEDULE.receptive_field(1, 0, 9, start_layer=-1),
        lambda: SCHEDULE.field_sizes(1, 9, start_layer=-1),
    ):
        with pytest.raises(ValueError, match="start_layer must be at least 0"):
            ask()
