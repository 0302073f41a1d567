"""The torch backend walks views, batches tiles and cuts masks: what comes out is still dense attention under the mask."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.backend import Request
from patternc.lower.plan import Walk
from patternc.runtime.compile import plan_for
from patternc.testing import assert_matches_dense, patterns, random_call

torch = pytest.importorskip("torch")
from patternc.runtime import operator  # noqa: E402 - needs torch

RANDOM = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
CALL = Request("cpu", "float32", 16, 16, 0)


def check(text, dtype="float32", **shape):
    call = random_call(text, dtype=dtype, **shape)
    assert_matches_dense(text, call.q, call.k, call.v, backend="torch", **call.inputs)


def module_of(text, dtype=torch.float32):
    return operator.module_of(text, 0, "torch", *[torch.zeros(1, 1, 1, 16, dtype=dtype)] * 2)


def steps_of(text, n, n_q=None):
    """The steps of one call with four heads."""
    q, k = torch.zeros(1, 4, n_q or n, 16), torch.zeros(1, 4, n, 16)
    return list(module_of(text)._steps(q, k, {}, [], 16))


@st.composite
def spread(draw):
    """Unions of what views pack: strides, dilations, offsets, summaries, alone or with something dense."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    kinds = {
        "stride": lambda: f"stride({number(2, 40)})",
        "dilation": lambda: f"window({number(8, 60)}, dilation={number(2, 6)})",
        "offset": lambda: f"where((q - k) % {number(20, 40)} == {number(0, 19)})",
        "summary": lambda: f"summary({number(12, 40)}, {number(1, 5)})",
        "window": lambda: f"window({number(1, 90)})",
        "global": lambda: f"global([{number(0, 3)}, -{number(1, 5)}])",
        "rows": lambda: f"rows([{number(0, 9)}..{number(10, 200)}]) & stride({number(2, 9)})",
    }
    parts = [f"({kinds[draw(st.sampled_from(sorted(kinds)))]()})" for _ in range(number(1, 3))]
    return f"{draw(st.sampled_from(['', 'causal & ']))}({' | '.join(parts)})"


@st.composite
def shapes(draw):
    n = draw(st.one_of(st.integers(1, 40), st.integers(100, 700), st.sampled_from([256, 1024, 1500])))
    kv_heads = draw(st.sampled_from([1, 1, 2]))
    return {
        "n": n,
        "n_q": draw(st.one_of(st.just(n), st.integers(1, n))),
        "batch": draw(st.sampled_from([1, 2])),
        "heads": kv_heads * draw(st.sampled_from([1, 2, 3])),
        "kv_heads": kv_heads,
        "value_dim": draw(st.sampled_from([None, None, 24])),
        "seed": draw(st.integers(0, 999)),
    }


@settings(RANDOM, max_examples=40)
@given(text=spread(), dtype=st.sampled_from(["float32", "float32", "float64", "bfloat16"]), shape=shapes())
def test_spread_pairs(text, dtype, shape):
    check(text, dtype, **shape)


@settings(RANDOM, max_examples=12)
@given(parts=st.lists(st.one_of(spread(), patterns(1)), min_size=2, max_size=3), shape=shapes())
def test_heads_that_differ(parts, shape):
    check(f"heads({' + '.join(f'({part})' for part in parts)})", **shape)


@settings(RANDOM, max_examples=15)
@given(text=patterns(3), shape=shapes())
def test_any_static_pattern(text, shape):
    try:
        check(text, **shape)
    except pc.PatternError as refused:
        assert refused.diagnostic.code == "too-complex"


VIEWED = {
    "residues": "causal & stride(40)",
    "an offset": "where((q - k) % 40 == 13)",
    "dilation": "causal & window(400, dilation=4)",
    "compacted columns": "causal & (chunk(48) | summary(48, 5))",
    "a chain of passes": "causal & (window(9) | stride(40) | stride(56))",
    "a chain that starts in part of the rows": "rows([3..90]) & stride(40) | stride(56)",
    "a chain that starts from one key": "columns([0]) | where((q - k) % 40 == 13)",
    "nothing for some rows": "rows([40..170]) & stride(40)",
    "nothing for rows between others": "where(q % 3 == 1 and q - k < 50) & causal",
    "the same queries twice in one shape": "columns([0..7, 300..307, 600..607])",
}


@pytest.mark.parametrize(("n_q", "n"), [(1, 1), (1, 300), (37, 37), (300, 300), (77, 1025), (1025, 1025)], ids=str)
@pytest.mark.parametrize("text", VIEWED.values(), ids=VIEWED)
def test_views(text, n_q, n):
    check(text, n=n, n_q=n_q, batch=2, heads=4, kv_heads=2)


