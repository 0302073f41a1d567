"""The Triton backend on CPU tensors, in Triton's interpreter: the kernels compute what dense attention under the mask does.

float32 and float16 only; the interpreter gets bfloat16 wrong.
"""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.testing import assert_matches_dense, dense_mask, patterns, random_call

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log2:RuntimeWarning")

# The presets with small numbers, so that a few tiles show all there is to them.
PRESETS = {
    "dense": "full",
    "flash_causal": "causal",
    "sparse_strided": "sparse_transformer_strided(24)",
    "sparse_fixed": "sparse_transformer_fixed(24, 4)",
    "sparse_strided_layers": "layers((causal & window(24)) + (causal & stride(24)))",
    "sparse_fixed_heads": "heads((causal & (chunk(24) | summary(24, 4))) + (causal & (chunk(24) | summary(24, 4, slot=1))))",
    "longformer": "longformer_with(32, [0])",
    "longformer_dilated": "heads(3 * local(32) + 2 * window(left=16, right=16, dilation=2)) | global([0])",
    "bigbird": "bigbird_with(16, 3)",
    "bigbird_etc": "blocks(20, 1, 1) | global([0..30])",
    "mistral": "causal & window(70)",
    "streaming_llm": "causal & (window(30) | sinks(4))",
    "gemma2": "layers((causal & window(70)) + causal)",
    "gemma3": "layers(5 * (causal & window(30)) + causal)",
    "gpt_oss": "layers((causal & window(8)) + causal)",
    "llama4": "layers(3 * (causal & chunk(70)) + causal)",
    "minimax01": "layers(7 * none + causal)",
    "jamba": "layers(4 * none + causal + 3 * none)",
    "topk_attention": "causal & topk(scores, 8)",
    "dsa": "causal & topk(indexer, 20)",
    "moba": "(causal & chunk(32)) | ((causal - chunk(32)) & topk(gate, 2, block=32))",
    "nsa_selected": "causal & (window(20) | topk(importance, 3, block=16))",
    "packed": "causal & document(ids)",
    "flagship": "causal & (window(40) | global([0]) | stride(64) | random(3) | topk(indexer, 20))",
}


def check(text, grads=False, **shape):
    call = random_call(text, **shape)
    assert_matches_dense(text, call.q, call.k, call.v, backend="triton", grads=grads, **call.inputs)


def test_every_preset_has_a_small_version():
    assert set(PRESETS) == set(pc.presets())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets(name, dtype):
    pattern = pc.parse(PRESETS[name])
    for layer in {str(pattern.layer(i)): pattern.layer(i) for i in range(pattern.layers)}.values():
        check(layer, n=150, n_q=140, heads=2, kv_heads=1, dtype=dtype, grads=dtype == "float32")


@pytest.mark.parametrize(("n_q", "n"), [(1, 1), (7, 7), (1, 100), (33, 64), (64, 65), (200, 200), (60, 200)], ids=str)
@pytest.mark.parametrize("text", ["causal", "causal & (window(9) | stride(16) | random(2))", "local(40) | global([0, -1])"])
def test_lengths(text, n_q, n):
    check(text, n=n, n_q=n_q)


@pytest.mark.parametrize(("n_q", "n"), [(1, 1), (5, 5), (1, 100), (60, 200), (131, 131)], ids=str)
@pytest.mark.parametrize(
    "text",
    [
        "causal & stride(8)",
        "causal & (window(7) | stride(9))",
        "where((q - k) % 7 == 3)",
        "causal & window(20, dilation=3)",
        "causal & (chunk(32) | summary(32, 4))",
        "stride(6) | stride(10) | causal & random(2)",
        "stride(5) & rows([3..40]) | window(2)",
    ],
)
def test_views(text, n_q, n):
    """Passes over residues, chained after one another, and compacted columns."""
    check(text, n=n, n_q=n_q, heads=2)


@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 16), (64, 24), (96, 96), (20, 40), (8, 130)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_head_dims(head_dim, value_dim, dtype):
    check("causal & (window(40) | random(2))", n=100, head_dim=head_dim, value_dim=value_dim, dtype=dtype)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("text", ["causal & window(40)", "heads(2 * causal + stride(5) + none)", "causal & random(3)"])
def test_shared_heads_and_head_mixtures(text, heads, kv_heads):
    check(text, n=70, batch=2, heads=heads, kv_heads=kv_heads)


@pytest.mark.parametrize("text", ["none", "causal - self", "rows([3..40]) & stride(7)", "columns([70])", "where(q > 200)"])
def test_queries_without_keys(text):
    check(text, n=100, heads=2, grads=True)


@pytest.mark.parametrize("n", [99, 100])
@pytest.mark.parametrize("text", ["where(n % 2 == 0)", "where(n < 100) & causal | sinks(1)", "full | random(1)"])
def test_conditions_on_the_length(text, n):
    check(text, n=n)


def test_strides():
    call = random_call("causal & topk(scores, 5) | sinks(2)", n=80, n_q=60, batch=2, heads=4, kv_heads=2)
    last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (call.q, call.k, call.v)]
    wide = [torch.stack([t, t * 0 + 7], -1).flatten(-2)[..., ::2] for t in (call.q, call.k, call.v)]
    rows = [torch.stack([t, t * 0 + 7], 3).flatten(2, 3)[:, :, ::2] for t in (call.q, call.k, call.v)]
    for q, k, v in (last, wide, rows, (call.q, call.k[:, :1].expand(-1, 4, -1, -1), call.v[:, :1].expand(-1, 4, -1, -1))):
        assert_matches_dense("causal & topk(scores, 5) | sinks(2)", q, k, v, backend="triton", grads=False, **call.inputs)


