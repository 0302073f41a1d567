"""The Gluon backend's kernel for latent attention, run by `gluon_interpreter`, against dense attention in float64."""

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

import gluon_interpreter  # noqa: E402 - needs triton

import patternc as pc  # noqa: E402
from patternc.backend import Request, backend_named  # noqa: E402
from patternc.backends.gluon_latent import fits_latent  # noqa: E402
from patternc.runtime.compile import plan_for  # noqa: E402
from patternc.runtime.loader import load  # noqa: E402

HEAD_DIM, VALUE_DIM = 576, 512
SCALE = HEAD_DIM**-0.5


def loaded(text, change=lambda source: source):
    request = Request("cuda", "bfloat16", 64, 64, 0, 9)  # at its own dims, passes before it would be refused
    return load(change(backend_named("gluon").emit(plan_for(pc.parse(text), None, "gluon", request))))


def example(n, n_q, heads, kv_heads=1, batch=1, lists=1, **scores):
    """Queries, latent keys, and scores of ``lists`` batches, one for each or one for all, and of each group of heads."""
    generator = torch.Generator().manual_seed(n)
    q = torch.randn(batch, heads, n_q, HEAD_DIM, generator=generator)
    k = torch.randn(batch, kv_heads, n, HEAD_DIM, generator=generator)
    return q, k, {name: torch.randn(lists, of, n_q, n, generator=generator) for name, of in scores.items()}


def forward(module, q, k, inputs):
    """Output and log-sum-exp, and the names of the kernels that are run."""
    wide = {"fits_latent": lambda members, q, k, v, blocks: members >= 64}  # of numbers of any size
    with gluon_interpreter.launched(module, **wide) as kernels:
        return *module.forward(q, k, k[..., :VALUE_DIM], {}, module.selections(q, k, inputs), SCALE), kernels