def test_the_plan_has_views():
    strides = {name: {group.stride for group in plan_for(pc.parse(text), backend="torch", request=CALL).heads}
               for name, text in VIEWED.items()}  # fmt: skip
    assert strides["residues"] == {40}
    assert strides["an offset"] == {40}
    assert strides["dilation"] == {4}
    assert strides["a chain of passes"] == {1, 40, 56}
    phases = plan_for(pc.parse(VIEWED["compacted columns"]), backend="torch", request=CALL).heads[0].phases
    assert {phase.view.period for phase in phases if isinstance(phase, Walk)} == {1, 48}


@pytest.mark.parametrize("text", VIEWED.values(), ids=VIEWED)
def test_gradcheck(text):
    call = random_call(text, n=90, n_q=70, heads=2, kv_heads=1, head_dim=2, value_dim=3, dtype="float64")
    attention = pc.compile(text, backend="torch")
    leaves = [t.requires_grad_() for t in (call.q, call.k, call.v)]
    run = lambda q, k, v: attention(q, k, v, return_lse=True)  # noqa: E731
    some = lambda q, k, v: attention(q, k, v)  # noqa: E731
    whole = bool(pc.parse(text).mask(90)[20:].any(1).all())  # the log-sum-exp of no keys has no differences
    assert torch.autograd.gradcheck(run if whole else some, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_passes_are_chained_exactly(dtype):
    """The state between passes is not rounded to less than the computation: against float64, at large scores."""
    text = VIEWED["a chain of passes"]
    call = random_call(text, n=600, heads=2, dtype=dtype)
    call.q.mul_(8)
    assert_matches_dense(text, call.q, call.k, call.v, backend="torch")


def test_strided_and_shared_memory():
    """Queries, keys and values are read where they lie."""
    text = "causal & (window(30) | stride(40))"
    call = random_call(text, n=500, batch=2, heads=4, kv_heads=4)
    last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (call.q, call.k, call.v)]
    wide = [torch.stack([t, t * 0 + 7], -1).flatten(-2)[..., ::2] for t in (call.q, call.k, call.v)]
    rows = [torch.stack([t, t * 0 + 7], 3).flatten(2, 3)[:, :, ::2] for t in (call.q, call.k, call.v)]
    shared = [call.q, *(t[:, :1].expand(-1, 4, -1, -1) for t in (call.k, call.v))]
    for q, k, v in (last, wide, rows, shared):
        assert_matches_dense(text, q, k, v, backend="torch")


def test_without_the_fused_operator():
    """Other devices, and values that are wider or narrower than keys, take plain products, in parts."""
    text = "causal & (window(200) | stride(40)) | columns([0..7])"
    module = module_of(text)
    call = random_call(text, n=1300, heads=4, kv_heads=2)
    fused = module.forward(call.q, call.k, call.v, {}, [], 0.25)
    whether, many = module._is_fused, module.MANY_PAIRS
    try:
        module._is_fused, module.MANY_PAIRS = lambda q, v: False, 1 << 16
        plain = module.forward(call.q, call.k, call.v, {}, [], 0.25)
    finally:
        module._is_fused, module.MANY_PAIRS = whether, many
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("causal & window(128)", 8),
        ("causal & stride(64)", 6),
        ("causal & window(512, dilation=4)", 80),
        ("causal & (window(256) | stride(256))", 40),
        ("local(512) | global([0])", 60),
    ],
)
def test_tiles_of_one_shape_are_one_step(text, most):
    """Python runs once for many tiles: 16,384 rows are 128 row tiles, and as many for each of 64 residues."""
    assert len(steps_of(text, 16384)) <= most


@pytest.mark.parametrize(
    ("text", "waste"),
    [("causal", 1.5), ("causal & window(128)", 1.4), ("local(512) | global([0])", 1.2), ("causal & stride(64)", 2)],
)
def test_masks_are_cut_to_size(text, waste):
    """Pairs that are computed, the upper half of a lower triangle left out, against pairs that are read."""
    n = 4096
    computed = 0
    for step in steps_of(text, n):
        rows, keys = step.queries.size, step.keys.size
        computed += step.queries.count * rows * (keys + 1 if step.corner else 2 * keys) // 2
    assert computed <= waste * pc.parse(text).nnz(n)


