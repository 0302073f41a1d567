"""Attention with branches: a softmax for each, summed with gates, against the equation in dense torch."""

import pytest

import patternc as pc

torch = pytest.importorskip("torch")
from patternc.compression import at_ends  # noqa: E402 - needs torch

TEXT = "causal & gated(far=stride(4), near=window(3), chosen=topk(s, 5))"


def tensors(n=23, n_q=17, heads=4, kv_heads=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (heads, n_q), (kv_heads, n), (kv_heads, n)
    q, k, v = (torch.randn(2, h, m, 16, generator=generator, dtype=dtype).requires_grad_() for h, m in sizes)
    scores = torch.randn(2, heads, n_q, n, generator=generator)
    gates = {name: torch.rand(2, heads, n_q, generator=generator).requires_grad_() for name in pc.parse(TEXT).branches}
    return q, k, v, scores, gates


def dense(q, k, v, mask):
    """The equation, in float64; a query without keys gets 0."""
    q, k, v = (t.double() for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num(0) @ v


def masks(n, n_q, scores):
    held = {}
    for name in ("far", "near"):
        held[name] = torch.from_numpy(pc.parse(TEXT).branch(name).mask(n)[n - n_q :])
    best = scores.masked_fill(~torch.ones(n, n).tril().bool()[n - n_q :], -torch.inf).argsort(-1, descending=True)[..., :5]
    picked = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, value=True)
    held["chosen"] = picked & torch.ones(n, n).tril().bool()[n - n_q :]
    return held


@pytest.mark.parametrize("n_q", [23, 17, 1])
def test_the_sum_of_the_branches(n_q):
    q, k, v, scores, gates = tensors(n_q=n_q)
    out = pc.compile(TEXT)(q, k, v, gates=gates, s=scores)
    held = masks(23, n_q, scores)
    wanted = sum(gates[name].double()[..., None] * dense(q, k, v, held[name]) for name in gates)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
    leaves = (q, k, v, *gates.values())
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(wanted, leaves, grad.double()), strict=True
    ):
        torch.testing.assert_close(mine, theirs.to(mine.dtype), atol=1e-5, rtol=1e-5)


def test_branches_with_keys_of_their_own():
    """Native Sparse Attention: a compressed key stands where its block ends."""
    n, pattern = 100, pc.parse("nsa_with(32, 2, 20)")
    q, k, v, _, gates = tensors(n=n, n_q=n)
    gates = dict(zip(pattern.branches, gates.values(), strict=True))
    short_k, short_v = pc.compress(k, 32, 16), pc.compress(v, 32, 16)
    own = {"compressed": (at_ends(short_k, n, 32, 16), at_ends(short_v, n, 32, 16))}
    attend = pc.compile(pattern)
    out = attend(q, k, v, gates=gates, kv=own)
    compressed = dense(q, short_k, short_v, pc.compressed_mask(n, 32, 16))
    window = dense(q, k, v, torch.from_numpy(pattern.branch("window").mask(n)))
    selected = attend.branches["selected"](q, k, v)
    parts = {"compressed": compressed, "selected": selected, "window": window}
    wanted = sum(gates[name].double()[..., None] * parts[name] for name in parts)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)


ONE_PASS = (
    "causal & gated(compressed=where(k >= 31 and k % 16 == 15), window=window(20), "
    "selected=topk(compressed(32, 16, keys=short, lse=compressed_lse), 2, block=32, share=group))"
)


