"""Passes over the lists of selections, in Triton's interpreter, against dense attention under the mask."""

import pytest

import patternc as pc
from patternc.testing import assert_matches_dense, random_call

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from patternc.runtime import operator  # noqa: E402 - needs torch
from patternc.runtime.compile import plan_for  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log2:RuntimeWarning")


def check(text, grads=True, **shape):
    """Where `exact` scores are added up over heads, head_dim must be a power of four, so that the scale rounds nothing."""
    call = random_call(text, **shape)
    assert_matches_dense(text, call.q, call.k, call.v, backend="triton", grads=grads, **call.inputs)


LISTS = [
    "causal & topk(scores, 9)",
    "causal & topk(exact, 9, share=group)",
    "topk(exact, 9, share=query) | window(5)",
    "causal & topk(scores, 2, block=20, share=group)",
    "causal & topk(meanpool(16), 3, block=16, share=group, force=blocks(16, 1, 0))",
    "causal & (window(20) | topk(meanpool(16), 2, block=16, force=sinks(16)))",
    "causal & document(ids) & topk(meanpool(8), 3, block=8, share=query)",
    "causal & topk(compressed(8, 4), 3, block=8, share=group)",
    "topk(s, 2, block=16) & causal | topk(t, 3)",
    "random(20) & topk(s, 6) & causal",
    "heads((causal & (window(3) | topk(exact, 5, share=group))) + causal)",
]


@pytest.mark.parametrize("text", LISTS)
@pytest.mark.parametrize(
    "shape",
    [
        {"n": 37, "heads": 2, "kv_heads": 1},
        {"n": 35, "n_q": 17, "batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 64, "value_dim": 40, "dtype": "float16"},
    ],
    ids=["", "ragged"],
)
def test_lists(text, shape):
    check(text, **shape)


@pytest.mark.parametrize("of_t", [1, 2, 4])
@pytest.mark.parametrize("of_s", [1, 2, 4])
def test_lists_of_some_heads(of_s, of_t):
    """Two lists, each for all heads, for a group of them, or for one head."""
    call = random_call("causal", n=40, n_q=11, batch=2, heads=4, kv_heads=2, head_dim=16)
    generator = torch.Generator().manual_seed(of_s + 4 * of_t)
    s, t = (torch.randint(0, 9, (2, of, 11, 40), generator=generator).float() for of in (of_s, of_t))
    text = "causal & (topk(s, 2, block=8) | topk(t, 1, block=8))"
    assert_matches_dense(text, call.q, call.k, call.v, backend="triton", grads=True, s=s, t=t)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    "text", ["causal & topk(exact, 7, share=group)", "causal & (window(4) | topk(scores, 5, share=query))"]
)
def test_gradients_of_listed_keys(text, deterministic):
    """Many heads share a list: their gradients of keys are added up, or gathered from an inverted list."""
    torch.use_deterministic_algorithms(deterministic)
    try:
        check(text, n=29, n_q=13, batch=2, heads=36, kv_heads=2, head_dim=16)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("head_dim", [16, 48, 80, 96, 576])
def test_head_dims_in_two_parts(head_dim):
    check("causal & (window(3) | topk(scores, 6, share=group))", n=30, n_q=9, heads=4, kv_heads=1, head_dim=min(head_dim, 256))
    check("causal & topk(scores, 6, share=group)", n=30, n_q=9, heads=18, kv_heads=1, head_dim=head_dim, value_dim=32)


@pytest.mark.parametrize("deterministic", [False, True])
def test_values_that_are_dims_of_the_keys(deterministic):
    """Multi-head latent attention: one tensor holds keys (576 dims) and values (the first 512), whose gradients add up."""
    call = random_call("causal & topk(s, 12)", n=50, n_q=9, heads=20, kv_heads=1, head_dim=576)
    scores = call.inputs["s"][:, :1]
    latent = call.k.clone().requires_grad_()
    module = operator.module_of("causal & topk(s, 12)", 0, "triton", call.q, latent[..., :512])
    seen = []
    real = module.picked_setting
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "picked_setting", lambda *given: seen.append(given) or real(*given))
        torch.use_deterministic_algorithms(deterministic)
        try:
            out = pc.compile("causal & topk(s, 12)", backend="triton")(call.q, latent, latent[..., :512], s=scores)
            assert seen[0][-1] is True  # a tile of keys is one of values too
            grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
            (found,) = torch.autograd.grad(out, latent, grad)
        finally:
            torch.use_deterministic_algorithms(False)
    wide = call.k.double().requires_grad_()
    mask = torch.from_numpy(pc.parse("causal & topk(s, 12)").mask(50, 0, s=padded(scores[0, 0], 50))[-9:])
    weights = (call.q.double() @ wide.transpose(-1, -2) * 576**-0.5).masked_fill(~mask, -torch.inf).softmax(-1)
    dense = weights @ wide[..., :512]
    torch.testing.assert_close(out.double(), dense, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.double(), torch.autograd.grad(dense, wide, grad.double())[0], atol=1e-4, rtol=1e-4)


def padded(scores, n):
    return torch.nn.functional.pad(scores, (0, 0, n - len(scores), 0)).numpy()


def test_blocks_are_listed_whole():
    """A list has blocks where the kernel can tell which of their keys to read, and those of single keys otherwise."""
    units = {
        "causal & topk(s, 4, block=64)": 64,
        "causal & document(ids) & topk(s, 4, block=64)": 64,
        "causal & topk(s, 4, block=64) | topk(t, 3)": 1,
        "causal & layout(table, 8) & topk(s, 4, block=64)": 1,
        "causal & random(9) & topk(s, 4, block=64)": 1,
        "causal & topk(s, 4)": 1,
    }
    for text, unit in units.items():
        phases = [phase for group in plan_for(pc.parse(text)).heads if group.picked for phase in group.phases]
        assert {phase.unit for phase in phases} == {unit}, text
    module = operator.module_of("causal & topk(s, 4, block=64)", 0, "triton", *[torch.zeros(1, 1, 300, 16)] * 2)
    lists = module.selections(*[torch.zeros(1, 1, 300, 16)] * 2, {"s": torch.zeros(1, 1, 300, 300)})
    assert lists[0].shape == (1, 1, 300, 4)
    assert lists[0][0, 0, 299].tolist() == [0, 1, 2, 3]
    assert lists[0][0, 0, 70].tolist() == [0, 1, -1, -1]
