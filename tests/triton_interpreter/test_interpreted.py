"""The Triton backend on CPU tensors, in Triton's interpreter: the kernels compute what dense attention under the mask does.

Output, log-sum-exp and the gradients of both. float32 and float16 only; the interpreter gets bfloat16 wrong.
"""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis.members import attentions
from patternc.testing import assert_matches_dense, dense_mask, patterns, random_call

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from patternc.runtime import operator  # noqa: E402 - needs torch
from patternc.runtime.compile import emit_source, kernel, plan_for  # noqa: E402
from patternc.runtime.loader import load  # noqa: E402

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
    "topk_attention": "causal & topk(exact, 8)",
    "dsa": "causal & topk(indexer(heads=3, dim=8), 20)",
    "moba": "moba_with(32, 3)",
    "moba_layers": "layers(moba_with(32, 3) + causal)",
    "nsa_selected": "nsa_selected_with(32, 3)",
    "nsa": "nsa_with(32, 3, 20)",
    "packed": "causal & document(ids)",
    "flagship": "causal & (window(40) | global([0]) | stride(64) | random(3) | topk(indexer, 20))",
}


def check(text, grads=True, **shape):
    call = random_call(text, **shape)
    assert_matches_dense(text, call.q, call.k, call.v, backend="triton", grads=grads, **call.inputs)


def module_of(text, call):
    """The loaded kernels that serve a call."""
    return operator.module_of(str(pc.parse(text)), 0, "triton", call.q, call.v)


def test_every_preset_has_a_small_version():
    assert set(PRESETS) == set(pc.presets())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets(name, dtype):
    pattern = pc.parse(PRESETS[name])
    for one, _ in attentions(pattern):
        n = 45 if "topk" in str(one) else 150 if dtype == "float32" else 90
        check(one, n=n, n_q=n - 10, heads=2, kv_heads=1, dtype=dtype)


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


# Passes over some rows only ("shares"): their kinds over queries, and over keys for the gradients of k and v.
SHARES = {
    "local(20) | global([0, 3, -1])": (["few"], ["few"]),
    "causal & (chunk(64) | summary(64, 4))": ([], ["packed"]),
    "where(q % 32 == 0) | local(8)": (["packed"], []),
    "where(q % 32 == 0) | local(8) | rows([5])": (["few", "packed"], []),
    "columns([0, 9]) | summary(40, 3) | local(9)": ([], ["few", "packed"]),
    "rows([0..70]) | stride(9) | local(6)": (["few"], []),
}


def kinds_of(passes):
    return ["few" if one.rows.few else "packed" for one in passes if one.share]


@pytest.mark.parametrize(("n_q", "n"), [(700, 700), (90, 240), (1, 130), (45, 45)], ids=str)
@pytest.mark.parametrize("text", SHARES)
def test_shares(text, n_q, n, monkeypatch):
    """Rows that are few, or far apart, are done first, each by several programs; the pass over all rows takes them up."""
    call = random_call(text, n=n, n_q=n_q)
    plan = plan_for(pc.parse(text), None, "triton", operator.request_of(call.q, call.v))
    assert (kinds_of(plan.heads), kinds_of(plan.keys)) == SHARES[text]
    module, splits = module_of(text, call), []
    monkeypatch.setattr(module, "splits_of", lambda *given, real=module.splits_of: splits.append(real(*given)) or splits[-1])
    assert_matches_dense(text, call.q, call.k, call.v, backend="triton")
    queries, keys = SHARES[text]
    assert len(splits) == 2 * len(queries) + len(keys)  # for the output, and for the gradients
    assert n < 700 or min(splits) > 4


def test_shares_of_many_tiles():
    """Several tiles of packed rows: keys of summaries, and queries."""
    check("causal & (chunk(64) | summary(64, 8))", n=1100)
    check("where(q % 8 == 0) & causal | local(8)", n=640, n_q=600)


@pytest.mark.parametrize("text", ["local(20) | global([0, 3, -1])", "where(q % 32 == 0) | summary(48, 2) | global([0])"])
def test_shares_of_several_heads(text):
    check(text, n=150, n_q=120, batch=2, heads=2, kv_heads=1)
    check(f"heads(({text}) + (causal & stride(7)))", n=100, heads=4, kv_heads=2)


@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 16), (64, 24), (96, 96), (20, 40), (8, 130)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_head_dims(head_dim, value_dim, dtype):
    check("causal & (window(40) | random(2))", n=100, head_dim=head_dim, value_dim=value_dim, dtype=dtype)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)], ids=str)
