"""Gradients, and the ways in which torch runs an operator other than by calling it."""

import copy
import pickle
import shutil

import pytest

import patternc as pc
from patternc.testing import random_call

torch = pytest.importorskip("torch")
from patternc.runtime import operator  # noqa: E402 - needs torch

FULL_ROWS = ["causal", "window(3) | random(2)", "causal & (window(5) | topk(scores, 3))", "causal & document(ids)"]
MIXED = "causal & (window(9) | topk(scores, 3) | random(2) | layout(table4, 4) | document(ids) & sinks(30))"


def leaves(call):
    return [t.clone().requires_grad_() for t in (call.q, call.k, call.v)]


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("text", FULL_ROWS)
@pytest.mark.parametrize(("n_q", "n"), [(6, 6), (3, 7)], ids=str)
def test_gradcheck(backend, text, n_q, n):
    call = random_call(text, n=n, n_q=n_q, heads=2, kv_heads=1, head_dim=3, value_dim=2, dtype="float64")
    attention = pc.compile(text, backend=backend)

    def run(q, k, v):
        return attention(q, k, v, return_lse=True, **call.inputs)

    assert torch.autograd.gradcheck(run, leaves(call))


def test_gradcheck_over_several_tiles():
    text = "heads((causal & (window(5) | stride(64) | random(3) | topk(scores, 4))) + (chunk(50) - self))"
    call = random_call(text, n=260, n_q=200, heads=2, kv_heads=1, head_dim=3, dtype="float64")
    attention = pc.compile(text, backend="torch")
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, **call.inputs), leaves(call), fast_mode=True)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gradcheck_with_empty_rows(backend):
    call = random_call("causal - self", n=6, head_dim=3, dtype="float64")
    attention = pc.compile("causal - self", backend=backend)
    assert torch.autograd.gradcheck(attention, leaves(call))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_only_some_inputs_need_gradients(wanted):
    call = random_call("causal & random(3)", n=40, heads=2)
    attention = pc.compile("causal & random(3)", backend="torch")
    every = leaves(call)
    attention(*every).square().sum().backward()
    some = [t.clone().requires_grad_(i in wanted) for i, t in enumerate((call.q, call.k, call.v))]
    attention(*some).square().sum().backward()
    for i, (mine, full) in enumerate(zip(some, every, strict=True)):
        assert (mine.grad is not None) == (i in wanted)
        assert mine.grad is None or torch.equal(mine.grad, full.grad)


@pytest.mark.parametrize("used", [0, 1], ids=["out", "lse"])
def test_only_one_output_is_used(used):
    call = random_call("causal", n=40, heads=2)
    attention = pc.compile("causal", backend="torch")
    q, k, v = leaves(call)
    mine = torch.autograd.grad(attention(q, k, v, return_lse=True)[used].sum(), (q, k, v), allow_unused=True)
    scores = (q @ k.transpose(-1, -2) / 4).masked_fill(~torch.ones(40, 40, dtype=torch.bool).tril(), -torch.inf)
    dense = (scores.softmax(-1) @ v, scores.logsumexp(-1))[used]
    for a, b in zip(mine, torch.autograd.grad(dense.sum(), (q, k, v), allow_unused=True), strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, atol=1e-5, rtol=1e-5)


def test_no_graph_without_gradients():
    call = random_call("causal", n=10)
    q, k, v = leaves(call)
    with torch.no_grad():
        assert not pc.attention(q, k, v, "causal").requires_grad
    assert not pc.attention(call.q, call.k, call.v, "causal").requires_grad
    assert pc.attention(q, call.k, call.v, "causal").requires_grad


def test_scores_get_no_gradient():
    call = random_call("causal & topk(scores, 3)", n=10)
    scores = call.inputs["scores"].requires_grad_()
    q, k, v = leaves(call)
    pc.attention(q, k, v, "causal & topk(scores, 3)", scores=scores).sum().backward()
    assert scores.grad is None
    assert q.grad is not None