def dense(text, q, k, inputs):
    """The same from the equation, in float64."""
    (batch, heads, n_q, _), (_, kv_heads, n, _) = q.shape, k.shape
    pattern, sharing = pc.parse(text), heads // kv_heads
    mask = torch.zeros(batch, heads, n_q, n, dtype=torch.bool)
    known = {}
    for b in range(batch):
        for h in range(heads):
            own = {name: (b % len(t), h * t.shape[1] // heads) for name, t in inputs.items()}
            key = (h % pattern.heads, *own.values())
            if key not in known:
                rows = {name: torch.nn.functional.pad(t[own[name]], (0, 0, n - n_q, 0)).numpy() for name, t in inputs.items()}
                known[key] = torch.from_numpy(pattern.mask(n, h, **rows)[n - n_q :])
            mask[b, h] = known[key]
    q, k = q.double(), k.double().repeat_interleave(sharing, 1)
    scores = (q @ k.transpose(-1, -2) * SCALE).masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, -1).nan_to_num(0.0) @ k[..., :VALUE_DIM], torch.logsumexp(scores, -1)


def check(text, q, k, inputs, wanted=None, change=lambda source: source):
    out, lse, kernels = forward(loaded(text, change), q, k, inputs)
    wanted = wanted or dense(text, q, k, inputs)
    torch.testing.assert_close(out.double(), wanted[0], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(lse.double(), wanted[1], atol=2e-5, rtol=2e-5)
    return kernels


ONE_LIST = "causal & topk(s, 300)"  # up to five tiles of 64 keys


@pytest.mark.parametrize(
    "shape",
    [
        {"n": 290, "n_q": 3, "heads": 64},
        {"n": 300, "n_q": 2, "heads": 130, "batch": 2, "lists": 2},
        {"n": 70, "n_q": 4, "heads": 72, "batch": 2},
        {"n": 40, "n_q": 40, "heads": 64},
        {"n": 1, "n_q": 1, "heads": 128},
    ],
    ids=str,
)
def test_one_list(shape):
    assert check(ONE_LIST, *example(**{"s": 1, **shape})) == ["latent_g0"]


def test_a_list_for_each_key_head():
    q, k, inputs = example(150, 2, 130, kv_heads=2, batch=2, lists=2, s=2)
    check("causal & topk(s, 90, share=group)", q, k, inputs, dense("causal & topk(s, 90)", q, k, inputs))


def test_queries_without_keys():
    q, k, inputs = example(150, 5, 66, batch=2, lists=2, s=1)
    inputs["s"][:, :, ::2] = -torch.inf
    inputs["s"][1, :, :2] = -torch.inf
    inputs["s"][0, :, 1, 60:] = -torch.inf  # and one whose second consumer has none
    check(ONE_LIST, q, k, inputs)


def test_keys_that_are_not_listed_are_not_read():
    q, k, inputs = example(90, 2, 64, s=1)
    inputs["s"][..., 0] = -torch.inf
    wanted = dense(ONE_LIST, q, k, inputs)
    k[:, :, 0] = torch.nan
    check(ONE_LIST, q, k, inputs, wanted)


@pytest.mark.parametrize("scale", [0.0, -0.1])
def test_scales(scale, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SCALE", scale)
    check(ONE_LIST, *example(140, 2, 64, s=1))


def test_several_patterns_of_heads():
    text = "heads((causal & topk(s, 70)) + (causal & topk(t, 140)) + (causal & topk(s, 70)))"
    kernels = check(text, *example(200, 2, 192, s=1, t=1))
    assert kernels == ["latent_g0", "latent_g0", "latent_g1"]


@pytest.mark.parametrize("text", ["causal & (window(60) | topk(s, 150))", "where(q % 2 == 0) & window(3) | topk(s, 70)"])
def test_after_other_passes(text):
    """The second has no keys for some queries, the first none for the others."""
    q, k, inputs = example(200, 5, 72, batch=2, s=1)
    inputs["s"][:, :, 3:] = -torch.inf
    assert check(text, q, k, inputs)[-1].startswith("latent_g")


def test_what_it_is_for():
    """Heads that share a list fill a tile, and values are the first dims of the keys; else, the Triton kernel does it."""
    q, k, _ = example(3, 2, 64)
    q, k, blocks = q.bfloat16(), k.bfloat16(), (HEAD_DIM, VALUE_DIM, 1024, 512)
    assert fits_latent(64, q, k, k[..., :VALUE_DIM], blocks)
    assert not fits_latent(63, q, k, k[..., :VALUE_DIM], blocks)
    assert not fits_latent(64, q.float(), k, k[..., :VALUE_DIM], blocks)
    assert not fits_latent(64, q, k, k[..., :VALUE_DIM].clone(), blocks)
    assert not fits_latent(64, q, k, k[..., 64:], blocks)
    assert not fits_latent(64, q[..., :320], k[..., :320], k[..., :256], (320, 256, 512, 256))
    for text in ("causal & topk(s, 9, block=8)", "causal & (topk(s, 9) | topk(t, 9))", "causal"):
        assert "latent" not in backend_named("gluon").emit(plan_for(pc.parse(text), None, "gluon"))
    assert "latent" not in backend_named("triton").emit(plan_for(pc.parse(ONE_LIST)))


WRONG = {
    "keys are not waited for": (r"mbarrier.wait\(k_full.*", "pass"),
    "places are not waited for": (r"mbarrier.wait\(k_empty.*", "pass"),
    "peaks are not waited for": (r"mbarrier.wait\(peak_full.*", "pass"),
    "the first weights are not waited for": (r"mbarrier.wait\(weights_full.index\(0\).*", "pass"),
    "the second weights are not waited for": (r"mbarrier.wait\(weights_full.index\(1\).*", "pass"),
    "totals are not waited for": (r"mbarrier.wait\(total_full.*", "pass"),
    "places are given back early": (r"acc = warpgroup_mma_wait\(1, deps=\[acc\]\)", "pass"),
    "the other slot's keys": (r"k_s.index\(SLOT \+ none\)", "k_s.index(OTHER + none)"),
    "the first slot's weights twice": (r"rest_s.index\(1 \+ none\)", "rest_s.index(none)"),
    "the wrong half": (r"values = k_s.index\(none\).slice\(SLOT \* HALF", "values = k_s.index(none).slice(OTHER * HALF"),
    "a wrong phase": (r"phase = turn & 1", "phase = turn & 0"),
    "one total": (r"total = total \+ shown_s.*", "pass"),
    "the last list entry counts on": (r"place < count", "place < count + 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_noticed(name):
    def wrong(change):
        check("causal & topk(s, 399)", *example(400, 2, 72, s=1), change=change)

    gluon_interpreter.assert_noticed(WRONG[name], wrong, PRODUCT=0.01, STORE=0.03)
