"""On a CUDA GPU: every preset at its own size, and random patterns, against dense attention under the mask.

Output, log-sum-exp and gradients, all of them by Triton kernels, and by the Gluon kernels of Hopper GPUs.
"""

import re

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis.members import attentions
from patternc.testing import assert_matches_dense, patterns, random_call

torch = pytest.importorskip("torch")
from patternc.runtime import operator  # noqa: E402 - needs torch
from patternc.runtime.compile import serving  # noqa: E402

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


def backends_of(text, call):
    """The GPU backends that can serve a call."""
    request = operator.request_of(call.q, call.v)
    return dict.fromkeys(("triton", serving(pc.parse(str(text)), None, request)))


def check(text, grads=True, scale=None, **shape):
    call = random_call(text, device="cuda", **shape)
    for backend in backends_of(text, call):
        assert_matches_dense(text, call.q, call.k, call.v, backend=backend, grads=grads, scale=scale, **call.inputs)


def attentions_of(pattern):
    return {str(one): one for one, _ in attentions(pattern)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(pc.presets()))
def test_presets(name, dtype):
    for text in attentions_of(pc.preset(name)):
        for shape in ({"n": LENGTH, "head_dim": 128}, {"n": LENGTH, "n_q": 900, "head_dim": 64}):
            check(shrunk(text), heads=4, kv_heads=2, dtype=dtype, **shape)


@pytest.mark.parametrize("name", sorted(pc.presets()))
def test_presets_at_their_own_size(name):
    for text in attentions_of(pc.preset(name)):
        check(text, n=5000, heads=2, kv_heads=1, head_dim=128, dtype="bfloat16")


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
        for backend in backends_of(text, call):
            assert_matches_dense(text, q, k, v, backend=backend, **call.inputs)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("causal & topk(scores, 90, share=query)", {"heads": 64, "kv_heads": 1, "head_dim": 576, "value_dim": 512}),
        ("causal & topk(scores, 90, share=group)", {"heads": 32, "kv_heads": 2, "head_dim": 192, "value_dim": 128}),
        ("causal & (window(70) | topk(scores, 50, share=group))", {"heads": 32, "kv_heads": 2, "head_dim": 128}),
        ("causal & (window(70) | topk(scores, 4, block=64, share=group))", {"heads": 32, "kv_heads": 2, "head_dim": 128}),
        ("causal & document(ids) & topk(exact, 4, block=32)", {"heads": 4, "kv_heads": 2, "head_dim": 64}),
    ],
)
def test_lists_of_keys(text, shape, deterministic):
    """Heads that share a list, up to those of latent attention, and heads that do not."""
    torch.use_deterministic_algorithms(deterministic)
    try:
        check(text, n=700, n_q=500, batch=2, dtype="bfloat16", **shape)
    finally:
        torch.use_deterministic_algorithms(False)


def recorded(module, patch):
    """The names of the kernels that a module launches from now on."""
    names, own = [], module.launch
    patch.setattr(module, "launch", lambda kernel, *rest: names.append(kernel.__name__) or own(kernel, *rest))
    return names


