"""The kernels for gradients, run by `gluon_interpreter`, against dense attention in float64.

There is one for all of them, or one each for queries and for keys.
"""

import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

import gluon_interpreter  # noqa: E402 - needs triton

import patternc as pc  # noqa: E402
from patternc.backend import Request, backend_named  # noqa: E402
from patternc.lower import phases  # noqa: E402
from patternc.lower.phases import lower  # noqa: E402
from patternc.lower.plan import Tile  # noqa: E402
from patternc.runtime.compile import complete  # noqa: E402
from patternc.runtime.loader import load  # noqa: E402
from patternc.testing import dense_mask, patterns, random_call  # noqa: E402


def request(head_dim):
    return Request("cuda", "bfloat16", head_dim, head_dim, 0, 9)


REQUEST = request(128)
FOR = {64: REQUEST, 128: request(64)}
"""Requests by the queries of a tile of the kernel for all gradients."""


def planned(text, request=REQUEST):
    pattern = pc.parse(text)
    return complete(lower(pattern, Tile(64, 64), None, views=True, splits=True), pattern, None, "gluon", request)


def loaded(text, joint=64, change=lambda source: source):
    """The module of a pattern; with the kernel for all gradients however short its rows are, in tiles of so many queries.

    Or without; None if there is none for the pattern.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "JOINT_LENGTH", 0 if joint else 1e9)
        patch.setattr(phases, "JOINT_AREA", 1e9 if joint else 0)
        plan = planned(text, FOR.get(joint, REQUEST))
    assert not plan.joint or plan.joint_tile.columns == joint
    return load(change(backend_named("gluon").emit(plan))) if plan.joint or not joint else None


def gradients(module, call, out, lse, grad, grad_lse, scale):
    """The gradients, and the kernels that computed them; Triton's, but for what they leave to others, do not run."""

    def by_triton(name, given):
        if name.startswith("queries"):
            given["delta_ptr"].copy_((out * grad).sum(-1) - grad_lse)
            given["norm_ptr"].copy_(torch.where(torch.isinf(lse), torch.inf, lse * 1.4426950408889634))
        return name.startswith(("queries", "keys"))

    stand_ins = {
        "fits_keys": lambda blocks, whole: whole,
        "fits_queries": lambda blocks: True,
        "described": lambda *_: None,
        "joins": lambda blocks, whole, columns: whole,
    }
    stand_ins = {name: one for name, one in stand_ins.items() if hasattr(module, name)}
    with gluon_interpreter.launched(module, by_triton, **stand_ins) as kernels:
        found = module.backward(call.q, call.k, call.v, call.inputs, [], scale, out, lse, grad, grad_lse)
    return found, kernels


def _by_triton(kernels, what="keys"):
    """Whether some gradients of queries or of keys are left to kernels that do not run here."""
    return any(name.startswith(what) for name in kernels)