def test_a_branch_lends_its_log_sum_exp():
    """The importance of blocks from the log-sum-exp that the compressed branch leaves; or from one that is given."""
    n = 100
    q, k, v, _, gates = tensors(n=n, n_q=n)
    attend = pc.compile(ONE_PASS)
    gates = dict(zip(attend.branches, gates.values(), strict=True))
    short_k, short_v = pc.compress(k, 32, 16), pc.compress(v, 32, 16)
    own = {"compressed": (at_ends(short_k, n, 32, 16), at_ends(short_v, n, 32, 16))}
    _, lse = attend.branches["compressed"](q, *own["compressed"], return_lse=True)
    plain = pc.compile(ONE_PASS.replace(", lse=compressed_lse", ""))
    wanted = plain(q, k, v, gates=gates, kv=own, short=short_k)
    found = attend(q, k, v, gates=gates, kv=own, short=short_k)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(attend(q, k, v, gates=gates, kv=own, short=short_k, compressed_lse=lse), wanted)
    other = lse + 5.0 * torch.arange(q.shape[1])[:, None]
    assert not torch.allclose(attend(q, k, v, gates=gates, kv=own, short=short_k, compressed_lse=other), wanted)
    leaves = (q, k, v, *gates.values())
    grads = [torch.autograd.grad(out.sum(), leaves, retain_graph=True) for out in (found, wanted)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_lends_stands_first():
    turned = "causal & gated(s=topk(compressed(32, 16, lse=c_lse), 2, block=32), c=where(k >= 31 and k % 16 == 15))"
    with pytest.raises(ValueError, match="branch 's' takes the log-sum-exp of 'c', which must stand before it"):
        pc.compile(turned)
    alone = pc.compile("causal & gated(s=topk(compressed(32, 16, lse=left), 2, block=32), w=window(3))")
    q, k, v, *_ = tensors(n=100, n_q=100)
    with pytest.raises(ValueError, match="needs the runtime input 'left'"):
        alone(q, k, v, gates={"s": q[..., 0], "w": q[..., 0]})


def test_one_call_and_bound_inputs_and_low_precision():
    q, k, v, scores, gates = tensors()
    wanted = pc.compile(TEXT)(q, k, v, gates=gates, s=scores)
    torch.testing.assert_close(pc.attention(q, k, v, TEXT, gates=gates, s=scores), wanted)
    torch.testing.assert_close(pc.compile(TEXT, s=scores)(q, k, v, gates=gates), wanted)
    half = pc.compile(TEXT)(*(t.bfloat16() for t in (q, k, v)), gates=gates, s=scores)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), wanted, atol=3e-2, rtol=3e-2)


def test_layers_some_of_which_have_branches():
    q, k, v, _, gates = tensors()
    text = "layers(gated(far=stride(4), near=causal) + causal)"
    gates = {name: gates[name] for name in ("far", "near")}
    first, second = (pc.compile(text, layer=layer) for layer in (0, 1))
    wanted = sum(
        gates[name][..., None] * pc.attention(q, k, v, one) for name, one in (("far", "stride(4)"), ("near", "causal"))
    )
    torch.testing.assert_close(first(q, k, v, gates=gates), wanted)
    torch.testing.assert_close(second(q, k, v), pc.attention(q, k, v, "causal"))


def test_it_is_compiled_whole():
    q, k, v, scores, gates = tensors()
    attend = pc.compile(TEXT)
    traced = torch.compile(lambda *t: attend(*t[:3], gates=gates, s=t[3]), fullgraph=True)
    torch.testing.assert_close(traced(q, k, v, scores), attend(q, k, v, gates=gates, s=scores))


def test_wrong_calls():
    q, k, v, scores, gates = tensors()
    attend = pc.compile(TEXT)
    with pytest.raises(
        ValueError, match=r"every branch needs a gate: pass gates=\{'far': \.\.\., 'near': \.\.\., 'chosen': \.\.\.\}"
    ):
        attend(q, k, v, s=scores)
    with pytest.raises(ValueError, match="gates has 'fra', and there is no such branch; did you mean 'far'"):
        attend(q, k, v, gates={**gates, "fra": gates["far"]}, s=scores)
    with pytest.raises(ValueError, match="kv has 'wide', and there is no such branch; the branches are far, near, chosen"):
        attend(q, k, v, gates=gates, kv={"wide": (k, v)}, s=scores)
    with pytest.raises(ValueError, match=r"no log-sum-exp; call one of them, as in attend\.branches\['far'\]"):
        attend(q, k, v, gates=gates, s=scores, return_lse=True)
    with pytest.raises(ValueError, match="no sink"):
        attend(q, k, v, gates=gates, s=scores, sink_logit=torch.zeros(4))
    with pytest.raises(ValueError, match="the pattern needs the runtime input 's'"):
        attend(q, k, v, gates=gates)
    with pytest.raises(TypeError, match="no runtime input 'window'"):
        attend(q, k, v, gates=gates, s=scores, window=3)
    with pytest.raises(ValueError, match="'kv' is an argument of the call"):
        pc.compile("gated(a=causal & document(kv), b=full)")
    with pytest.raises(pc.PatternError, match="which-branch"):
        attend.plan  # noqa: B018
    with pytest.raises(TypeError, match="no runtime input 'gates'"):
        pc.attention(q, k, v, "causal", gates=gates)
