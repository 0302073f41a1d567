"""On a CUDA GPU: every preset at its own size, and random patterns, against dense attention under the mask."""

import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.testing import assert_matches_dense, patterns, random_call

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.timeout(900),
]

DTYPES = ["bfloat16", "float16", "float32"]
LENGTH = 1300  # ragged, and many tiles


def shrunk(text):
    """The preset with its large sizes divided, so that they show at the length of these tests."""
    return re.sub(r"\b(4096|8192|2048|1024|512)\b", lambda size: str(int(size[0]) // 8), text)


def check(text, grads=True, scale=None, **shape):
    call = random_call(text, device="cuda", **shape)
    assert_matches_dense(text, call.q, call.k, call.v, backend="triton", grads=grads, scale=scale, **call.inputs)


def layers(pattern):
    return {str(pattern.layer(i)): pattern.layer(i) for i in range(pattern.layers)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(pc.presets()))
def test_presets(name, dtype):
    for text in layers(pc.preset(name)):
        for shape in ({"n": LENGTH, "head_dim": 128}, {"n": LENGTH, "n_q": 900, "head_dim": 64}):
            check(shrunk(text), heads=4, kv_heads=2, dtype=dtype, **shape)


@pytest.mark.parametrize("name", sorted(pc.presets()))
def test_presets_at_their_own_size(name):
    for text in layers(pc.preset(name)):
        check(text, n=5000, heads=2, kv_heads=1, head_dim=128, dtype="bfloat16", grads=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 16), (40, 24), (96, 96), (128, 64), (192, 128), (256, 256)], ids=str)
def test_head_dims(head_dim, value_dim, dtype):
    check(
        "causal & (window(200) | stride(64) | random(3))", n=700, heads=2, head_dim=head_dim, value_dim=value_dim, dtype=dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_q", "n"), [(1, 1), (1, 1000), (3, 63), (127, 129), (64, 64), (1000, 1000), (17, 2049)], ids=str)
@pytest.mark.parametrize(
    "text", ["causal", "causal & (window(100) | sinks(4))", "local(64) | global([0, -1])", "causal & topk(scores, 30)"]
)
def test_lengths(text, n_q, n, dtype):
    check(text, n=n, n_q=n_q, batch=2, heads=4, kv_heads=2, head_dim=64, dtype=dtype)


@pytest.mark.parametrize(
    "text", ["none", "causal - self", "rows([3..400]) & stride(7)", "columns([700])", "where(n % 2 == 1) & causal"]
)
def test_queries_without_keys(text):
    check(text, n=900, heads=2, head_dim=64, dtype="bfloat16")


@pytest.mark.parametrize(
    "text", ["causal & (window(100) | random(3))", "blocks(64, 1, 1) | random(3, block=64)", "causal & topk(scores, 9)"]
)
def test_strides(text):
    call = random_call(text, n=500, n_q=400, batch=2, heads=4, kv_heads=2, head_dim=64, dtype="bfloat16", device="cuda")
    tensors = call.q, call.k, call.v
    last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    wide = [torch.stack([t, t * 0 + 7], -1).flatten(-2)[..., ::2] for t in tensors]
    packed = [torch.nn.functional.pad(t, (3, 5))[..., 3:-5] for t in tensors]
    for q, k, v in (last, wide, packed, (call.q, call.k[:, :1].expand(-1, 4, -1, -1), call.v[:, :1].expand(-1, 4, -1, -1))):
        assert_matches_dense(text, q, k, v, backend="triton", **call.inputs)


@pytest.mark.parametrize("scale", [1.0, -0.2])
def test_scale(scale):
    check("causal & window(100)", n=300, head_dim=64, dtype="float16", scale=scale)


def test_uninitialised_memory_is_not_used():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert bool(torch.empty(3, device="cuda").isnan().all())
        for text in (
            "causal & (window(90) | random(2))",
            "none",
            "heads(causal + none)",
            "causal & topk(scores, 4) | document(ids)",
        ):
            check(text, n=500, n_q=333, heads=3, head_dim=64, dtype="bfloat16", grads=False)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "text", ["random(3)", "causal & random(5, seed=7)", "random(3, pool=9)", "random(2, block=20)", "stride(7) & random(3)"]
)
def test_the_sampler_draws_what_numpy_draws(text):
    n = 256
    q = torch.zeros(1, 3, n, 64, device="cuda", dtype=torch.float32)
    v = torch.eye(n, device="cuda").expand(1, 3, n, n).contiguous()
    out = pc.compile(text, backend="triton")(q, q, v)
    for head in range(3):
        assert torch.equal((out[0, head] > 0).cpu(), torch.from_numpy(pc.parse(text).mask(n, head)))


def test_large_offsets():
    """Tensors of more than 2^31 elements."""
    if torch.cuda.get_device_properties(0).total_memory < 60 << 30:
        pytest.skip("needs a GPU with 60 GB")
    n, heads = 1 << 17, 136
    q = torch.empty(1, heads, n, 128, device="cuda", dtype=torch.bfloat16).normal_()
    attention = pc.compile("causal & window(9)", backend="triton")
    out = attention(q, q, q)
    last = q[:, -1:]
    torch.testing.assert_close(out[:, -1:], attention(last.clone(), last.clone(), last.clone()))


def test_the_gpu_backend_is_chosen():
    q = torch.zeros(1, 2, 100, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    attention = pc.compile("causal & window(9)")
    assert torch.equal(attention(q, q, q), pc.compile("causal & window(9)", backend="triton")(q, q, q))
    with pytest.raises(ValueError, match="dtype float64 is not one of float16, bfloat16, float32"):
        pc.compile("causal", backend="triton")(q.double(), q.double(), q.double())
    with pytest.raises(ValueError, match="'ids' is on cpu and q on cuda:0"):
        pc.compile("document(ids)")(q, q, q, ids=torch.zeros(100, dtype=torch.int32))


def test_torch_compile():
    text = "causal & (window(90) | topk(scores, 5) | random(2))"
    call = random_call(text, n=300, heads=2, head_dim=64, dtype="bfloat16", device="cuda")
    attention = pc.compile(text)
    compiled = torch.compile(lambda q, k, v, inputs: attention(q, k, v, **inputs) * 2, fullgraph=True)
    torch.testing.assert_close(
        compiled(call.q, call.k, call.v, call.inputs), attention(call.q, call.k, call.v, **call.inputs) * 2
    )


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(
    text=patterns(3, choices=True, inputs=True),
    n=st.one_of(st.integers(1, 400), st.sampled_from([63, 64, 65, 127, 128, 129, 512])),
    left_out=st.integers(0, 90),
    groups=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    dims=st.sampled_from([(16, 16), (64, 64), (64, 128), (80, 80), (128, 128)]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_random_patterns(text, n, left_out, groups, dims, dtype, seed):
    shape = {
        "n": n,
        "n_q": max(1, n - left_out),
        "heads": groups[0],
        "kv_heads": groups[1],
        "head_dim": dims[0],
        "value_dim": dims[1],
    }
    call = random_call(text, dtype=dtype, seed=seed, device="cuda", **shape)
    try:
        assert_matches_dense(text, call.q, call.k, call.v, backend="triton", **call.inputs)
    except pc.PatternError as refused:
        assert refused.diagnostic.code == "too-complex"
