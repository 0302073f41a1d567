"""A pattern in several passes: each continues where the last one stopped, also where it found nothing, and at every length.

Shares of rows, whose parts are merged, are the Triton backend's: tests/triton_interpreter.
"""

import sys

import pytest

import patternc as pc
from patternc.backend import Request
from patternc.lower.plan import Plan
from patternc.runtime.compile import emit_source, kernel, plan_for
from patternc.runtime.loader import load
from patternc.scalar import evaluate
from patternc.testing import assert_matches_dense, random_call

torch = pytest.importorskip("torch")
from patternc.runtime import operator  # noqa: E402 - needs torch

GPU = Request("cuda", "bfloat16", 64, 64, 0, 9)
CACHES = plan_for, emit_source, kernel, load

# Each with passes that have no key for some rows, for some lengths, or at all.
PASSES = [
    "causal & stride(40) - self",
    "where((q - k) % 60 == 7 and q > k)",
    "where((q - k) % 30 == 0 and q > k) | where((q - k) % 35 == 7 and q > k)",
    "window(2) & rows([5..9]) | where((q - k) % 18 == 0 and q > k) | where((q - k) % 20 == 7 and q > k)",
    "rows([30..40]) & where(k > 40) | local(3)",
    "rows([70]) | local(3)",
    "rows([70])",
    "columns([70])",
    "rows([3, 50]) & where(n > 80)",
    "where(q % 32 == 5 and k > q + 20) | self & rows([70..90])",
    "where(k % 32 == 5 and k > q + 20)",
    "causal & (summary(50, 3) - chunk(50)) | causal & stride(29)",
    "heads((causal & stride(40) - self) + rows([70]) + none + (causal & (window(4) | stride(9))))",
]


@pytest.mark.parametrize(("n_q", "n"), [(1, 1), (20, 20), (100, 100), (60, 90), (1, 150)], ids=str)
@pytest.mark.parametrize("text", PASSES)
def test_passes_that_find_nothing(text, n_q, n, poisoned):
    """Output 0, log-sum-exp -inf and no gradient for rows without keys; the rest is as if in one pass."""
    call = random_call(text, n=n, n_q=n_q, heads=4, kv_heads=2)
    assert_matches_dense(text, call.q, call.k, call.v, backend="torch")


@pytest.mark.parametrize("text", ["rows([70])", "causal & stride(40) - self", "where((q - k) % 60 == 7 and q > k)"])
def test_rows_without_keys(text):
    call = random_call(text, n=50)
    empty = ~torch.from_numpy(pc.parse(text).mask(50).any(1))
    q, k, v = (t.clone().requires_grad_() for t in (call.q, call.k, call.v))
    out, lse = pc.compile(text, backend="torch")(q, k, v, return_lse=True)
    assert empty.any()
    assert bool((out[0, 0, empty] == 0).all())
    assert bool((lse[0, 0, empty] == -torch.inf).all())
    (out.sum() + lse[lse > -torch.inf].sum()).backward()
    assert bool((q.grad[0, 0, empty] == 0).all())
    assert all(bool(t.grad.isfinite().all()) for t in (q, k, v))


@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=str)
def test_the_order_of_passes_does_not_matter(order):
    """Two strides that share no pair but the query itself, in either order of their sizes, and in one condition."""
    a, b = (6 * i + 1 for i in order)
    text = f"causal & (stride({a}) | stride({b}))"
    whole = f"where(q >= k and ((q - k) % {a} == 0 or (q - k) % {b} == 0))"
    call = random_call(text, n=90, n_q=80)
    mine, other = (pc.compile(one, backend="torch")(call.q, call.k, call.v, return_lse=True) for one in (text, whole))
    for x, y in zip(mine, other, strict=True):
        torch.testing.assert_close(x, y)


def passes_of(plan: Plan):
    return [("keys", one) for one in plan.keys] + [("heads", one) for one in plan.heads]


@pytest.mark.parametrize(
    "text", [*PASSES, *(str(pc.preset(name)) for name in ("longformer", "sparse_fixed", "sparse_strided"))]
)
def test_passes_fit_together(text):
    """One pass starts, those after it continue, the last one writes; shares come before the pass that takes them up."""
    plan = plan_for(pc.parse(text), None, "triton", GPU)
    for side in (plan.heads, plan.keys):
        for heads in dict.fromkeys(one.heads for one in side):
            mine = [one for one in side if one.heads == heads]
            whole = [one for one in mine if not one.share]
            assert mine[len(mine) - len(whole) :] == whole
            assert [one.chained for one in whole] == [i > 0 for i in range(len(whole))]
            assert not any(one.chained for one in mine if one.share)
            assert [one.last for one in mine] == [one is mine[-1] for one in mine]
            assert whole[0].stride == 1 or len(mine) == len(whole)
            assert len({one.rows for one in mine}) == len(mine)
    for _, one in passes_of(plan):
        assert bool(one.visits) == one.rows.few
        for n in (1, 50, 5000):  # the tiles of a share are ascending, each once
            tiles = [evaluate(v.start, {"n": n}) + v.step * t for v in one.visits for t in range(evaluate(v.count, {"n": n}))]
            assert tiles == sorted(set(tiles))


@pytest.mark.parametrize("text", ["causal & (window(9) | stride(16))", "local(9) | global([0]) | causal & topk(scores, 3)"])
def test_other_lengths_compile_nothing(text):
    """Nor do other batches and numbers of heads: one plan, one file, one module."""
    pattern = pc.parse(text)
    attention = pc.compile(pattern, backend="torch")
    modules, misses = set(), set()
    for shape in ({"n": 40, "heads": 2}, {"n": 41}, {"n": 1}, {"n": 300, "n_q": 7, "batch": 3, "heads": 6, "kv_heads": 3}):
        call = random_call(text, **shape)
        attention(*(t.requires_grad_() for t in (call.q, call.k, call.v)), **call.inputs).sum().backward()
        modules.add(operator.module_of(str(pattern), 0, "torch", call.q, call.v))
        misses.add(tuple(cache.cache_info().misses for cache in CACHES))
    assert len(modules) == len(misses) == 1


@pytest.mark.parametrize("name", ["bigbird", "flagship", "longformer", "sparse_fixed_heads"])
def test_a_plan_does_not_know_the_length(name):
    """Requests of all lengths give one plan, with tiles and passes that were chosen for all of them, and one file."""
    pattern = pc.preset(name)
    requests = [Request("cuda", "bfloat16", 128, 128, length, 9) for length in (0, 1, 4096, 1 << 20)]
    assert len({str(plan_for(pattern, None, "triton", request)) for request in requests}) == 1
    assert len({emit_source(pattern, "triton", None, request) for request in requests}) == 1


def test_a_kernel_is_lowered_once(monkeypatch):
    """From a cold start, for all calls of a pattern with one dtype and one head_dim."""
    compiling = sys.modules["patternc.runtime.compile"]  # the package has a function of that name
    lowered = []
    for name in ("lower", "with_keys", "load"):
        real = getattr(compiling, name)
        monkeypatch.setattr(compiling, name, lambda *args, r=real, **rest: lowered.append(args) or r(*args, **rest))
    text = "causal & (window(11) | stride(23) | sinks(2))"
    counts = []
    for shape in ({"n": 10}, {"n": 11}, {"n": 200, "batch": 2}, {"n": 64, "heads": 3}, {"n": 64, "head_dim": 32}):
        call = random_call(text, **shape)
        pc.attention(call.q, call.k, call.v, text, backend="torch")
        counts.append(len(lowered))
    assert 0 < counts[0] == counts[1] == counts[2] == counts[3] < counts[4]
