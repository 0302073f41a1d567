"""Joining attentions: merges, gates and sinks against one dense softmax written from the equations."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.testing import dense_mask

torch = pytest.importorskip("torch")

B, H, N, D = 2, 3, 9, 4


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def dense(q, k, v, mask, sink=None):
    """Softmax attention and its log-sum-exp, with one more column for the sink; rows without anything give 0 and -inf."""
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    if sink is not None:
        scores = torch.cat([scores, sink[:, None, None].expand(*scores.shape[:3], 1)], -1)
    dead = (scores == -torch.inf).all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(dead, 0), -1).masked_fill(dead, 0)
    lse = torch.logsumexp(scores.masked_fill(dead, 0), -1).masked_fill(dead[..., 0], -torch.inf)
    return weights[..., : v.shape[2]] @ v, lse


def finite(lse):
    return lse.masked_fill(lse == -torch.inf, 0)


def same(got, wanted, tolerance=1e-12):
    for mine, ref in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, ref, rtol=tolerance, atol=tolerance)


# merge


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 1000), st.booleans())
def test_parts_merge_to_the_whole(parts, seed, poisoned):
    """Each key goes to one part or to none, so that some rows are empty in some parts and in all."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(-3, parts, (B, H, N, N), generator=generator)
    q, k, v = (normal(seed + i, B, H, N, D) for i in range(3))
    upstream = normal(seed + 3, B, H, N, D), normal(seed + 4, B, H, N)

    def outcome(run):
        tensors = leaves(q, k, v)
        out, lse = run(*tensors)
        grads = torch.autograd.grad((out * upstream[0]).sum() + (finite(lse) * upstream[1]).sum(), tensors)
        return out, lse, *grads

    def merged(q, k, v):
        found = [dense(q, k, v, owner == part) for part in range(parts)]
        if poisoned:  # what others put into rows without keys
            found = [(out.masked_fill((lse == -torch.inf)[..., None], torch.nan), lse) for out, lse in found]
        return pc.merge(*zip(*found, strict=True))

    same(outcome(merged), outcome(lambda q, k, v: dense(q, k, v, owner >= 0)))


def test_gradients_of_a_merge_by_differences():
    outs, lses = [normal(i, 1, 2, 3, 2) for i in range(3)], [normal(3 + i, 1, 2, 3) for i in range(3)]
    assert torch.autograd.gradcheck(lambda *t: pc.merge(t[:3], t[3:]), leaves(*outs, *lses))


@pytest.mark.parametrize("poison", [0.0, torch.nan])
def test_rows_without_keys_have_no_gradient(poison):
    """The lses are leaves here, so that nothing after the merge hides a NaN."""
    outs, lses = [normal(i, 1, 1, 3, 2) for i in range(2)], [normal(2 + i, 1, 1, 3) for i in range(2)]
    for part, row in ((0, 0), (1, 0), (1, 2)):
        lses[part][0, 0, row], outs[part][0, 0, row] = -torch.inf, poison
    tensors = leaves(*outs, *lses)
    out, lse = pc.merge(tensors[:2], tensors[2:])
    assert out[0, 0, 0].tolist() == [0, 0]
    assert lse[0, 0, 0] == -torch.inf
    same([out[0, 0, 2], lse[0, 0, 2]], [outs[0][0, 0, 2], lses[0][0, 0, 2]])
    grads = torch.autograd.grad(out.sum() + finite(lse).sum(), tensors)
    assert all(bool(g.isfinite().all()) for g in grads)
    assert all(bool((g[0, 0, row] == 0).all()) for part, row in ((0, 0), (1, 0), (1, 2)) for g in grads[part::2])


def test_compiled_patterns_merge():
    q, k, v = (normal(i, B, H, N, D) for i in range(3))
    texts = ["causal & window(3)", "causal - window(3)"]
    found = [pc.attention(q, k, v, text, return_lse=True) for text in texts]
    same(pc.merge(*zip(*found, strict=True)), pc.attention(q, k, v, "causal", return_lse=True))