def test_scale():
    call = random_call("causal", n=70)
    for scale in (1.0, -0.2):
        assert_matches_dense("causal", call.q, call.k, call.v, backend="triton", grads=False, scale=scale)


@pytest.mark.parametrize("leading", [(), (3,), (1, 1), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize(
    ("text", "block"), [("causal & layout(t, 64)", 64), ("layout(t, 16) | window(3)", 16), ("full - layout(t, 20)", 20)]
)
def test_block_tables(leading, text, block):
    side = -(-100 // block)
    table = torch.rand(*leading, side, side, generator=torch.Generator().manual_seed(1)) < 0.4
    call = random_call("full", n=100, n_q=90, batch=2, heads=3)
    assert_matches_dense(text, call.q, call.k, call.v, backend="triton", grads=False, t=table)


@pytest.mark.parametrize("text", ["causal & document(ids)", "document(ids) | sinks(1)", "causal - document(ids)"])
def test_documents(text):
    call = random_call("full", n=150, n_q=140, batch=2, heads=2)
    ids = (torch.rand(2, 150, generator=torch.Generator().manual_seed(3)) < 0.04).cumsum(-1)
    for given_ids in (ids, ids[0], torch.tensor([0, 7, 7, 64, 128, 150])):
        assert_matches_dense(text, call.q, call.k, call.v, backend="triton", grads=False, ids=given_ids)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 4), (2, 2), (2, 4)], ids=str)
@pytest.mark.parametrize(
    "text", ["causal & topk(s, 5)", "window(4) | topk(s, 2, block=16)", "(causal & random(9)) & topk(s, 2)"]
)
def test_selections(text, shape):
    call = random_call("full", n=90, n_q=70, batch=2, heads=4, kv_heads=2)
    scores = torch.randint(0, 9, (*shape, 70, 90), generator=torch.Generator().manual_seed(1)).float()
    assert_matches_dense(text, call.q, call.k, call.v, backend="triton", grads=False, s=scores)


KEYS = [
    "random(3)",
    "causal & random(5, seed=7)",
    "random(3, pool=9) | random(4, seed=3)",
    "random(2, block=8)",
    "causal & random(2, block=20, seed=2)",
    "(stride(7) | where((q + k) % 5 == 1)) & random(3)",
    "(stride(4) | window(9, dilation=2)) & random(4, block=2)",
    "(where(k < q - 4) & random(3)) | (stride(6) & random(2))",
    "causal & (window(9) | stride(16) | random(3) | random(3, seed=1) | topk(scores, 5))",
    "blocks(16, 1, 1) | random(1, block=16) | global([0..15])",
    "causal & (random(9) & topk(scores, 3) | sinks(2))",
    "layout(table5, 5) | window(7) | document(ids) & causal",
    "heads(random(2) + (causal & random(2)) + window(3))",
]


@pytest.mark.parametrize("n", [100, 129])
@pytest.mark.parametrize("text", KEYS)
def test_the_keys_that_are_read(text, n):
    """With equal scores and one-hot values the output shows the keys: exactly those of numpy's mask, each counted once."""
    call = random_call(text, n=n, heads=3)
    q = torch.zeros(1, 3, n, 16)
    v = torch.eye(n).expand(1, 3, n, n).contiguous()
    out = pc.compile(text, backend="triton")(q, q, v, **call.inputs)
    mask = dense_mask(text, 3, n, n, **call.inputs)
    assert torch.equal(out > 0, mask)
    torch.testing.assert_close(out, mask / mask.sum(-1, keepdim=True).clamp(min=1))


def test_uninitialised_memory_is_not_used():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert bool(torch.empty(3).isnan().all())
        for text in (
            "causal & (window(9) | random(2))",
            "none",
            "heads(causal + none)",
            "causal & topk(scores, 4) | document(ids)",
        ):
            check(text, n=100, n_q=70, heads=3)
    finally:
        torch.use_deterministic_algorithms(False)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)  # without shrinking, which would take minutes here: tests/backends finds smaller examples
@given(
    text=patterns(3, choices=True, inputs=True),
    n=st.one_of(st.integers(1, 150), st.sampled_from([63, 64, 65, 128])),
    left_out=st.integers(0, 40),
    dtype=st.sampled_from(["float32", "float16"]),
    seed=st.integers(0, 99),
)
def test_random_patterns(text, n, left_out, dtype, seed):
    call = random_call(text, n=n, n_q=max(1, n - left_out), heads=2, kv_heads=1, dtype=dtype, seed=seed)
    try:
        assert_matches_dense(text, call.q, call.k, call.v, backend="triton", grads=False, **call.inputs)
    except pc.PatternError as refused:
        assert refused.diagnostic.code == "too-complex"


def test_standalone_file(tmp_path):
    """The file's own `attention` takes the call's tensors as they are."""
    from patternc.runtime.loader import load

    text = PRESETS["flagship"]
    call = random_call(text, n=100, heads=2)
    attention = pc.compile(text, backend="triton")
    module = load(attention.source)
    mine, lse = module.attention(call.q, call.k, call.v, return_lse=True, **call.inputs)
    out, other = attention(call.q, call.k, call.v, return_lse=True, **call.inputs)
    torch.testing.assert_close(mine, out)
    torch.testing.assert_close(lse, other)
