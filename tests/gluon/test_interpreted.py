"""The Gluon backend's forward kernels, run by `gluon_interpreter`, against dense attention in float64."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

import gluon_interpreter  # noqa: E402 - needs triton

import patternc as pc  # noqa: E402
from patternc.backend import Request, backend_named  # noqa: E402
from patternc.lower.phases import lower  # noqa: E402
from patternc.lower.plan import Tile  # noqa: E402
from patternc.runtime.compile import complete, serving  # noqa: E402
from patternc.runtime.loader import load  # noqa: E402
from patternc.testing import dense_mask, patterns, random_call  # noqa: E402

REQUEST = Request("cuda", "bfloat16", 16, 16, 0, 9)
TILES = [Tile(64, 64), Tile(128, 128), Tile(128, 64)]


def merged(out, lse):
    """What `merge_kernel` does, from the equation."""
    weights = torch.exp(lse - lse.amax(0).nan_to_num(neginf=0.0))
    total = weights.sum(0)
    mixed = (weights[..., None] * out).sum(0) / torch.where(total == 0, 1, total)[..., None]
    return mixed, torch.logsumexp(lse, 0)


def forward(text, call, tile, processors=3, scale=0.25, change=lambda source: source):
    """Output and log-sum-exp by emitted kernels in one tile shape, on a GPU of a few processors."""
    pattern = pc.parse(text)
    plan = complete(lower(pattern, tile, None, views=True, splits=True), pattern, None, "gluon", REQUEST)
    module = load(change(backend_named("gluon").emit(plan)))
    kinds = {name: kind for name, kind, _ in module.INPUTS}
    inputs = {name: t for name, t in call.inputs.items() if kinds[name] != "scores"}
    with gluon_interpreter.launched(module, processors=lambda device: processors, merged=merged):
        return module.forward(call.q, call.k, call.v, inputs, [], scale)


def check(text, tile, scale=0.25, processors=3, change=lambda source: source, **shape):
    call = random_call(text, dtype="float32", **shape)
    out, lse = forward(text, call, tile, processors, scale, change)
    batch, heads, n_q, _ = call.q.shape
    mask = dense_mask(pc.parse(text), heads, n_q, call.k.shape[2], batch=batch, **call.inputs)
    q, k, v = (t.double() for t in (call.q, call.k, call.v))
    k, v = (t.repeat_interleave(heads // k.shape[1], 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    wanted = torch.softmax(scores, -1).nan_to_num(0.0) @ v
    torch.testing.assert_close(out.double(), wanted, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(lse.double(), torch.logsumexp(scores, -1), atol=2e-5, rtol=2e-5)


CASES = [
    ("causal", {"n": 300, "heads": 2}),
    ("causal & window(70)", {"n": 290, "n_q": 200, "heads": 4, "kv_heads": 2, "batch": 2}),
    ("causal & (window(20) | stride(9))", {"n": 290, "n_q": 200, "heads": 2}),
    ("causal & (chunk(32) | summary(32, 4))", {"n": 200, "heads": 2}),
    ("local(40) | global([0, -1]) | stride(50)", {"n": 507, "n_q": 333, "heads": 2, "kv_heads": 1}),
    ("where(q % 32 == 0) | local(8)", {"n": 200}),
    ("heads(2 * causal + stride(5) + none)", {"n": 70, "heads": 4, "kv_heads": 2}),
    ("blocks(64, 1, 1) | random(2, block=64)", {"n": 500, "n_q": 450, "heads": 2}),
    ("causal & document(ids)", {"n": 250, "n_q": 240, "heads": 2}),
    ("causal & layout(t, 64) | window(3)", {"n": 300, "n_q": 190, "heads": 2, "kv_heads": 1}),
    ("columns([700])", {"n": 90}),
    ("where(q % 700 < 70 and k <= q)", {"n": 700, "heads": 2}),
    ("causal & window(300)", {"n": 1300}),
    ("causal", {"n": 1}),
]


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("text", "shape"), CASES, ids=str)
def test_against_dense(text, shape, tile):
    check(text, tile, head_dim=16, **shape)


@pytest.mark.parametrize("dims", [(16, 32), (24, 24), (64, 16)], ids=str)
def test_head_dims(dims):
    for text in ("causal & window(70)", "causal & (window(20) | stride(9))"):
        check(text, Tile(64, 64), n=100, head_dim=dims[0], value_dim=dims[1])


@pytest.mark.parametrize("scale", [1.0, 0.0, -0.2])
def test_scales(scale):
    check("causal & (window(20) | stride(9))", Tile(64, 64), n=100, head_dim=16, scale=scale)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(
    text=patterns(3, choices=False, inputs=True),
    n=st.one_of(st.integers(1, 300), st.sampled_from([63, 64, 65, 127, 128, 129])),
    left_out=st.integers(0, 90),
    groups=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    dims=st.sampled_from([(16, 16), (16, 32), (24, 24)]),
    tile=st.sampled_from(TILES),
    processors=st.sampled_from([1, 3, 40]),
    seed=st.integers(0, 99),
)
def test_random_patterns(text, n, left_out, groups, dims, tile, processors, seed):
    try:
        if serving(pc.parse(text), None, REQUEST) != "gluon":
            return
        shape = {"n": n, "n_q": max(1, n - left_out), "heads": groups[0], "kv_heads": groups[1]}
        check(text, tile, processors=processors, head_dim=dims[0], value_dim=dims[1], seed=seed, **shape)
    except pc.PatternError as refused:
        assert refused.diagnostic.code == "too-complex"


WRONG = {
    "queries are not waited for": (r"mbarrier.wait\(q_full.*", "pass"),
    "keys are not waited for": (r"mbarrier.wait\(k_full.*", "pass"),
    "places of queries are not waited for": (r"mbarrier.wait\(q_empty.*", "pass"),
    "places of keys and values are not waited for": (r"mbarrier.wait\(empty.*", "pass"),
    "places of values are given back early": (r"acc = warpgroup_mma_wait\(0, deps=\[acc\]\)", "pass"),
    "rows without keys have no step": (r"if step == begun:", "if False:"),
    "the first product is that of the lap before": (r"first_scores\(lap \+ 1,", "first_scores(lap,"),
    "the first keys are taken for others": (r"\n( +)scores = first_scores\(lap \+ 1.*", r"\n\1step += 1\g<0>"),
    "nobody gives the turn away": (r"mbarrier.arrive\(turns.*", "pass"),
    "some work is left out": (r"whole \+ \(", "whole + 0 * ("),
}


SHOWN_BY = {
    "places of queries are not waited for": "self",  # or keys hold the copies back
    "rows without keys have no step": "window(100) & where(k < 128)",
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_noticed(name):
    def wrong(change):
        check(SHOWN_BY.get(name, "causal & window(600)"), Tile(128, 128), change=change, n=1250, heads=2, head_dim=16)

    gluon_interpreter.assert_noticed(WRONG[name], wrong, chances=5, PRODUCT=0.004, STORE=0.004, ENGINE=0.02)
