"""The sampler of `random`: a pure function, the same in every number system, without replacement and uniform."""

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patternc import parse
from patternc.random_edges import below, candidates, draw_ranks, value_at
from patternc.testing import oracle_mask


def choose(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


def python_ranks(draws: int, count: int, seed: int, head: int, row: int) -> list[int]:
    return draw_ranks(draws, count, seed, head, row, choose)


GOLDEN_HASHES = [553242414, 363178717, 1340045261, 167556085, 1777736486, 573447600]
GOLDEN_RANKS = [[256, 168, 866, 328], [622, 859, 504, 470], [561, 66, 959, 383], [558, 157, 879, 858]]
GOLDEN_KEYS = {0: [0], 2: [0, 1, 2], 5: [0, 2, 4], 11: [1, 5, 7], 23: [2, 11, 19]}


def test_the_stream_never_changes() -> None:
    """A change here changes every model that was trained with `random`."""
    assert [below(2**31 - 1, seed, head, row, draw) for seed, head, row, draw in GOLDEN_AT] == GOLDEN_HASHES
    assert [python_ranks(4, 1000, 0, head, row) for head, row in ((0, 0), (0, 1), (3, 17), (15, 2**31 - 1))] == GOLDEN_RANKS
    found = parse("causal & random(3)").mask(24, 2)
    assert {q: np.flatnonzero(found[q]).tolist() for q in (0, 2, 5, 11, 23)} == GOLDEN_KEYS


GOLDEN_AT = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (2**31 - 1, 63, 10**6, 255)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(0, 2**31 - 1),
    st.integers(0, 127),
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), min_size=1, max_size=8),
)
def test_every_number_system_agrees(draws: int, seed: int, head: int, rows: list[tuple[int, int]]) -> None:
    want = [python_ranks(draws, count, seed, head, row) for row, count in rows]
    row, count = np.array(rows, np.int64).T
    got = draw_ranks(draws, count, seed, head, row, np.where)
    assert np.array_equal(np.stack(got, 1), want)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(0, 2**31 - 1),
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), min_size=1, max_size=8),
)
def test_torch_agrees(draws: int, seed: int, rows: list[tuple[int, int]]) -> None:
    torch = pytest.importorskip("torch")
    row, count = torch.tensor(rows, dtype=torch.int64).T
    got = torch.stack(draw_ranks(draws, count, seed, torch.tensor(5), row, torch.where), 1)
    assert got.tolist() == [python_ranks(draws, c, seed, 5, r) for r, c in rows]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 99), st.integers(0, 9), st.integers(0, 10**6))
def test_without_replacement(draws: int, count: int, seed: int, head: int, row: int) -> None:
    ranks = python_ranks(draws, count, seed, head, row)
    taken = [rank for rank in ranks if rank >= 0]
    assert len(taken) == len(set(taken)) == min(draws, count)
    assert all(rank < count for rank in taken)
    assert len(ranks) == draws


def test_every_subset_is_equally_likely() -> None:
    rows = np.arange(40_000, dtype=np.int64)
    ranks = np.stack(draw_ranks(2, np.full_like(rows, 5), 0, 0, rows, np.where), 1)
    counts = Counter(map(tuple, np.sort(ranks, 1).tolist()))
    assert counts.keys() == set(combinations(range(5), 2))
    expected = len(rows) / 10
    assert sum((c - expected) ** 2 / expected for c in counts.values()) < 27.9  # chi-square, 9 degrees, p = 0.001


@pytest.mark.parametrize("axis", ["seed", "head", "row", "draw"])
def test_each_counter_matters(axis: str) -> None:
    at = {"seed": 3, "head": 4, "row": 5, "draw": 1}
    found = np.array([below(1000, *(at | {axis: value}).values()) for value in range(4_000)])
    counts = np.bincount(found // 100, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 27.9
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.06


def test_heads_and_seeds_differ() -> None:
    pattern = parse("random(3)")
    assert not np.array_equal(pattern.mask(40, 0), pattern.mask(40, 1))
    assert not np.array_equal(pattern.mask(40), parse("random(3, seed=1)").mask(40))
    assert np.array_equal(pattern.mask(40, 7), parse("random(3, seed=0)").mask(40, 7))


def test_draws_do_not_depend_on_how_the_candidates_are_written() -> None:
    one = parse("random(3) & (where(k < q - 3) | where(k > q + 2))").mask(50)
    other = parse("random(3) & (where(k > q + 2) | where(q - k > 3))").mask(50)
    assert np.array_equal(one, other)
    one = parse("random(3) & (stride(3) | window(4) | stride(4))").mask(50)
    other = parse("random(3) & ~(~stride(4) & ~window(4) & ~(stride(3) - self))").mask(50)
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    "candidates_text", ["causal", "full", "causal & ~window(5)", "~window(5)", "stride(3) | window(4)", "summary(6, 2)", "none"]
)
@pytest.mark.parametrize("options", ["3", "3, block=4", "2, pool=5", "2, block=3, pool=2, seed=9"])
def test_against_the_oracle(candidates_text: str, options: str) -> None:
    text = f"({candidates_text}) & random({options})"
    for n in (1, 5, 23, 48):
        for head in (0, 3):
            mask = parse(text).mask(n, head)
            assert np.array_equal(mask, oracle_mask(text, n, head))
            assert not (mask & ~parse(candidates_text).mask(n)).any()


def test_pool_takes_the_first_candidates() -> None:
    mask = parse("columns([3, 7..9, 20, 30]) & random(2, pool=3)").mask(40)
    assert mask.sum(1).tolist() == [2] * 40
    assert np.flatnonzero(mask.any(0)).tolist() == [3, 7, 8]


def test_blocks_are_drawn_by_query_block() -> None:
    mask = parse("random(2, block=4)").mask(30)
    blocks = np.pad(mask, ((0, 2), (0, 2))).reshape(8, 4, 8, 4).any((1, 3))
    assert blocks.sum(1).tolist() == [2] * 8
    assert all((mask[4 * i : 4 * i + 4] == mask[4 * i]).all() for i in range(8))


@pytest.mark.parametrize(
    "text", ["~window(3)", "stride(3) | window(4)", "columns([0, 3, 7..9, -1])", "~summary(6, 2)", "where((q * 3 + k) % 7 < 3)"]
)
@pytest.mark.parametrize("block", [1, 3])
def test_candidates_ascend(text: str, block: int) -> None:
    loops = parse(text).meaning().static.block_rows(block)
    for n in (1, 7, 40):
        mask = parse(text).mask(n)
        for row in range(-(-n // block)):
            at = np.array([row])
            want = sorted({int(k) // block for k in np.flatnonzero(mask[row * block : (row + 1) * block].any(0))})
            assert candidates(loops, at, n, np).tolist() == [len(want)]
            got = [value_at(loops, np.array([rank]), at, n, np)[0] for rank in range(-1, len(want) + 1)]
            assert got == [-1, *want, -1]