def latent(text, **shape):
    """A call with keys whose first 512 dims are the values, and one list for all heads of a key head."""
    call = random_call(text, head_dim=576, value_dim=512, **shape)
    scores = {name: t[:, :: t.shape[1] // call.k.shape[1]] for name, t in call.inputs.items()}
    return call.q, call.k, call.k[..., :512], scores


LATENT = [
    ("causal & topk(s, 100)", {"n": 300, "batch": 2, "heads": 128, "kv_heads": 1}),
    ("causal & topk(s, 300)", {"n": 1024, "heads": 128, "kv_heads": 1}),
    ("causal & topk(s, 300)", {"n": 1024, "n_q": 333, "heads": 72, "kv_heads": 1}),
    ("causal & topk(s, 90, share=group)", {"n": 300, "n_q": 77, "batch": 2, "heads": 130, "kv_heads": 2}),
    ("heads((causal & topk(s, 70)) + (causal & topk(t, 200)))", {"n": 400, "n_q": 100, "heads": 128, "kv_heads": 1}),
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("text", "shape"), LATENT, ids=str)
def test_latent_attention(text, shape, dtype):
    """Gluon's kernel for it, against dense attention with gradients, and against Triton's kernel."""
    q, k, v, scores = latent(text, dtype=dtype, device="cuda", **shape)
    for t in scores.values():
        t[:, :, 5:9] = -torch.inf  # queries without keys
    if serving(pc.parse(text), None, operator.request_of(q, v)) != "gluon":
        pytest.skip("another generation of GPUs")
    module = operator.module_of(str(pc.parse(text)), 0, "gluon", q, v)
    with pytest.MonkeyPatch.context() as patch:
        names = recorded(module, patch)
        assert_matches_dense(text, q, k, v, backend="gluon", **scores)
    assert {name for name in names if "g0" in name} >= {"latent_g0"}
    assert not any(name.startswith("picked_g") for name in names)
    one, same, other = (
        pc.compile(text, backend=backend)(q, k, v, return_lse=True, **scores) for backend in ("gluon", "gluon", "triton")
    )
    assert torch.equal(one[0], same[0])
    torch.testing.assert_close(one[0], other[0], atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(one[1], other[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("n_q", "batch", "heads"), [(300, 1, 128), (99, 2, 72)])
def test_latent_attention_after_another_pass(n_q, batch, heads):
    """As in a file for narrower heads, whose first pass is none of Gluon's here: dense attention does it."""
    text, first = "causal & ((window(60) & columns([100..299])) | topk(s, 100))", "causal & window(60) & columns([100..299])"
    q, k, v, scores = latent(text, n=300, n_q=n_q, batch=batch, heads=heads, kv_heads=1, dtype="bfloat16", device="cuda")
    if serving(pc.parse("causal"), None, operator.request_of(q[..., :64], k[..., :64])) != "gluon":
        pytest.skip("another generation of GPUs")
    module, names, wide = operator.module_of(text, 0, "gluon", q[..., :64], k[..., :64]), [], [t.float() for t in (q, k, v)]

    def launch(kernel, grid, case, given, options, own=module.launch):
        names.append(kernel.__name__)
        if kernel.__name__ == "kernel_g0":
            out, lse = pc.compile(first, backend="torch")(*wide, return_lse=True)
            given[5].copy_(out), given[7].copy_(lse)
        else:
            own(kernel, grid, case, given, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "launch", launch)
        out, lse = module.forward(q, k, v, {}, module.selections(q, k, scores), 576**-0.5)
    assert names == ["kernel_g0", "latent_g1"]
    wanted, wanted_lse = pc.compile(text, backend="torch")(*wide, return_lse=True, **scores)
    torch.testing.assert_close(out.float(), wanted, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(lse, wanted_lse, atol=1e-3, rtol=1e-3)


SHARES = [
    "local(64) | global([0, 77, -1])",
    "causal & (chunk(64) | summary(64, 4))",
    "where(q % 32 == 0) | local(8)",
    "where(q % 32 == 0) & causal | summary(48, 2) | rows([5])",
    "rows([0..200]) | stride(100) | columns([3])",
]


@pytest.mark.parametrize("backend", ["triton", "gluon"])
@pytest.mark.parametrize(("n_q", "n"), [(5000, 5000), (777, 5000), (5, 90)], ids=str)
@pytest.mark.parametrize("text", SHARES)
def test_shares(text, n_q, n, backend):
    """Rows that are few or far apart are done by many programs each, whose parts are merged."""
    head_dim = 128 if backend == "gluon" else 64
    call = random_call(text, n=n, n_q=n_q, heads=2, kv_heads=1, head_dim=head_dim, dtype="bfloat16", device="cuda")
    if backend not in backends_of(text, call):
        pytest.skip("another generation of GPUs")
    module = operator.module_of(str(pc.parse(text)), 0, backend, call.q, call.v)
    splits = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "splits_of", lambda *given, real=module.splits_of: splits.append(real(*given)) or splits[-1])
        assert_matches_dense(text, call.q, call.k, call.v, backend=backend)
    assert splits
    assert n < 5000 or max(splits) > 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_shares_of_several_heads(dtype):
    text = "heads((local(64) | global([0])) + (causal & stride(96)) + (where(q % 40 == 3) | local(5)))"
    check(text, n=1500, n_q=1300, batch=2, heads=6, kv_heads=2, head_dim=64, value_dim=128, dtype=dtype)


EMPTY = [
    "rows([300..400]) & where(k > 400) | local(3)",
    "rows([700])",
    "columns([700])",
    "where(q % 32 == 5 and k > q + 200) | self & rows([70..90])",
    "causal & (chunk(256) | summary(256, 8))",
    "causal & stride(400) - self",
    "where((q - k) % 180 == 7 and q > k) | where((q - k) % 200 == 0 and q > k)",
]


@pytest.mark.parametrize(("n_q", "n"), [(1, 1), (20, 20), (200, 200), (600, 900)], ids=str)
@pytest.mark.parametrize("text", EMPTY)
def test_empty_passes(text, n_q, n):
    """Passes without a key, for some rows or for all, and keys to pack of which there are none."""
    check(text, n=n, n_q=n_q, heads=2, kv_heads=1, head_dim=64, dtype="bfloat16")


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("n", [1280, 1279, 1216, 50])
@pytest.mark.parametrize("text", ["causal & stride(64)", "causal & (window(90) | stride(64))", "causal & document(ids)"])
def test_tiles_by_the_copy_engine(text, n, head_dim):
    """With descriptors, where n is a multiple of the stride, and without."""
    check(text, n=n, heads=2, kv_heads=1, head_dim=head_dim, dtype="bfloat16")
    check(text, n=n, n_q=n - n // 3, heads=1, head_dim=head_dim, dtype="float16")


def cut(t, *, last=0, rows=0, heads=0):
    """The same values, in the middle of a larger tensor of others."""
    padded = torch.nn.functional.pad(t, (last, last, rows, rows, heads, heads), value=7.0)
    n, h, d = (padded.shape[i] - 2 * more for i, more in ((2, rows), (1, heads), (3, last)))
    return padded[:, heads : heads + h, rows : rows + n, last : last + d]


@pytest.mark.parametrize("text", ["causal & (window(90) | stride(64))", "local(40) | global([0])", "summary(64, 3) & causal"])
def test_descriptors_of_views(text):
    """Tensors with gaps, at offsets, and in other orders of axes: tiles never reach beyond them."""
    call = random_call(text, n=640, batch=2, heads=4, kv_heads=2, head_dim=64, dtype="bfloat16", device="cuda")
    tensors = call.q, call.k, call.v
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    batches = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors]
    sliced = [cut(t, rows=3, heads=1) for t in tensors]
    aligned = [cut(t, last=16, rows=16) for t in tensors]
    odd = [cut(t, last=3, rows=1) for t in tensors]
    every_other = [torch.stack([t, t * 0 + 7], 3).flatten(2, 3)[:, :, ::2] for t in tensors]
    joined = torch.cat([t.transpose(1, 2).flatten(2) for t in tensors], -1)  # as projections leave q, k and v
    parts = joined.split([4 * 64, 2 * 64, 2 * 64], -1)
    fused = [t.unflatten(-1, (-1, 64)).transpose(1, 2) for t in parts]
    for mine in (turned, batches, sliced, aligned, odd, every_other, fused):
        assert all(torch.equal(a, b) for a, b in zip(mine, tensors, strict=True))
        for backend in backends_of(text, call):
            assert_matches_dense(text, *mine, backend=backend)


@pytest.mark.parametrize("backend", ["triton", "gluon"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_long_rows(dtype, backend):
    """Some rows and some keys of 20,000, against dense attention of those rows, and of all rows that read those keys."""
    n, text = 20_000, "causal & stride(64) | global([0])"
    call = random_call(text, n=n, heads=2, kv_heads=1, head_dim=64, dtype=dtype, device="cuda")
    q, k, v = (t.requires_grad_() for t in (call.q, call.k, call.v))
    if backend not in backends_of(text, call):
        pytest.skip("another generation of GPUs")
    out, lse = pc.compile(text, backend=backend)(q, k, v, return_lse=True)
    generator = torch.Generator("cuda").manual_seed(1)
    rows = torch.tensor([0, 1, 63, 64, 65, 9_999, 12_800, n - 65, n - 1], device="cuda")
    upstream = torch.zeros_like(out)  # gradients come from these rows alone, so that the reference is exact for all keys
    upstream[:, :, rows] = torch.randn(1, 2, len(rows), 64, generator=generator, device="cuda").to(out.dtype)
    along = torch.zeros_like(lse)
    along[:, :, rows] = torch.randn(1, 2, len(rows), generator=generator, device="cuda")
    found = torch.autograd.grad((out, lse), (q, k, v), (upstream, along))

    position = torch.arange(n, device="cuda")
    distance = rows[:, None] - position
    mask = (distance >= 0) & (distance % 64 == 0) | (rows == 0)[:, None] | (position == 0)
    few, wide_k, wide_v = (t.detach().double().requires_grad_() for t in (q[:, :, rows], k, v))
    scores = (few @ wide_k.transpose(-1, -2) / 8).masked_fill(~mask, -torch.inf)
    dense = scores.softmax(-1) @ wide_v, scores.logsumexp(-1)
    wanted = torch.autograd.grad(dense, (few, wide_k, wide_v), (upstream[:, :, rows].double(), along[:, :, rows].double()))
    close = {"atol": 0.02, "rtol": 0.02} if dtype == "bfloat16" else {"atol": 0.004, "rtol": 0.004}
    torch.testing.assert_close(out[:, :, rows].double(), dense[0], **close)
    torch.testing.assert_close(lse[:, :, rows].double(), dense[1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[0][:, :, rows].double(), wanted[0], **close)
    for mine, ref in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(mine.double(), ref, **close)
    other = torch.ones(n, dtype=torch.bool, device="cuda").index_fill(0, rows, False)
    assert not found[0][:, :, other].any()


MIXED = "local(64) | global([0]) | causal & (stride(50) | topk(scores, 5) | random(2))"


def leaves(call):
    return [t.clone().requires_grad_() for t in (call.q, call.k, call.v)]


@pytest.mark.parametrize("text", [MIXED, "bigbird", "causal & (chunk(64) | summary(64, 4))", "causal & document(ids)"])
def test_the_same_again(text):
    """Two runs are equal bit by bit: nothing is added in an order that chance decides."""
    text = str(pc.preset(text)) if text in pc.presets() else text
    call = random_call(text, n=2000, batch=2, heads=4, kv_heads=2, head_dim=64, dtype="bfloat16", device="cuda")
    attention = pc.compile(text)
    generator = torch.Generator("cuda").manual_seed(2)
    upstream = torch.randn(call.q.shape, generator=generator, device="cuda").bfloat16()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(3):
            q, k, v = leaves(call)
            out, lse = attention(q, k, v, return_lse=True, **call.inputs)
            found.append([out, lse, *torch.autograd.grad((out, lse), (q, k, v), (upstream, torch.ones_like(lse)))])
    finally:
        torch.use_deterministic_algorithms(before)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def assert_same_again(times, call):
    """Every bit of the tensors of a call, however often."""
    expected, different = call(), torch.zeros((), dtype=torch.bool, device="cuda")
    for _ in range(times):
        for mine, first in zip(call(), expected, strict=True):
            different |= (mine != first).any()
    assert not different


@pytest.mark.parametrize("text", ["causal & (window(70) | stride(64))", "local(64) | global([0])", "bigbird"])
def test_a_thousand_times(text):
    """Warpgroups that wait for each other: a race would show in some of many runs."""
    text = str(pc.preset(text)) if text in pc.presets() else text
    call = random_call(text, n=1300, heads=8, kv_heads=2, head_dim=128, dtype="bfloat16", device="cuda")
    attention = pc.compile(text)
    assert_same_again(1000, lambda: attention(call.q, call.k, call.v, return_lse=True))


@pytest.mark.parametrize("text", ["causal & (window(70) | stride(64))", "local(64) | global([0])", "bigbird", "causal"])
def test_gradients_many_times(text):
    text = str(pc.preset(text)) if text in pc.presets() else text
    call = random_call(text, n=1300, heads=8, kv_heads=2, head_dim=128, dtype="bfloat16", device="cuda")
    leaves = [t.requires_grad_() for t in (call.q, call.k, call.v)]
    torch.use_deterministic_algorithms(True)
    try:
        out = pc.compile(text)(*leaves)
        assert_same_again(300, lambda: torch.autograd.grad(out.sum(), leaves, retain_graph=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_only_some_inputs_need_gradients(wanted):
    call = random_call(MIXED, n=500, heads=4, kv_heads=2, head_dim=64, dtype="bfloat16", device="cuda")
    attention = pc.compile(MIXED, backend="triton")
    every = leaves(call)
    attention(*every, **call.inputs).square().sum().backward()
    some = [t.clone().requires_grad_(i in wanted) for i, t in enumerate((call.q, call.k, call.v))]
    attention(*some, **call.inputs).square().sum().backward()
    for i, (mine, full) in enumerate(zip(some, every, strict=True)):
        assert (mine.grad is not None) == (i in wanted)
        assert mine.grad is None or torch.equal(mine.grad, full.grad)


def test_checkpoint():
    call = random_call(MIXED, n=500, heads=4, kv_heads=2, head_dim=64, dtype="bfloat16", device="cuda")
    attention = pc.compile(MIXED)
    grads = []
    for checkpointed in (False, True):
        q, k, v = leaves(call)
        run = lambda q, k, v: attention(q * 2, k, v, **call.inputs).sin()  # noqa: E731
        out = torch.utils.checkpoint.checkpoint(run, q, k, v, use_reentrant=False) if checkpointed else run(q, k, v)
        out.sum().backward()
        grads.append([q.grad, k.grad, v.grad])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """Casts like torch's own operators; gradients come back in the dtypes of the leaves, and those of the cast call."""
    call = random_call(MIXED, n=500, heads=4, kv_heads=2, head_dim=64, dtype="float32", device="cuda")
    attention = pc.compile(MIXED)
    q, k, v = leaves(call)
    with torch.autocast("cuda", dtype=dtype):
        out, lse = attention(q, k, v, return_lse=True, **call.inputs)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    (out.float().square().sum() + lse.sum()).backward()
    narrow = [t.to(dtype).requires_grad_() for t in (call.q, call.k, call.v)]
    plain, other = attention(*narrow, return_lse=True, **call.inputs)
    (plain.float().square().sum() + other.sum()).backward()
    assert torch.equal(out, plain)
    for mine, cast in zip((q, k, v), narrow, strict=True):
        assert mine.grad.dtype == torch.float32
        assert torch.equal(mine.grad, cast.grad.float())


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
            "local(40) | global([0, -1]) | stride(50)",
            "causal & (chunk(64) | summary(64, 4))",
        ):
            check(text, n=500, n_q=333, heads=3, head_dim=64, dtype="bfloat16")
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
    best = "gluon" if torch.cuda.get_device_capability()[0] == 9 else "triton"
    assert torch.equal(attention(q, q, q), pc.compile("causal & window(9)", backend=best)(q, q, q))
    with pytest.raises(ValueError, match="dtype float64 is not one of float16, bfloat16, float32"):
        pc.compile("causal", backend="triton")(q.double(), q.double(), q.double())
    with pytest.raises(ValueError, match="'ids' is on cpu and q on cuda:0"):
        pc.compile("document(ids)")(q, q, q, ids=torch.zeros(100, dtype=torch.int32))


JOINT = [
    ("causal", {"n": 1}),
    ("causal", {"n": 1337, "batch": 2, "heads": 3}),
    ("full", {"n": 333, "heads": 4, "kv_heads": 2}),
    ("causal & window(1100)", {"n": 1500, "heads": 4, "kv_heads": 1}),
    ("causal & (window(1100) | sinks(4))", {"n": 1290, "heads": 2}),
    ("causal & document(ids)", {"n": 1000, "batch": 2, "heads": 2}),
    ("causal | layout(table, 64)", {"n": 700, "heads": 4, "kv_heads": 2}),
]


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("head_dim", [128, 96, 64])
@pytest.mark.parametrize(("text", "shape"), JOINT, ids=str)
def test_gradients_at_once(text, shape, head_dim, dtype):
    """The kernel for all gradients, against dense attention; and the two that stand for it in deterministic mode."""
    call = random_call(text, head_dim=head_dim, dtype=dtype, device="cuda", **shape)
    if serving(pc.parse(text), None, operator.request_of(call.q, call.v)) != "gluon":
        pytest.skip("another generation of GPUs")
    module = operator.module_of(str(pc.parse(text)), 0, "gluon", call.q, call.v)
    with pytest.MonkeyPatch.context() as patch:
        names = recorded(module, patch)
        assert_matches_dense(text, call.q, call.k, call.v, backend="gluon", grads=True, **call.inputs)
        assert "joint_g0" in names
        names.clear()
        torch.use_deterministic_algorithms(True)
        try:
            assert_matches_dense(text, call.q, call.k, call.v, backend="gluon", grads=True, **call.inputs)
        finally:
            torch.use_deterministic_algorithms(False)
    assert "joint_g0" not in names
    assert any(name.startswith("specialised_keys") for name in names)


@pytest.mark.parametrize("backend", ["triton", "gluon"])
def test_repeated_calls(backend):
    """Other tensors, and other shapes in the same memory, of calls that are launched without a look at them."""
    if backend == "gluon" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU")
    attention, memory = pc.compile("causal", backend=backend), torch.randn(3, 1 << 21, device="cuda").bfloat16()
    shapes = [(2, 4, 512, 64), (1, 8, 512, 64), (4, 2, 500, 64), (2, 4, 512, 64), (1, 2, 700, 128)]
    other, found = torch.cuda.Stream(), []
    for turn in range(6):
        for b, h, n, d in shapes:
            q, k, v = (t[turn * 64 :][: b * h * n * d].view(b, h, n, d) for t in memory)
            if turn == 4:
                q, k, v = q.clone(), k.clone(), v.clone()
            assert operator.direct(q, k, v)
            expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            other.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(other if turn == 5 else torch.cuda.current_stream()):
                out, lse = attention(q, k, v, return_lse=True)
            torch.cuda.synchronize()
            torch.testing.assert_close(out, expected, atol=0.02, rtol=0.02)
            assert lse.isfinite().all()
            found.append(out)
    assert len({out.data_ptr() for out in found}) == len(found)


def laid_out(how, turn):
    """Queries, keys and values (1, 16, 512, 128), which begin or lie elsewhere than those of an earlier call."""
    if how == "turned":
        return [torch.randn(1, 512, 16, 128, device="cuda").bfloat16().transpose(1, 2) for _ in range(3)]
    first = {"plain": 0, "64 on": 64 * turn, "not aligned": 1 + turn}[how]
    memory = torch.randn(3, 1 << 21, device="cuda").bfloat16()
    return [t[first:][: 16 * 512 * 128].view(1, 16, 512, 128) for t in memory]


@pytest.mark.parametrize("backend", ["triton", "gluon"])
def test_repeated_calls_and_gradients(backend):
    """Against dense attention in float32: the same call again, in other memory, in other layouts, with other scales."""
    if backend == "gluon" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU")
    attention, future = pc.compile("causal", backend=backend), torch.ones(512, 512, device="cuda", dtype=torch.bool).triu(1)
    for turn in range(3):
        for how in ("plain", "64 on", "not aligned", "turned"):
            for scale in (None, 0.3, -0.1):
                given = laid_out(how, turn)
                leaves, wide = (
                    [t.detach().to(dtype).requires_grad_() for t in given] for dtype in (torch.bfloat16, torch.float32)
                )
                scores = (wide[0] @ wide[1].transpose(-1, -2)) * (128**-0.5 if scale is None else scale)
                expected = scores.masked_fill(future, -torch.inf).softmax(-1) @ wide[2]
                with torch.no_grad():
                    found = attention(*given, scale=scale)
                error = (found.float() - expected).abs().max()
                assert error < 0.05, (turn, how, scale, error)
                grad = torch.randn_like(found)
                out = torch.autograd.grad(attention(*leaves, scale=scale), leaves, grad)
                for name, one, other in zip("qkv", out, torch.autograd.grad(expected, wide, grad.float()), strict=True):
                    error = (one.float() - other).abs().max() / other.abs().max()
                    assert error < 0.03, (turn, how, scale, name, error)


def test_repeated_calls_in_a_cuda_graph():
    q, k, v = torch.randn(3, 1, 4, 512, 64, device="cuda").bfloat16()
    attention = pc.compile("causal")
    for _ in range(3):
        attention(q, k, v)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, k, v)
    q.normal_()
    graph.replay()
    torch.testing.assert_close(out, attention(q, k, v))


def test_torch_compile():
    text = "causal & (window(90) | topk(scores, 5) | random(2))"
    call = random_call(text, n=300, heads=2, head_dim=64, dtype="bfloat16", device="cuda")
    attention = pc.compile(text)
    compiled = torch.compile(lambda q, k, v, inputs: attention(q, k, v, **inputs) * 2, fullgraph=True)
    torch.testing.assert_close(
        compiled(call.q, call.k, call.v, call.inputs), attention(call.q, call.k, call.v, **call.inputs) * 2
    )


def test_torch_compile_with_gradients():
    attention = pc.compile(MIXED)

    def model(q, k, v, inputs):
        out, lse = attention(q * 2, k, v, return_lse=True, **inputs)
        return out.float().sin().sum(-1) + lse

    call = random_call(MIXED, n=300, heads=4, kv_heads=2, head_dim=64, dtype="bfloat16", device="cuda")
    grads = []
    for run in (model, torch.compile(model, fullgraph=True)):
        q, k, v = leaves(call)
        run(q, k, v, call.inputs).sum().backward()
        grads.append([q.grad, k.grad, v.grad])
    for mine, plain in zip(*grads, strict=True):
        torch.testing.assert_close(mine, plain, atol=0.02, rtol=0.02)


def test_cuda_graphs():
    """A call can be captured once it has run: it neither waits for the GPU nor asks it for sizes."""
    text = "local(64) | global([0]) | causal & (stride(50) | random(2))"
    call = random_call(text, n=700, heads=2, head_dim=64, dtype="bfloat16", device="cuda")
    attention = pc.compile(text)
    expected = attention(call.q, call.k, call.v)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attention(call.q, call.k, call.v)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(call.q, call.k, call.v)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("part", range(10))
@pytest.mark.parametrize("backend", ["triton", "gluon"])
def test_random_patterns(backend, part):
    """Twenty patterns a part; gradients too where the backend's own kernels compute them."""

    @seed(part)
    @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(
        text=patterns(3, choices=backend == "triton", inputs=True),
        n=st.one_of(st.integers(1, 400), st.sampled_from([63, 64, 65, 127, 128, 129, 512])),
        left_out=st.integers(0, 90),
        groups=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
        dims=st.sampled_from([(16, 16), (64, 64), (64, 128), (80, 80), (128, 128)]),
        dtype=st.sampled_from(DTYPES[: 3 if backend == "triton" else 2]),
        draw=st.integers(0, 99),
    )
    def check_one(text, n, left_out, groups, dims, dtype, draw):
        shape = {
            "n": n,
            "n_q": max(1, n - left_out),
            "heads": groups[0],
            "kv_heads": groups[1],
            "head_dim": dims[0],
            "value_dim": dims[1],
        }
        try:
            call = random_call(text, dtype=dtype, seed=draw, device="cuda", **shape)
            if backend in backends_of(text, call):
                grads = backend == "triton"
                assert_matches_dense(text, call.q, call.k, call.v, backend=backend, grads=grads, **call.inputs)
        except pc.PatternError as refused:
            assert refused.diagnostic.code == "too-complex"

    check_one()
