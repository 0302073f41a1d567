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
    assert_matches_dense(text, call.q, call.k, call.v, backend="triton", grads=of_s != of_t, s=s, t=t)


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


@pytest.mark.parametrize(
    "text",
    [
        "causal & (random(3) | topk(scores, 8, share=query))",
        "causal & document(ids) & (random(3, block=4) | topk(scores, 4, block=8, share=group))",
        "causal & (layout(table, 16) | topk(scores, 8, share=group))",
        "(causal & layout(table, 2)) | topk(block_scores3, 4, block=3, share=query, force=sinks(2))",
    ],
)
def test_lists_beside_what_differs_between_heads(text):
    """Scores may be shared, but what other terms hold may not be: each head then lists what is left for it."""
    check(text, n=65, n_q=60, heads=4, kv_heads=2, head_dim=16)


def padded(scores, n):
    return torch.nn.functional.pad(scores, (0, 0, n - len(scores), 0)).numpy()


def grouped(text, call):
    """Checks a call; how many heads share a list, for each launch over the queries that list a block."""
    module = operator.module_of(text, 0, "triton", call.q, call.v)
    real, seen = module.by_block, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "by_block", lambda *given: seen.append(given[2]) or real(*given))
        assert_matches_dense(text, call.q, call.k, call.v, backend="triton", grads=True, **call.inputs)
    return seen


LONG = [
    ("causal & topk(s, 2, block=128)", {"n": 300}),
    ("topk(s, 2, block=200) | sinks(3)", {"n": 230, "n_q": 80, "heads": 2}),
    (
        "causal & document(ids) & topk(s, 2, block=128)",
        {"n": 270, "n_q": 40, "batch": 2, "heads": 2, "kv_heads": 1, "head_dim": 48, "value_dim": 16, "dtype": "float16"},
    ),
    ("causal & topk(meanpool(128), 2, block=128, force=chunk(128))", {"n": 300, "n_q": 100, "heads": 2, "dtype": "float16"}),
    ("causal & ~window(150) & topk(scores, 2, block=128, share=group)", {"n": 290, "n_q": 180, "heads": 2, "kv_heads": 1}),
    (
        "heads((causal & topk(s, 1, block=128)) + causal + (causal & (window(9) | topk(t, 1, block=128))))",
        {"n": 260, "n_q": 70, "heads": 4, "kv_heads": 2, "head_dim": 48, "value_dim": 16},
    ),
]


@pytest.mark.parametrize(("text", "shape"), LONG, ids=[text for text, _ in LONG])
def test_queries_by_block(text, shape):
    call = random_call(text, **shape)
    module = operator.module_of(text, 0, "triton", call.q, call.v)
    slots = sum(lists.shape[3] for lists in module.selections(call.q, call.k, call.inputs))
    assert grouped(text, call) == [2 if "group" in text else 1] * 2 * slots  # for the output and for the gradient of q


@pytest.mark.parametrize(("kv_heads", "of", "members"), [(2, 4, 1), (2, 2, 2), (2, 1, 2), (1, 1, 4)])
def test_queries_by_block_of_some_heads(kv_heads, of, members):
    """A list for each head, or for some or all; heads that lie in memory beside each other."""
    text = "causal & topk(s, 2, block=128)"
    call = random_call(text, n=270, n_q=40, batch=2, heads=4, kv_heads=kv_heads)
    apart = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (call.q, call.k, call.v)]
    scores = {"s": call.inputs["s"][: 2 if of > 1 else 1, :of]}
    assert grouped(text, type(call)(*apart, scores)) == [members] * 4


def test_which_lists_bring_queries_together():
    """Those of blocks that are long enough, which fewer heads share than a tile has rows."""
    for text, heads, members in (
        ("causal & topk(scores, 1, block=128, share=group)", 15, [15] * 2),
        ("causal & topk(scores, 1, block=128, share=group)", 16, []),
        ("causal & topk(scores, 1, block=127, share=group)", 2, []),
        ("causal & (topk(s, 2, block=128) | topk(t, 1, block=128))", 2, []),
    ):
        assert grouped(text, random_call(text, n=260, n_q=3, heads=heads, kv_heads=1)) == members, (text, heads)


def test_wide_heads_by_block():
    """Head dims in two parts, and values that are dims of the keys."""
    text = "causal & topk(s, 2, block=128)"
    call = random_call(text, n=260, n_q=20, heads=2, kv_heads=1, head_dim=576)
    assert grouped(text, type(call)(call.q, call.k, call.k[..., :512], call.inputs)) == [1] * 4


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
