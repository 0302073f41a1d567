"""Compressed keys against the definition, in loops."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc

torch = pytest.importorskip("torch")
from patternc.compression import at_ends, compressed_ends, compressed_length, compressed_pattern  # noqa: E402 - needs torch

sizes = st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(1, 12))
POOLS = {
    "mean": lambda block: torch.stack(block).mean(0),
    "max": lambda block: torch.stack(block).max(0).values,
}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks_of(n, block, stride):
    """The positions of each complete block."""
    return [range(first, first + block) for first in range(0, n, stride) if first + block <= n]


@settings(max_examples=80, deadline=None)
@given(sizes, st.sampled_from(sorted(POOLS)))
def test_compress(size, pool):
    n, block, stride = size
    k = normal(0, 2, 3, n, 4)
    wanted = [[[POOLS[pool]([one[t] for t in range_]) for range_ in blocks_of(*size)] for one in row] for row in k]
    got = pc.compress(k, block, stride, pool)
    assert got.shape == (2, 3, len(blocks_of(*size)), 4) == (2, 3, compressed_length(*size), 4)
    if got.numel():
        torch.testing.assert_close(got, torch.stack([torch.stack([torch.stack(m) for m in row]) for row in wanted]))


@settings(max_examples=80, deadline=None)
@given(sizes, st.data())
def test_a_query_reads_the_blocks_that_have_ended(size, data):
    n, block, stride = size
    n_q = data.draw(st.integers(0, n))
    wanted = [[max(range_) <= t for range_ in blocks_of(*size)] for t in range(n - n_q, n)]
    got = pc.compressed_mask(n, block, stride, n_q=n_q)
    assert got.tolist() == wanted
    assert compressed_ends(*size).tolist() == [max(range_) for range_ in blocks_of(*size)]
    for t in range(n):  # the paper's bound, with positions from 1: 0 <= i <= floor((t - l) / d)
        count = max(0, (t + 1 - block) // stride + 1)
        assert count == sum(max(range_) <= t for range_ in blocks_of(*size))


def test_a_learned_pool_is_trained():
    torch.manual_seed(0)
    pool = torch.nn.Sequential(torch.nn.Flatten(3), torch.nn.Linear(8 * 4, 6)).double()
    k = normal(0, 2, 3, 20, 4).requires_grad_()
    got = pc.compress(k, 8, 4, pool)
    for i, range_ in enumerate(blocks_of(20, 8, 4)):
        torch.testing.assert_close(got[:, :, i], pool[1](k[:, :, list(range_)].flatten(2)))
    got.sum().backward()
    assert k.grad is not None
    assert bool((k.grad != 0).any(-1).all())
    assert all(p.grad is not None for p in pool.parameters())
    assert torch.autograd.gradcheck(lambda k: pc.compress(k, 4, 3), normal(1, 1, 1, 11, 2).requires_grad_())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([(1, 1), (4, 2), (4, 4), (5, 3), (3, 5), (8, 4)]), st.integers(1, 30), st.integers(1, 30))
def test_a_pattern_reads_compressed_keys(shape, n, n_q):
    """Compressed attention by a compiled pattern is dense attention over the compressed keys that have ended."""
    block, stride = shape
    n_q = min(n, n_q)
    q, k, v = normal(0, 1, 4, n_q, 4), normal(1, 1, 2, n, 4), normal(2, 1, 2, n, 4)
    short = [pc.compress(t, block, stride).requires_grad_() for t in (k, v)]
    out, lse = pc.attention(
        q, *(at_ends(t, n, block, stride) for t in short), compressed_pattern(block, stride), return_lse=True
    )
    mask = pc.compressed_mask(n, block, stride, n_q=n_q)
    keys, values = (t.repeat_interleave(2, 1) for t in short)
    scores = (q @ keys.transpose(-1, -2) / 2).masked_fill(~mask, -torch.inf)
    some = mask.any(-1)[:, None]
    wanted = torch.softmax(scores.masked_fill(~some, 0), -1) * some @ values
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(lse, torch.logsumexp(scores, -1))
    upstream = normal(3, *out.shape)
    grads = [torch.autograd.grad((result * upstream).sum(), short, allow_unused=True) for result in (out, wanted)]
    for mine, ref in zip(*grads, strict=True):
        torch.testing.assert_close(mine, ref)


def test_compressed_patterns_pack_their_keys():
    assert "in the view k = 16 * u + 15" in str(pc.compile(compressed_pattern(32, 16)).plan)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pc.compress(torch.zeros(1, 1, 8, 2), 0, 1), ValueError, "block must be at least 1"),
        (lambda: pc.compress(torch.zeros(1, 1, 8, 2), 2, 0), ValueError, "stride must be at least 1"),
        (lambda: pc.compress(torch.zeros(1, 8, 2), 2, 2), ValueError, "must have shape"),
        (lambda: pc.compress(torch.zeros(1, 1, 8, 2).int(), 2, 2), TypeError, "floating point"),
        (lambda: pc.compress(torch.zeros(1, 1, 8, 2), 2, 2, "median"), ValueError, "'mean', 'max' or a function"),
        (lambda: pc.compress(torch.zeros(1, 1, 8, 2), 2, 2, lambda b: b), ValueError, "pool must return"),
        (lambda: pc.compressed_mask(8, 2, 2, n_q=9), ValueError, "n_q must be within"),
        (lambda: at_ends(torch.zeros(1, 1, 3, 2), 8, 2, 2), ValueError, "hold 4 blocks"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()