def test_checkpoint():
    call = random_call(MIXED, n=60, heads=2)
    attention = pc.compile(MIXED, backend="torch")
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
    call = random_call("causal", n=40, heads=2)
    q, k, v = leaves(call)
    with torch.autocast("cpu", dtype=dtype):
        out, lse = pc.attention(q, k.to(dtype), v, "causal", return_lse=True)
        wide = pc.attention(q.double(), k.double(), v.double(), "causal")
    assert (out.dtype, lse.dtype, wide.dtype) == (dtype, torch.float32, torch.float64)
    assert torch.equal(out, pc.attention(q.to(dtype), k.to(dtype), v.to(dtype), "causal"))
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_torch_compile(compiler):
    if compiler == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    torch.compiler.reset()
    attention = pc.compile(MIXED, backend="torch")

    def model(q, k, v, inputs):
        out, lse = attention(q * 2, k, v, return_lse=True, **inputs)
        return out.sin().sum(-1) + lse

    call = random_call(MIXED, n=60, heads=4, kv_heads=2)
    grads = []
    for run in (model, torch.compile(model, fullgraph=True, backend=compiler)):
        q, k, v = leaves(call)
        run(q, k, v, call.inputs).sum().backward()
        grads.append([q.grad, k.grad, v.grad])
    for mine, plain in zip(*grads, strict=True):
        torch.testing.assert_close(mine, plain)


def test_torch_compile_with_any_length():
    torch.compiler.reset()
    attention = pc.compile(MIXED, backend="torch")
    compiled = torch.compile(
        lambda q, k, v, inputs: attention(q, k, v, **inputs), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for n in (16, 40, 200):
        call = random_call(MIXED, n=n, heads=2)
        assert torch.equal(compiled(call.q, call.k, call.v, call.inputs), attention(call.q, call.k, call.v, **call.inputs))


def test_torch_compile_chooses_the_backend_at_run_time():
    torch.compiler.reset()
    attention = pc.compile("causal & random(3)")
    call = random_call("full", n=40)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(call.q, call.k, call.v), attention(call.q, call.k, call.v))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("text", [MIXED, "heads(causal + none + (causal & topk(scores, 3)))"])
def test_operators_keep_their_promises(backend, text):
    call = random_call(text, n=30, heads=3)
    pattern = pc.parse(text)
    module = operator.module_of(str(pattern), 0, backend, call.q, call.v)
    given = [call.inputs[name] for name, _, _ in module.INPUTS]
    kept = [call.inputs[name] for name, kind, _ in module.INPUTS if kind != "scores"]
    torch.library.opcheck(operator.select, (call.q, call.k, call.v, given, str(pattern), 0, backend))
    chosen = operator.select(call.q, call.k, call.v, given, str(pattern), 0, backend)
    arguments = (kept, chosen, str(pattern), 0, backend, 0.25)
    torch.library.opcheck(operator.attention, (*leaves(call), *arguments))
    out, lse = operator.attention(call.q, call.k, call.v, *arguments)
    upstream = torch.randn_like(out), torch.randn_like(lse)
    torch.library.opcheck(operator.attention_backward, (call.q, call.k, call.v, *arguments, out, lse, *upstream))


def test_shapes_without_values():
    q = torch.zeros(1, 4, 8, 16, device="meta", requires_grad=True)
    k = torch.zeros(1, 2, 9, 16, device="meta")
    out, lse = pc.compile("causal", backend="torch")(q, k, k[..., :5], return_lse=True)
    assert (out.shape, lse.shape, out.device.type) == ((1, 4, 8, 5), (1, 4, 8), "meta")
    out.sum().backward()
    assert q.grad.shape == q.shape


def test_export():
    attention = pc.compile("causal & window(9)", backend="torch")

    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return attention(q, k, v)

    call = random_call("full", n=30)
    program = torch.export.export(Model(), (call.q, call.k, call.v))
    assert torch.equal(program.module()(call.q, call.k, call.v), attention(call.q, call.k, call.v))


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies(clone):
    attention = pc.compile("causal & document(ids) & random(3)", backend="torch", ids=torch.arange(20) // 6)
    other = clone(attention)
    call = random_call("full", n=20)
    assert str(other.pattern) == str(attention.pattern)
    assert repr(other) == repr(attention)
    assert torch.equal(other(call.q, call.k, call.v), attention(call.q, call.k, call.v))


def test_as_a_module_attribute():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.project = torch.nn.Linear(16, 48)
            self.attend = pc.compile("causal & window(9)", backend="torch")

        def forward(self, x):
            q, k, v = self.project(x)[:, None].chunk(3, -1)
            return self.attend(q, k, v)

    layer = copy.deepcopy(Layer())
    layer(torch.randn(2, 30, 16)).sum().backward()
    assert bool(layer.project.weight.grad.isfinite().all())