@pytest.mark.parametrize(
    "text",
    [
        "causal & window(40)",
        "heads(2 * causal + stride(5) + none)",
        "causal & random(3)",
        "heads(window(9) + (causal & (window(4) | stride(6))) + window(9))",
        "heads(random(2) + (causal & topk(scores, 3)) + document(ids))",
    ],
)
def test_shared_heads_and_head_mixtures(text, heads, kv_heads):
    """Where heads differ, several groups of them add to one key head."""
    check(text, n=30 if "topk" in text else 70, batch=2, heads=heads, kv_heads=kv_heads)


@pytest.mark.parametrize("heads", [1, 2, 5])
def test_heads_that_do_not_fill_a_period(heads):
    check("heads(causal + window(5) + (stride(6) | window(2)) + none)", n=80, n_q=60, heads=heads)
    check("heads(causal + window(5) + (stride(6) | window(2)) + none)", n=80, n_q=60, heads=heads, kv_heads=1)


@pytest.mark.parametrize("text", ["none", "causal - self", "rows([3..40]) & stride(7)", "columns([70])", "where(q > 200)"])
def test_queries_without_keys(text):
    check(text, n=100, heads=2)


# Passes that find nothing: shares without a key (for some n, or for some rows), and later passes over strides.
EMPTY = [
    "rows([30..40]) & where(k > 40) | local(3)",
    "rows([70]) | local(3)",
    "rows([70])",
    "columns([70])",
    "rows([3, 50]) & where(n > 80)",
    "where(q % 32 == 5 and k > q + 20) | self & rows([70..90])",
    "where(k % 32 == 5 and k > q + 20)",
    "causal & stride(40) - self",
    "window(2) & rows([5..9]) | where((q - k) % 18 == 0 and q > k) | where((q - k) % 20 == 7 and q > k)",
]


@pytest.mark.parametrize(("n_q", "n"), [(1, 1), (20, 20), (60, 90)], ids=str)
@pytest.mark.parametrize("text", EMPTY)
def test_empty_passes(text, n_q, n):
    check(text, n=n, n_q=n_q, heads=2, kv_heads=1)


@pytest.mark.parametrize("n", [99, 100])
@pytest.mark.parametrize("text", ["where(n % 2 == 0)", "where(n < 100) & causal | sinks(1)", "full | random(1)"])
def test_conditions_on_the_length(text, n):
    check(text, n=n)


def test_strides():
    call = random_call("causal & topk(scores, 5) | sinks(2)", n=20, n_q=11, batch=2, heads=4, kv_heads=2)
    last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (call.q, call.k, call.v)]
    wide = [torch.stack([t, t * 0 + 7], -1).flatten(-2)[..., ::2] for t in (call.q, call.k, call.v)]
    rows = [torch.stack([t, t * 0 + 7], 3).flatten(2, 3)[:, :, ::2] for t in (call.q, call.k, call.v)]
    for q, k, v in (last, wide, rows, (call.q, call.k[:, :1].expand(-1, 4, -1, -1), call.v[:, :1].expand(-1, 4, -1, -1))):
        assert_matches_dense("causal & topk(scores, 5) | sinks(2)", q, k, v, backend="triton", **call.inputs)


def test_scale():
    call = random_call("causal", n=70)
    for scale in (1.0, -0.2):
        assert_matches_dense("causal", call.q, call.k, call.v, backend="triton", scale=scale)


def leaves(call):
    return [t.clone().requires_grad_() for t in (call.q, call.k, call.v)]


MIXED = "local(9) | global([0]) | causal & (stride(5) | topk(scores, 3) | random(2))"


def test_only_some_inputs_need_gradients():
    call = random_call(MIXED, n=40, heads=2, kv_heads=1)
    attention = pc.compile(MIXED, backend="triton")
    every = leaves(call)
    attention(*every, **call.inputs).square().sum().backward()
    for wanted in [(0,), (1,), (2,), (0, 2), (1, 2)]:
        some = [t.clone().requires_grad_(i in wanted) for i, t in enumerate((call.q, call.k, call.v))]
        attention(*some, **call.inputs).square().sum().backward()
        for i, (mine, full) in enumerate(zip(some, every, strict=True)):
            assert (mine.grad is not None) == (i in wanted)
            assert mine.grad is None or torch.equal(mine.grad, full.grad)