def check(text, scale=0.25, joint=64, change=lambda source: source, **shape):
    module = loaded(text, joint, change)
    if module is None:
        return None
    call = random_call(text, dtype="float32", **shape)
    heads = call.q.shape[1]
    mask = dense_mask(pc.parse(text), heads, call.q.shape[2], call.k.shape[2], batch=call.q.shape[0], **call.inputs)
    leaves = [t.double().requires_grad_() for t in (call.q, call.k, call.v)]
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in leaves[1:])
    scores = (leaves[0] @ k.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    weights = torch.where(mask, torch.exp(scores - lse.detach().nan_to_num(neginf=0.0)[..., None]), 0.0)
    total = weights.sum(-1, keepdim=True)
    out = weights / torch.where(total == 0, 1, total) @ v
    draw = torch.Generator().manual_seed(5)
    grad, grad_lse = torch.randn(out.shape, generator=draw), torch.randn(lse.shape, generator=draw)
    some = torch.where(torch.isfinite(lse), lse, 0.0)
    wanted = torch.autograd.grad((out * grad).sum() + (some * grad_lse).sum(), leaves)
    found, kernels = gradients(module, call, out.detach().float(), lse.detach().float(), grad, grad_lse, scale)
    assert kernels == ["norms_g0", "joint_g0", "scaled_kernel"] or not joint, kernels
    for name, one, other in zip("qkv", found, wanted, strict=True):
        if _by_triton(kernels, "queries" if name == "q" else "keys"):
            continue
        torch.testing.assert_close(one.double(), other, atol=3e-5, rtol=3e-5, msg=lambda said, of=name: f"d{of}: {said}")
    return kernels


CASES = [
    ("causal", {"n": 300, "heads": 2}),
    ("causal", {"n": 1}),
    ("causal & window(70)", {"n": 290, "heads": 4, "kv_heads": 2, "batch": 2}),
    ("local(40) | global([0, -1])", {"n": 307, "heads": 2, "kv_heads": 1}),
    ("causal & (window(20) | stride(9))", {"n": 290}),
    ("full", {"n": 130, "heads": 2}),
    ("full & document(ids)", {"n": 250, "heads": 2, "batch": 2}),
    ("causal & layout(t, 64) | window(3)", {"n": 300, "heads": 4, "kv_heads": 2}),
    ("blocks(64, 1, 1) | random(2, block=64)", {"n": 500, "heads": 2}),
    ("where(q % 32 == 0)", {"n": 200}),
    ("none", {"n": 70}),
]


@pytest.mark.parametrize("columns", FOR)
@pytest.mark.parametrize(("text", "shape"), CASES, ids=str)
def test_against_dense(text, shape, columns):
    assert check(text, joint=columns, head_dim=16, **shape)


APART = [
    *CASES,
    ("causal & stride(3)", {"n": 290, "heads": 2}),
    ("causal & window(40, dilation=4)", {"n": 500, "heads": 4, "kv_heads": 2}),
    ("where((q + k) % 3 == 0)", {"n": 150}),
    ("where(k <= q and (q - k) % 7 == 2)", {"n": 300, "heads": 2}),
    ("causal & (chunk(32) | summary(32, 4))", {"n": 700, "heads": 4, "kv_heads": 2}),
    ("causal & (window(9) | where(k % 64 < 3))", {"n": 1000, "heads": 2}),
    ("local(12) | global([0, 70, -1])", {"n": 500, "heads": 2, "batch": 2}),
    ("heads(causal + (causal & window(9)))", {"n": 200, "heads": 4, "kv_heads": 2}),
    ("heads(causal + (causal & stride(5)))", {"n": 200, "heads": 4}),
]


@pytest.mark.parametrize(("text", "shape"), APART, ids=str)
def test_keys_alone(text, shape):
    kernels = check(text, joint=0, head_dim=16, **shape)
    assert _by_triton(kernels) == (text in ("none", "where(q % 32 == 0)"))


FEWER = [
    ("causal", {"n": 300, "n_q": 130, "heads": 2}),
    ("causal & (window(20) | stride(9))", {"n": 290, "n_q": 201, "heads": 4, "kv_heads": 2}),
    ("causal & (chunk(32) | summary(32, 4))", {"n": 300, "n_q": 1}),
    ("local(12) | global([0, 70, -1])", {"n": 500, "n_q": 440, "heads": 2, "batch": 2}),
    ("where(q % 32 == 0) | local(8)", {"n": 200, "n_q": 77}),
    ("full & document(ids)", {"n": 250, "n_q": 249, "heads": 2, "batch": 2}),
]


@pytest.mark.parametrize(("text", "shape"), FEWER, ids=str)
def test_fewer_queries_than_keys(text, shape):
    """The gradient of queries has its kernel all the same; those of keys are left to Triton, as no query may read some."""
    kernels = check(text, joint=0, head_dim=16, **shape)
    assert _by_triton(kernels, "keys")
    assert not _by_triton(kernels, "queries")


def test_more_programs_than_tiles(monkeypatch):
    """Programs that split a long row may have none of its tiles, or tiles of one kind only."""
    every = gluon_interpreter.launched
    monkeypatch.setattr(gluon_interpreter, "launched", lambda *given, **more: every(*given, processors=lambda _: 132, **more))
    assert check("local(60) | global([0])", joint=0, n=1500, heads=2, head_dim=16)


WRONG = {
    "keys are not waited for": (r"mbarrier.wait\(kept.*", "pass"),
    "queries are not waited for": (r"mbarrier.wait\(full.*", "pass"),
    "places of queries are not waited for": (r"mbarrier.wait\(done.index\(place\).*", "pass"),
    "places of keys are not waited for": (r"mbarrier.wait\(left.*", "pass"),
    "places of queries are given back early": (r"dk, dv = warpgroup_mma_wait\(0, deps=\[dk, dv\]\)", "pass"),
    "delta is added": (r"store\(0.0 - delta\)", "store(delta)"),
    "norms of the other place": (r"norm = norm_s.index\(step % 2\)", "norm = norm_s.index((step + 1) % 2)"),
    "a wrong residue": (r"k_view, v_view, batch, kv, r,", "k_view, v_view, batch, kv, (r + 1) % 3,"),
    "sums of the pass before are lost": (r"if CARRY:", "if False:"),
    "values where keys are": (r"dk = through\(", "dv = through("),
    "sums of the pass before in another order": (r"dv = in_fours\(dv, SUMS_V, VALUE_DIM\)", "pass"),
}


OF_QUERIES = {
    "rows are not waited for": (r"mbarrier.wait\(rows_full.*", "pass"),
    "scores of keys that are not there": (r"mbarrier.wait\(k_full.*", "pass"),
    "slopes of values that are not there": (r"mbarrier.wait\(v_full.*", "pass"),
    "what belongs to the rows before": (r"_rows\(lap \+ 1,", "_rows(lap,"),
    "a wrong residue": (r"copy_tile\(k_view, batch, kv, r % 3,", "copy_tile(k_view, batch, kv, (r + 1) % 3,"),
    "sums of the pass before are lost": (r"dq = in_pairs\(", "in_pairs("),
    "sums of the pass before in another order": (r"dq = in_pairs\((.*), OUT, HEAD_DIM\)", r"dq = gl.convert_layout(\1, OUT)"),
    "delta without the gradient of the log-sum-exp": (r", LINE\) - less", ", LINE)"),
}


@pytest.mark.parametrize("name", OF_QUERIES)
def test_mistakes_of_queries_are_noticed(name):
    def wrong(change):
        def of_queries(source):
            start, end = source.index("def fits_queries"), source.index("def specialised_keys_g0_copies")
            return source[:start] + change(source[start:end]) + source[end:]

        check("causal & (window(20) | stride(3))", joint=0, change=of_queries, n=500, head_dim=16)

    gluon_interpreter.assert_noticed(OF_QUERIES[name], wrong, chances=5, PRODUCT=0.004, STORE=0.004, ENGINE=0.02)


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_noticed(name):
    def wrong(change):
        check("causal & (window(20) | stride(3))", joint=0, change=change, n=500, head_dim=16)

    gluon_interpreter.assert_noticed(WRONG[name], wrong, PRODUCT=0.004, STORE=0.004, ENGINE=0.02)


@pytest.mark.parametrize("dims", [(16, 32), (24, 24), (64, 16)], ids=str)
def test_head_dims(dims):
    for joint in (0, *(FOR if dims[0] == dims[1] else ())):
        assert check("causal & window(70)", joint=joint, n=140, head_dim=dims[0], value_dim=dims[1])
    assert check("causal & (window(9) | stride(5))", joint=0, n=140, head_dim=dims[0], value_dim=dims[1])


@pytest.mark.parametrize("scale", [1.0, 0.0, -0.2])
def test_scales(scale):
    for joint in (0, *FOR):
        assert check("causal & window(70)", joint=joint, n=100, head_dim=16, scale=scale)


def test_keys_beyond_the_last():
    """Their weights may be infinite where all scores are low, and must not be looked at."""
    module, n = loaded("full"), 70
    q, k, v = (torch.ones(1, 1, n, 16) * x for x in (20.0, -20.0, 1.0))
    call = type(random_call("full", n=2))(q, k, v, {})
    lse = torch.full((1, 1, n), -1600.0) + torch.tensor(float(n)).log()
    found, _ = gradients(module, call, v.clone(), lse, torch.ones(1, 1, n, 16), torch.zeros(1, 1, n), 0.25)
    for one, wanted in zip(found, (0.0, 0.0, 1.0), strict=True):
        torch.testing.assert_close(one, torch.full_like(one, wanted), atol=1e-4, rtol=0)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(
    text=patterns(3, choices=False, inputs=True),
    n=st.one_of(st.integers(1, 300), st.sampled_from([63, 64, 65, 127, 128, 129])),
    groups=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    dims=st.sampled_from([(16, 16), (16, 32), (24, 24)]),
    seed=st.integers(0, 99),
    joint=st.sampled_from([0, *FOR]),
)
def test_random_patterns(text, n, groups, dims, seed, joint):
    try:
        check(
            text,
            joint=joint if dims[0] == dims[1] else 0,
            n=n,
            heads=groups[0],
            kv_heads=groups[1],
            head_dim=dims[0],
            value_dim=dims[1],
            seed=seed,
        )
    except pc.PatternError as refused:
        assert refused.diagnostic.code == "too-complex"


def test_what_passes_leave_one_another():
    """Their sums lie as specialised kernels hold them, where all that write or read them are such kernels, and only there."""
    chained = "causal & (window(20) | stride(9))"
    wanted = {
        chained: {"out", "dq", "dk", "dv"},
        "causal": set(),
        "causal & (window(99) | topk(s, 8))": set(),  # lists of keys are another kernel's
        f"heads(({chained}) + ({chained} | sinks(2)))": {"out", "dq"},  # groups of heads add to the keys' in turn
        f"heads(({chained}) + (causal & topk(s, 8)))": set(),
    }
    for text, sums in wanted.items():
        source = backend_named("gluon").emit(planned(text))
        assert set(re.findall(r"in_fours\((\w+), SUMS\w*, \w+_DIM\)", source)) == sums, text
        assert ("in_pairs(tl.load" in source) == bool(sums)


def test_rows_that_are_worth_it():
    """Long rows have the kernel; short ones, heads that differ, pairs one by one and views do without."""
    wanted = {
        "causal": True,
        "causal & window(2048)": True,
        "causal & (window(4096) | sinks(4))": True,
        "causal & document(ids)": True,
        "causal & window(256)": False,
        "causal & stride(64)": False,
        "heads(causal + full)": False,
        "causal | random(3)": False,
        "causal & topk(s, 2048)": False,
    }
    for text, joint in wanted.items():
        plan = planned(text)
        assert (plan.joint is not None) == joint, text
        assert ("gradients at once" in str(plan)) == joint