def test_far_apart_and_narrow():
    out = torch.stack([torch.full((1, 1, 2, 3), 1.0), torch.full((1, 1, 2, 3), 2.0)]).bfloat16()
    lses = [torch.tensor([[[1e4, -1e4]]]), torch.tensor([[[-1e4, 1e4]]])]
    merged, lse = pc.merge(list(out), lses)
    assert (merged.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert merged[0, 0, :, 0].tolist() == [1.0, 2.0]
    assert lse.tolist() == [[[1e4, 1e4]]]


# gated


def test_gates_weigh_branches():
    names = ["compressed", "selected", "window"]
    outs = {name: normal(i, B, H, N, D) for i, name in enumerate(names)}
    gates = {name: torch.sigmoid(normal(5 + i, B, H, N)) for i, name in enumerate(names)}
    wanted = torch.zeros(B, H, N, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for t in range(N):
                for name in names:
                    wanted[b, h, t] += gates[name][b, h, t] * outs[name][b, h, t]
    same([pc.gated(outs, dict(reversed(gates.items())))], [wanted])
    tensors = leaves(*outs.values(), *gates.values())
    run = lambda *t: pc.gated(dict(zip(names, t[:3], strict=True)), dict(zip(names, t[3:], strict=True)))  # noqa: E731
    assert torch.autograd.gradcheck(run, [t[:1, :1, :3].detach().requires_grad_() for t in tensors])


def test_a_branch_without_keys_counts_as_nothing():
    poisoned = normal(0, 1, 1, 2, 3)
    poisoned[0, 0, 0] = torch.nan
    lse = torch.tensor([[[-torch.inf, 0.5]]])
    outs, gates = {"a": poisoned, "b": normal(1, 1, 1, 2, 3)}, {"a": normal(2, 1, 1, 2), "b": normal(3, 1, 1, 2)}
    tensors = leaves(*outs.values(), *gates.values())
    found = pc.gated(dict(zip("ab", tensors[:2], strict=True)), dict(zip("ab", tensors[2:], strict=True)), {"a": lse})
    same([found[0, 0, 0]], [gates["b"][0, 0, 0] * outs["b"][0, 0, 0]])
    grads = torch.autograd.grad(found.sum(), tensors)
    assert all(bool(g.isfinite().all()) for g in grads)
    assert grads[0][0, 0, 0].tolist() == [0, 0, 0]
    assert grads[2][0, 0, 0] == 0


# Sinks


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("text", ["causal", "causal - self", "none", "window(2)", "heads(causal + none)"])
@pytest.mark.parametrize("sinks", [[0.3, -2.0, 5.0], [-torch.inf, 0.0, 1e4]], ids=["finite", "none and huge"])
def test_a_sink_is_one_more_column(backend, text, sinks):
    q, k, v = (normal(i, B, H, N, D) for i in range(3))
    sink = torch.tensor(sinks, dtype=torch.float64)
    mask = dense_mask(text, H, N, N)[0]
    upstream = normal(7, B, H, N, D), normal(8, B, H, N)

    def outcome(run):
        tensors = leaves(q, k, v, sink)
        out, lse = run(*tensors)
        return out, lse, *torch.autograd.grad((out * upstream[0]).sum() + (finite(lse) * upstream[1]).sum(), tensors)

    attention = pc.compile(text, backend=backend)
    got = outcome(lambda q, k, v, s: attention(q, k, v, return_lse=True, sink_logit=s))
    wanted = outcome(lambda q, k, v, s: dense(q, k, v, mask, s))
    same(got, wanted, 1e-10)
    assert torch.equal(pc.attention(q, k, v, text, backend=backend, sink_logit=sink), got[0])
    assert bool(got[0][:, ~mask.any(-1)].eq(0).all())


def test_gradients_of_a_sink_by_differences():
    tensors = leaves(normal(0, 1, 2, 3, 2), normal(1, 1, 2, 3), normal(2, 2))
    assert torch.autograd.gradcheck(pc.with_sink, tensors)


def test_sinks_are_those_of_gpt_oss():
    modeling = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss", reason="transformers is not installed")

    class Module(torch.nn.Module):
        num_key_value_groups = 2
        sinks = torch.tensor([0.5, -1.0, 3.0, 0.0], dtype=torch.float64)

    q, k, v = normal(0, B, 4, N, D), normal(1, B, 2, N, D), normal(2, B, 2, N, D)
    mask = torch.zeros(N, N, dtype=torch.float64).masked_fill(~dense_mask("causal & window(4)", 1, N, N)[0, 0], -torch.inf)
    theirs, _ = modeling.eager_attention_forward(Module().eval(), q, k, v, mask, scaling=0.4)
    ours = pc.attention(q, k, v, "causal & window(4)", scale=0.4, sink_logit=Module.sinks)
    same([ours], [theirs.transpose(1, 2)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_outputs_with_a_wide_sink(dtype):
    q, k, v = (normal(i, B, H, N, D, dtype=dtype) for i in range(3))
    sink = torch.tensor([0.5, 1.0, -1.0], requires_grad=True)
    out, lse = pc.attention(q, k, v, "causal", return_lse=True, sink_logit=sink)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    wanted, total = dense(q.double(), k.double(), v.double(), dense_mask("causal", H, N, N)[0], sink.double())
    assert (out - wanted).abs().max() < 8 * torch.finfo(dtype).eps
    assert (lse - total).abs().max() < 1e-5
    out.sum().backward()
    assert sink.grad is not None
    assert sink.grad.dtype == torch.float32


def test_torch_compile_sees_no_break():
    """Attention, sink, merge and gates in one graph."""

    attend_near, attend_far = pc.compile("causal & window(3)"), pc.compile("causal - window(3)")

    def run(q, k, v, sink, gate):
        near = attend_near(q, k, v, return_lse=True)
        far = attend_far(q, k, v, return_lse=True, sink_logit=sink)
        out, lse = pc.merge(*zip(near, far, strict=True))
        return pc.gated({"a": out, "b": near[0]}, {"a": gate, "b": 1 - gate}), lse

    tensors = [*(normal(i, B, H, N, D, dtype=torch.float32) for i in range(3)), torch.randn(H), torch.rand(B, H, N)]

    def outcome(run):
        mine = leaves(*tensors)
        out, lse = run(*mine)
        return out, lse, *torch.autograd.grad(out.sum() + lse.sum(), mine)

    same(outcome(torch.compile(run, fullgraph=True, backend="aot_eager")), outcome(run), 1e-5)


# What does not fit

OUT, LSE = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pc.merge([], []), ValueError, "at least one"),
        (lambda: pc.merge([OUT], [LSE, LSE]), ValueError, "one lse for each output"),
        (lambda: pc.merge([OUT, OUT[:, :1]], [LSE, LSE]), ValueError, r"outputs\[1\] has shape"),
        (lambda: pc.merge([OUT, OUT.double()], [LSE, LSE]), TypeError, r"outputs\[1\] is torch.float64"),
        (lambda: pc.merge([OUT], [LSE[..., :2]]), ValueError, r"lses\[0\] must have shape"),
        (lambda: pc.merge([OUT], [LSE.int()]), TypeError, "floating point"),
        (lambda: pc.merge([LSE], [LSE]), ValueError, "batch, heads, queries"),
        (lambda: pc.gated({}, {}), ValueError, "at least one branch"),
        (lambda: pc.gated({"window": OUT}, {"windw": LSE}), ValueError, "did you mean 'window'"),
        (lambda: pc.gated({"a": OUT, "b": OUT}, {"a": LSE}), ValueError, "'b' has no gate"),
        (lambda: pc.gated({"a": OUT}, {"a": LSE[:, :1]}), ValueError, r"gates\['a'\] must have shape"),
        (lambda: pc.with_sink(OUT, LSE, torch.zeros(3)), ValueError, r"shape \(2,\)"),
        (lambda: pc.with_sink(OUT, LSE, torch.zeros(2, device="meta")), ValueError, "one device"),
        (lambda: pc.attention(OUT, OUT, OUT, "causal", sink_logit=torch.zeros(2, 1)), ValueError, "one logit for each head"),
        (lambda: pc.attention(OUT, OUT, OUT, "causal", sink_logit=0.5), TypeError, "must be a tensor"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()