@pytest.mark.parametrize("used", [0, 1], ids=["out", "lse"])
def test_only_one_output_is_used(used):
    call = random_call("causal", n=70, heads=2)
    q, k, v = leaves(call)
    out = pc.compile("causal", backend="triton")(q, k, v, return_lse=True)[used]
    scores = (q @ k.transpose(-1, -2) / 4).masked_fill(~torch.ones(70, 70, dtype=torch.bool).tril(), -torch.inf)
    dense = (scores.softmax(-1) @ v, scores.logsumexp(-1))[used]
    weights = torch.arange(out.numel()).view(out.shape) % 7 - 3.0
    mine, wanted = (torch.autograd.grad((t * weights).sum(), (q, k, v), allow_unused=True) for t in (out, dense))
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "text", ["causal & (window(9) | stride(16))", "heads((local(9) | global([0])) + (causal & random(2)))", MIXED]
)
def test_one_module_serves_every_length(text):
    """No length, batch size or number of heads emits or loads anything anew."""
    pattern = pc.parse(text)
    call = random_call(text, n=40, heads=2)
    first = module_of(text, call)
    before = [f.cache_info().misses for f in (plan_for, emit_source, kernel, load)]
    for shape in ({"n": 41}, {"n": 1}, {"n": 75, "n_q": 70, "batch": 2}, {"n": 20, "heads": 6, "kv_heads": 3}):
        call = random_call(text, **shape)
        assert module_of(text, call) is first
        pc.compile(pattern, backend="triton")(*leaves(call), **call.inputs).sum().backward()
    assert [f.cache_info().misses for f in (plan_for, emit_source, kernel, load)] == before


@pytest.mark.parametrize("leading", [(), (3,), (1, 1), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize(
    ("text", "block"), [("causal & layout(t, 64)", 64), ("layout(t, 16) | window(3)", 16), ("full - layout(t, 20)", 20)]
)
def test_block_tables(leading, text, block):
    side = -(-100 // block)
    table = torch.rand(*leading, side, side, generator=torch.Generator().manual_seed(1)) < 0.4
    call = random_call("full", n=100, n_q=90, batch=2, heads=3)
    assert_matches_dense(text, call.q, call.k, call.v, backend="triton", t=table)


@pytest.mark.parametrize(
    "text", ["causal & document(ids)", "document(ids) | sinks(1)", "causal - document(ids)", "document(ids) & document(more)"]
)
def test_documents(text):
    """Tiles within one document need no mask: the lengths give tiles inside a document, across two, and across many."""
    call = random_call("full", n=150, n_q=140, batch=2, heads=2)
    ids = (torch.rand(2, 150, generator=torch.Generator().manual_seed(3)) < 0.04).cumsum(-1)
    more = {"more": torch.arange(150) // 70} if "more" in text else {}
    for given_ids in (ids, ids[0], torch.tensor([0, 7, 7, 64, 128, 150])):
        assert_matches_dense(text, call.q, call.k, call.v, backend="triton", ids=given_ids, **more)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 4), (2, 2), (2, 4)], ids=str)
@pytest.mark.parametrize(
    "text", ["causal & topk(s, 5)", "window(4) | topk(s, 2, block=16)", "(causal & random(9)) & topk(s, 2)"]
)
def test_selections(text, shape):
    call = random_call("full", n=36, n_q=20, batch=2, heads=4, kv_heads=2)
    scores = torch.randint(0, 9, (*shape, 20, 36), generator=torch.Generator().manual_seed(1)).float()
    assert_matches_dense(text, call.q, call.k, call.v, backend="triton", s=scores)


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
            check(text, n=70, n_q=30, heads=3)
    finally:
        torch.use_deterministic_algorithms(False)


@settings(
    max_examples=20,
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
    n = min(n, 40) if "topk" in text else n  # a program for each query and head is slow here
    call = random_call(text, n=n, n_q=max(1, n - left_out), heads=2, kv_heads=1, dtype=dtype, seed=seed)
    try:
        assert_matches_dense(text, call.q, call.k, call.v, backend="triton", **call.inputs)
    except pc.PatternError as refused:
        assert refused.diagnostic.code == "too-complex"


def test_standalone_file():
    """The file's own `attention` takes the call's tensors as they are."""
    call = random_call(MIXED, n=50, heads=2)
    attention = pc.compile(MIXED, backend="triton")
    found = []
    for run in (load(attention.source).attention, attention):
        q, k, v = leaves(call)
        out, lse = run(q, k, v, return_lse=True, **call.inputs)
        found.append([out, lse, *torch.autograd.grad((out.square().sum(), lse.sum()), (q, k, v))])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other)
