"""NSA's importance of key blocks in Triton's interpreter, against its equation written out for every pair.

With p[q, i] the softmax of a query over the compressed keys i that end at it or before, and l' = block / d, l = length / d,
importance[q, J] = sum over m < l' and i < l of p[q, J l' + m - i] (Yuan et al. 2025, equation 9).
"""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from patternc import scorers  # noqa: E402
from patternc.backends import triton_importance  # noqa: E402 - needs triton

pytestmark = [
    pytest.mark.usefixtures("filled"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


def wanted(queries, keys, scale, first, sizes, groups):
    length, stride, block, blocks = sizes
    queries, keys = queries.double(), keys.double().expand(queries.shape[0], -1, -1, -1)
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    count, steps, apart = keys.shape[2], block // stride, length // stride
    positions = first + torch.arange(queries.shape[2])
    seen = torch.arange(count) * stride + length - 1 <= positions[:, None]
    p = (queries @ keys.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf).softmax(-1)
    p = p.masked_fill(~seen, 0)
    out = torch.zeros(*queries.shape[:3], blocks, dtype=torch.float64)
    for j in range(blocks):
        for m in range(steps):
            for i in range(apart):
                key = j * steps + m - i
                if 0 <= key < count:
                    out[..., j] += p[..., key]
    return out.unflatten(1, (groups, -1)).sum(2) if groups else out


def random_inputs(batch, key_heads, sharing, n, n_q, dim, length, stride, block, dtype, of_keys, seed, own_batch=True):
    generator = torch.Generator().manual_seed(seed)
    count = max(0, (n - length) // stride + 1)
    queries = torch.randn(batch, key_heads * sharing, n_q, dim, generator=generator).to(dtype)
    keys = torch.randn(batch if own_batch else 1, key_heads, count, dim, generator=generator).to(of_keys)
    return queries, keys, 0.3, n - n_q, (length, stride, block, -(-n // block))


def check(given, together):
    queries, keys, *rest = given
    got = triton_importance.importance(torch, queries, keys, *rest, together)
    want = wanted(queries, keys, *rest, keys.shape[1] if together else 0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=2e-5)
    again = triton_importance.importance(torch, queries, keys, *rest, together, lse_of(queries, keys, *rest))
    torch.testing.assert_close(again.double(), want, atol=2e-5, rtol=2e-5)
    return got


def lse_of(queries, keys, scale, first, sizes):
    """The log-sum-exp of the attention to compressed keys that have ended, (b, h, rows)."""
    (length, stride, *_), sharing = sizes, queries.shape[1] // keys.shape[1]
    scores = queries.double() @ keys.double().repeat_interleave(sharing, 1).transpose(-1, -2) * scale
    ends = torch.arange(keys.shape[2]) * stride + length - 1
    seen = ends <= torch.arange(first, first + queries.shape[2])[:, None]
    return torch.logsumexp(scores.masked_fill(~seen, -torch.inf), -1).float()


def small(patch, tile):
    """Tiles of which even short inputs have several."""
    if tile is None:
        return

    def tiles(dim, itemsize, apart, steps, generation):
        wide, keys = max(16, 1 << (dim - 1).bit_length()), tile[1]
        blocks = max(1, min(keys, (keys - apart + 1) // steps))
        return wide, tile[0], keys, blocks, max(16, 1 << (blocks - 1).bit_length())

    patch.setattr(triton_importance, "importance_tiles", tiles)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(
    batch=st.integers(1, 2),
    key_heads=st.integers(1, 2),
    sharing=st.integers(1, 3),
    n=st.integers(1, 150),
    back=st.integers(0, 150),
    dim=st.sampled_from([5, 16, 24, 40]),
    stride=st.integers(1, 5),
    apart=st.integers(1, 4),
    steps=st.integers(1, 12),
    dtypes=st.sampled_from([("float32", "float32"), ("float16", "float32"), ("float16", "float16"), ("float32", "float16")]),
    together=st.booleans(),
    own_batch=st.booleans(),
    tile=st.sampled_from([None, (16, 16), (16, 32), (32, 16)]),
    turned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(
    batch, key_heads, sharing, n, back, dim, stride, apart, steps, dtypes, together, own_batch, tile, turned, seed
):
    dtype, of_keys = (getattr(torch, name) for name in dtypes)
    sizes = apart * stride, stride, steps * stride
    queries, keys, *rest = random_inputs(
        batch, key_heads, sharing, n, max(1, n - back), dim, *sizes, dtype, of_keys, seed, own_batch
    )
    if turned:
        queries, keys = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (queries, keys))
    with pytest.MonkeyPatch.context() as patch:
        small(patch, tile)
        check((queries, keys, *rest), together)


@pytest.mark.parametrize(("dim", "dtype"), [(128, "float16"), (192, "float16"), (64, "float32")])
def test_real_sizes(dim, dtype):
    """NSA's: compressed keys of 32 positions every 16, blocks of 64."""
    check(random_inputs(1, 2, 4, 600, 70, dim, 32, 16, 64, getattr(torch, dtype), torch.float32, 1), True)


def test_it_is_what_the_language_says_elsewhere():
    """The function that it stands in for, in torch, NaN and infinite scores included."""
    queries, keys, *rest = random_inputs(2, 2, 2, 90, 40, 8, 8, 4, 16, torch.float32, torch.float32, 3)
    keys[0, 0, 5], keys[1, 1, 7, 0] = torch.nan, torch.inf
    for together in (False, True):
        got = triton_importance.importance(torch, queries, keys, *rest, together)
        want = scorers.importance(torch, queries, keys, *rest, together)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4, equal_nan=True)
        lse = lse_of(queries, keys, *rest)
        for of in (triton_importance, scorers):
            again = of.importance(torch, queries, keys, *rest, together, lse)
            torch.testing.assert_close(again, want, atol=1e-5, rtol=1e-4, equal_nan=True)
        assert got.isnan().any()
        assert not got.isnan().all()


def test_nothing_to_score():
    queries, keys, *rest = random_inputs(1, 1, 2, 7, 5, 8, 8, 4, 4, torch.float32, torch.float32, 0)
    assert keys.shape[2] == 0
    assert torch.equal(triton_importance.importance(torch, queries, keys, *rest, True), torch.zeros(1, 1, 5, 2))
    assert triton_importance.importance(torch, queries[:, :, :0], keys, *rest, True).shape == (1, 1, 0, 2)