def test_each_pair_is_in_one_step():
    """Steps visit the pairs of the pattern, once each."""
    text = "causal & (window(100) | stride(48) | summary(64, 3)) | columns([5])"
    n, n_q = 700, 650
    module = module_of(text)
    seen = torch.zeros(n_q, n, dtype=torch.int)
    for step in module._steps(torch.zeros(1, 1, n_q, 16), torch.zeros(1, 1, n, 16), {}, [], 16):
        for part in step.parts(1 << 30):
            places = torch.arange(n)
            if step.packed is not None:
                places = module._packed_places(torch.arange(module._packed_length(n, step.packed)), step.packed)
            rows = part.queries.of(torch.arange(n_q)[None, :, None], (0, 0, 1))[:, 0, :, 0]
            keys = places[part.keys.of(torch.arange(len(places))[None, :, None], (0, 0, 1))[:, 0, :, 0]]
            held = torch.ones(rows.shape[1], keys.shape[1], dtype=torch.int) if part.mask is None else (part.mask == 0).int()
            for a, b in zip(rows, keys, strict=True):
                seen[a[:, None], b] += held
    assert torch.equal(seen, torch.from_numpy(pc.parse(text).mask(n)[n - n_q :]).int())


def test_steps_are_kept_by_length():
    """A second call builds nothing; other lengths and other heads have their own steps; what is kept is bounded."""
    text = "causal & (window(77) | stride(40))"
    module = module_of(text)
    module._STEPS.clear()
    first = steps_of(text, 500)
    kept = dict(module._STEPS)
    assert [step.queries for step in steps_of(text, 500)] == [step.queries for step in first]
    assert {key: id(value) for key, value in module._STEPS.items()} == {key: id(value) for key, value in kept.items()}
    steps_of(text, 500, 20)
    assert len(module._STEPS) == 2 * len(kept)
    limit = module.KEPT
    try:
        module.KEPT = 1 + max(size for size, _ in module._STEPS.values())
        for n in (501, 502, 503):
            check(text, n=n)
        assert sum(size for size, _ in module._STEPS.values()) <= module.KEPT
    finally:
        module.KEPT = limit


def test_masks_without_end_are_not_kept(monkeypatch):
    """Where no two masks are alike, and together they are too long, they are made in every call, some at a time."""
    text = "where((q*3 + k*5) % 7 < 2)"
    module = module_of(text)
    monkeypatch.setattr(module, "_STEPS", {})
    monkeypatch.setattr(module, "MASKED", 1 << 14)
    monkeypatch.setattr(module, "KEPT", 1 << 16)
    check(text, n=20, heads=2)
    short = list(module._STEPS)
    assert len(short) == 1
    for _ in range(2):
        check(text, n=400, heads=2)
        assert list(module._STEPS) == short


DRAWN = "blocks(16, 1, 1) | random(3, block=16) | global([0..15])"


def test_drawn_keys_are_kept(monkeypatch):
    """Their masks are all different, for each head: many lists of steps to build, in the first call only."""
    module = module_of(DRAWN)
    monkeypatch.setattr(module, "_STEPS", {})
    monkeypatch.setattr(module, "MASKED", 1 << 14)
    built = []
    monkeypatch.setattr(module, "_built", lambda *given, own=module._built: (built.append(x) or x for x in own(*given)))
    check(DRAWN, n=1000, heads=2)
    assert len(built) > 4
    built.clear()
    check(DRAWN, n=1000, heads=2)
    assert not built


def test_steps_of_one_call_leave_each_other_alone(monkeypatch):
    """Without room for those of all heads, some are kept, not each until the next; other lengths make room."""
    module = module_of(DRAWN)
    monkeypatch.setattr(module, "_STEPS", {})
    steps_of(DRAWN, 1000)
    sizes = [size for size, _ in module._STEPS.values()]
    assert len(sizes) == 5  # what heads have in common, and the draws of each
    monkeypatch.setattr(module, "KEPT", sum(sizes[:3]) + max(sizes))
    module._STEPS.clear()
    steps_of(DRAWN, 1000)
    kept = {key: id(steps) for key, (_, steps) in module._STEPS.items()}
    assert 3 <= len(kept) < 5
    steps_of(DRAWN, 1000)
    assert {key: id(steps) for key, (_, steps) in module._STEPS.items()} == kept
    steps_of(DRAWN, 1001)
    assert not kept.keys() <= module._STEPS.keys()
    assert len({length for length, *_ in module._STEPS} & {(1001, 1001, "cpu")}) == 1
    assert sum(size for size, _ in module._STEPS.values()) <= module.KEPT


def test_kept_steps_do_not_depend_on_inputs():
    """The same lengths with other documents, and other documents in each batch."""
    text = "causal & document(ids)"
    for ids in (
        torch.arange(300) // 50,
        torch.arange(300) // 90,
        torch.stack([torch.arange(300) // 7, torch.arange(300) // 99]),
    ):
        call = random_call("full", n=300, batch=2, heads=2)
        assert_matches_dense(text, call.q, call.k, call.v, backend="torch", ids=ids)


@pytest.mark.parametrize(
    "text", ["blocks(64, 1, 1) | random(3, block=64)", "causal & layout(table8, 8)", "causal & document(ids)"]
)
def test_what_differs_by_batch_or_head(text):
    check(text, n=400, n_q=333, batch=2, heads=4, kv_heads=2)
