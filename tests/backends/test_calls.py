"""Shapes, dtypes, strides and options of a call on the torch and the reference backend."""

import pytest

import patternc as pc
from patternc.testing import assert_matches_dense, random_call

torch = pytest.importorskip("torch")

MIXED = "causal & (window(40) | global([0]) | stride(64) | random(3))"
BACKENDS = pytest.mark.parametrize("backend", ["torch", "reference"])
PLAIN = [
    "causal",
    "local(32) | global([0, -1])",
    "causal & (chunk(64) | summary(64, 8))",
    "causal & window(40, dilation=3)",
    "causal - self",
    "blocks(16, 1, 1) | random(3, block=16) | global([0..15])",
    "(causal & random(3)) | random(2) | random(2, seed=1)",
    "full",
]


def check(text, backend, **shape):
    call = random_call(text, **shape)
    assert_matches_dense(text, call.q, call.k, call.v, backend=backend, **call.inputs)


@BACKENDS
@pytest.mark.parametrize("text", PLAIN)
@pytest.mark.parametrize(("n_q", "n"), [(1, 1), (5, 5), (300, 300), (1, 130), (77, 200), (129, 385)], ids=str)
def test_lengths(backend, text, n_q, n):
    check(text, backend, n=n, n_q=n_q, heads=2)


@BACKENDS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 16), (64, 32), (96, 96), (128, 128), (256, 40)], ids=str)
def test_dtypes_and_head_dims(backend, dtype, head_dim, value_dim):
    check(MIXED, backend, n=150, heads=2, head_dim=head_dim, value_dim=value_dim, dtype=dtype)


@BACKENDS
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 3), (6, 2), (6, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("text", [MIXED, "heads(causal + window(9)) & (full - self)", "heads(3 * causal + 2 * stride(5))"])
def test_shared_heads_and_head_mixtures(backend, heads, kv_heads, text):
    check(text, backend, n=140, batch=2, heads=heads, kv_heads=kv_heads)


@BACKENDS
def test_a_group_of_heads_reads_its_own_keys(backend):
    """Query head h reads key head h // (H / Hkv): a key head of zeros shows in its own group only."""
    call = random_call("causal", n=20, heads=6, kv_heads=3)
    v = torch.ones_like(call.v)
    v[:, 1] = 0
    out = pc.compile("causal", backend=backend)(call.q, call.k, v)
    assert [bool((out[:, h] == 0).all()) for h in range(6)] == [False, False, True, True, False, False]
    torch.testing.assert_close(out[:, [0, 1, 4, 5]], torch.ones(1, 4, 20, 16))


def seen_from(kind, t):
    """The same values, laid out in memory in another way."""
    if kind == "heads last":
        return t.transpose(1, 2).contiguous().transpose(1, 2)
    if kind == "features strided":
        return torch.stack([t, t * 0 + 7], -1).flatten(-2)[..., ::2]
    if kind == "padded rows":
        return torch.nn.functional.pad(t, (3, 5))[..., 3:-5]
    if kind == "every other row":
        return torch.stack([t, t * 0 + 7], 3).flatten(2, 3)[:, :, ::2]
    return torch.stack([t, t], 1)[:, 1]


@BACKENDS
@pytest.mark.parametrize("kind", ["heads last", "features strided", "padded rows", "every other row", "inner of a batch"])
@pytest.mark.parametrize("text", [MIXED, "causal & topk(scores, 5)"])
def test_strides(backend, kind, text):
    call = random_call(text, n=140, n_q=100, batch=2, heads=4, kv_heads=2)
    q, k, v = (seen_from(kind, t) for t in (call.q, call.k, call.v))
    assert torch.equal(q, call.q)
    assert q.stride() != call.q.stride()
    assert_matches_dense(text, q, k, v, backend=backend, **call.inputs)


@BACKENDS
def test_expanded_heads_and_batches(backend):
    call = random_call(MIXED, n=70, heads=4, kv_heads=1)
    k, v = (t.expand(2, 4, -1, -1) for t in (call.k, call.v))
    assert_matches_dense(MIXED, call.q.expand(2, -1, -1, -1), k, v, backend=backend)


@BACKENDS
@pytest.mark.parametrize("scale", [1.0, 0.05, -0.3])
def test_scale(backend, scale):
    call = random_call(MIXED, n=140, heads=2)
    assert_matches_dense(MIXED, call.q, call.k, call.v, backend=backend, scale=scale)


@BACKENDS
def test_large_scores_do_not_overflow(backend):
    call = random_call("causal", n=140)
    out, lse = pc.compile("causal", backend=backend)(call.q * 1e3, call.k * 1e3, call.v, return_lse=True)
    assert bool(out.isfinite().all())
    assert bool(lse.isfinite().all())


@BACKENDS
def test_without_lse(backend):
    call = random_call("causal", n=20)
    attention = pc.compile("causal", backend=backend)
    out, lse = attention(call.q, call.k, call.v, return_lse=True)
    assert torch.equal(attention(call.q, call.k, call.v), out)
    assert lse.shape == (1, 1, 20)
    assert torch.equal(pc.attention(call.q, call.k, call.v, "causal", backend=backend), out)


@BACKENDS
@pytest.mark.parametrize("text", ["none", "causal - self", "rows([3..40]) & stride(7)", "columns([70])", "where(q > 200)"])
@pytest.mark.parametrize("n", [20, 140])
def test_queries_without_keys(backend, text, n):
    check(text, backend, n=n, heads=2)


@BACKENDS
@pytest.mark.parametrize("text", ["causal", "causal & topk(scores, 3)", "random(2, block=4) | self"])
@pytest.mark.parametrize(("batch", "n_q", "n"), [(0, 4, 4), (1, 0, 4), (1, 0, 0)], ids=str)
def test_nothing_to_compute(backend, text, batch, n_q, n):
    inputs = {"scores": torch.zeros(max(1, batch), 1, n_q, n)} if "scores" in text else {}
    q = torch.zeros(batch, 2, n_q, 16, requires_grad=True)
    k = torch.zeros(batch, 2, n, 16, requires_grad=True)
    out, lse = pc.compile(text, backend=backend)(q, k, k.detach(), return_lse=True, **inputs)
    assert out.shape == (batch, 2, n_q, 16)
    assert lse.shape == (batch, 2, n_q)
    out.sum().backward()
    assert k.grad is None or not bool(k.grad.any())


@BACKENDS
def test_uninitialised_memory_is_not_used(backend, poisoned):
    for text in [MIXED, "none", "causal - self", "heads(causal + none)"]:
        check(text, backend, n=140, n_q=100, heads=3)
    check("causal & topk(scores, 4) | document(ids) & window(3)", backend, n=140, heads=2)


def test_one_call_covers_only_the_heads_there_are():
    """A period longer than the number of heads."""
    check("heads(causal + window(3) + full + none)", "torch", n=30, heads=2)
