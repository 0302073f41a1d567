"""What a warm call does around its kernel: an eager call skips torch's dispatcher, and everything else still sees operators."""

from contextlib import contextmanager, nullcontext

import pytest

import patternc as pc
from patternc.testing import random_call

torch = pytest.importorskip("torch")
from torch._subclasses import FakeTensorMode  # noqa: E402 - needs torch
from torch.autograd import forward_ad  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.profiler import profile  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from patternc.runtime import operator  # noqa: E402

MIXED = "causal & (window(9) | topk(scores, 3) | random(2) | layout(table4, 4) | document(ids) & sinks(30))"
TEXTS = ["causal", MIXED, "heads(causal + none)"]
CALL = random_call("causal", n=40, heads=4, kv_heads=2)


def leaves(call=CALL):
    return [t.clone().requires_grad_() for t in (call.q, call.k, call.v)]


def operators(run):
    """The operators of ours that the dispatcher runs meanwhile."""
    with profile() as events:
        run()
    return sorted(e.name for e in events.events() if e.name.startswith("patternc::"))


@contextmanager
def through_operators(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(operator, "direct", lambda *_: False)
        yield


def outcome(attention, call):
    """Output, log-sum-exp and gradients of a call."""
    tensors = leaves(call)
    found = attention(*tensors, return_lse=True, **call.inputs)
    generator = torch.Generator().manual_seed(0)
    upstream = [torch.randn(t.shape, generator=generator, dtype=torch.float32).to(t.dtype) for t in found]
    return [*found, *torch.autograd.grad(found, tensors, upstream)]


@pytest.mark.parametrize("text", TEXTS)
def test_an_eager_call_skips_the_dispatcher(text):
    attention = pc.compile(text, backend="torch")
    call = random_call(text, n=40, heads=2)
    assert operators(lambda: outcome(attention, call)) == []
    with torch.no_grad():
        assert operators(lambda: attention(call.q, call.k, call.v, **call.inputs)) == []


def test_the_profiler_would_see_operators(monkeypatch):
    attention = pc.compile(MIXED, backend="torch")
    call = random_call(MIXED, n=40, heads=2)
    with through_operators(monkeypatch):
        seen = operators(lambda: outcome(attention, call))
    assert seen == ["patternc::attention", "patternc::attention_backward", "patternc::select"]


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("text", TEXTS)
def test_both_routes_give_the_same_bits(text, backend, monkeypatch):
    attention = pc.compile(text, backend=backend)
    call = random_call(text, n=150, n_q=130, heads=4, kv_heads=2, value_dim=24)
    direct = outcome(attention, call)
    with through_operators(monkeypatch):
        dispatched = outcome(attention, call)
    assert all(torch.equal(a, b) for a, b in zip(direct, dispatched, strict=True))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)], ids=str)
@pytest.mark.parametrize("used", [0, 1], ids=["out", "lse"])
def test_both_routes_give_the_gradients_that_are_needed(wanted, used, monkeypatch):
    attention = pc.compile("causal", backend="torch")
    found = []
    for route in (nullcontext(), through_operators(monkeypatch)):
        some = [t.clone().requires_grad_(i in wanted) for i, t in enumerate((CALL.q, CALL.k, CALL.v))]
        with route:
            attention(*some, return_lse=True)[used].square().sum().backward()
        found.append([t.grad for t in some])
    for i, (a, b) in enumerate(zip(*found, strict=True)):
        assert (a is not None) == (b is not None) == (i in wanted)
        assert a is None or torch.equal(a, b)


def test_a_warm_call_looks_nothing_up(monkeypatch):
    attention = pc.compile("causal & window(11)")
    looked_up = []
    for name in ("serving", "kernel"):
        known = getattr(operator, name)
        monkeypatch.setattr(operator, name, lambda *a, known=known, name=name: looked_up.append(name) or known(*a))
    outcome(attention, CALL)
    assert set(looked_up) == {"serving", "kernel"}
    looked_up.clear()
    outcome(attention, CALL)
    attention(CALL.q, CALL.k, CALL.v)
    with through_operators(monkeypatch):
        outcome(attention, CALL)
    assert looked_up == []
    attention(CALL.q[..., :5, :], CALL.k[..., :5, :], CALL.v[..., :5, :])
    assert looked_up == ["serving", "kernel"]  # a backend may be chosen by the length


def test_the_choice_sees_the_length_and_the_kernel_does_not():
    attention = pc.compile("causal", backend="reference")
    attention(CALL.q, CALL.k, CALL.v)
    modules = {operator.module_of("causal", 0, "reference", CALL.q[:, :, :n], CALL.v[:, :, :n]) for n in (3, 40)}
    assert len(modules) == 1
    long = torch.zeros(1, 1, 1, 16).expand(1, 1, 20_000, 16)
    for _ in range(2):
        with pytest.raises(ValueError, match="20000 keys are over 16384"):
            attention(long[:, :, :1], long, long)


def test_torch_compile_sees_one_operator():
    torch.compiler.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    attention = pc.compile("causal", backend="torch")
    attention(CALL.q, CALL.k, CALL.v)
    compiled = torch.compile(attention, fullgraph=True, backend=backend)
    assert torch.equal(compiled(CALL.q, CALL.k, CALL.v), attention(CALL.q, CALL.k, CALL.v))
    (graph,) = graphs
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert len([name for name in names if "patternc" in name]) == 1
    assert "patternc.attention" in "".join(names)


def test_a_bare_call_is_looked_at_once(monkeypatch):
    """One look-up says whether it fits, and by which kernel; what is not bare, or not direct, is looked at piece by piece."""
    attention = pc.compile("causal", backend="torch")
    expected = attention(CALL.q, CALL.k, CALL.v)
    pieces = []
    known = operator.fit
    monkeypatch.setattr(operator, "fit", lambda *t: pieces.append(1) or known(*t))
    assert torch.equal(attention(CALL.q, CALL.k, CALL.v), expected)
    out, lse = attention(CALL.q, CALL.k, CALL.v, return_lse=True, scale=2)
    assert out.shape[:3] == lse.shape
    outcome(attention, CALL)
    assert pieces == []
    attention(CALL.q, CALL.k, CALL.v, sink_logit=torch.zeros(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(CALL.q, CALL.k, CALL.v).dtype == torch.bfloat16
    with through_operators(monkeypatch):
        assert torch.equal(attention(CALL.q, CALL.k, CALL.v), expected)
    pc.compile("causal & document(ids)", ids=torch.zeros(40, dtype=torch.long))(CALL.q, CALL.k, CALL.v)
    assert len(pieces) == 4


def test_deterministic_algorithms():
    attention = pc.compile("causal", backend="torch")
    expected = outcome(attention, CALL)
    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(a, b) for a, b in zip(outcome(attention, CALL), expected, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_vmap_is_refused_on_both_routes(monkeypatch):
    attention = pc.compile("causal", backend="torch")
    batched = [t[None].expand(2, *t.shape) for t in (CALL.q, CALL.k, CALL.v)]
    for route in (nullcontext(), through_operators(monkeypatch)):
        with route, pytest.raises(RuntimeError, match="Batching rule not implemented for patternc::attention"):
            torch.vmap(attention)(*batched)


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_make_fx_sees_operators(pre_dispatch):
    attention = pc.compile("causal", backend="torch")
    graph = make_fx(attention, pre_dispatch=pre_dispatch)(CALL.q, CALL.k, CALL.v)
    assert [str(n.target) for n in graph.graph.nodes if "patternc" in str(n.target)] == ["patternc.attention.default"]


def test_make_fx_sees_the_operator_of_gradients():
    attention = pc.compile("causal", backend="torch")
    graph = make_fx(lambda *t: torch.autograd.grad(attention(*t).sum(), t))(*leaves())
    seen = [str(n.target) for n in graph.graph.nodes if "patternc" in str(n.target)]
    assert seen == ["patternc.attention.default", "patternc.attention_backward.default"]


def test_gradients_of_an_eager_call_that_are_traced():
    tensors = leaves()
    out = pc.compile("causal", backend="torch")(*tensors)
    graph = make_fx(lambda up: torch.autograd.grad(out, tensors, up, retain_graph=True))(torch.ones_like(out))
    assert [str(n.target) for n in graph.graph.nodes if "patternc" in str(n.target)] == ["patternc.attention_backward.default"]


def test_fake_tensors():
    attention = pc.compile(MIXED, backend="torch")
    call = random_call(MIXED, n=40, heads=2)
    attention(call.q, call.k, call.v, **call.inputs)
    with FakeTensorMode() as mode:
        q, k, v = (mode.from_tensor(t).requires_grad_() for t in (call.q, call.k, call.v))
        inputs = {name: mode.from_tensor(t) for name, t in call.inputs.items()}
        out = attention(q, k, v, **inputs)
        out.sum().backward()
    assert (type(out), out.shape, q.grad.shape) == (type(q), call.q.shape, call.q.shape)
    out = pc.compile("causal", backend="torch")(q.detach(), k.detach(), v.detach())  # fake tensors outside of their mode
    assert type(out) is type(q)


class Log(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class FunctionLog(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [Log, FunctionLog])
def test_modes_see_operators(kind):
    attention = pc.compile("causal", backend="torch")
    attention(CALL.q, CALL.k, CALL.v)
    with kind() as log:
        attention(CALL.q, CALL.k, CALL.v)
    assert len([name for name in log.seen if "patternc" in name]) == 1


def test_subclasses_see_operators():
    class Tagged(torch.Tensor):
        pass

    q, k, v = (t.as_subclass(Tagged) for t in (CALL.q, CALL.k, CALL.v))
    attention = pc.compile("causal", backend="torch")
    assert type(attention(q, k, v)) is Tagged
    assert type(attention(*(torch.nn.Parameter(t) for t in (CALL.q, CALL.k, CALL.v)))) is torch.Tensor


def test_what_is_direct():
    q = CALL.q
    halves = torch.complex(q, q)
    assert operator.direct(q, q.clone().requires_grad_(), torch.nn.Parameter(q), q[:, ::2], q.half(), torch.arange(3))
    assert not operator.direct(q, halves.conj().imag)  # to be negated when it is read
    assert not operator.direct(q, torch._efficientzerotensor(q.shape))
    assert not operator.direct(q, q.to("meta"))
    assert not operator.direct(q, q.to_sparse())
    with torch.inference_mode():
        assert operator.direct(q, q * 2)
    with torch.no_grad(), torch.autocast("cpu"):
        assert operator.direct(q)
    for mode in (FakeTensorMode(), Log(), FunctionLog(), torch.device("cpu"), forward_ad.dual_level()):
        with mode:
            assert not operator.direct(q)
        assert operator.direct(q)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap, torch.func.functionalize])
def test_transforms_are_not_direct(transform):
    seen = []

    def run(t):
        seen.extend([operator.direct(t), operator.direct(CALL.q)])
        return t.sum()

    transform(run)(CALL.q)
    assert seen == [False, False]


@pytest.mark.filterwarnings("ignore")
def test_traced_calls_are_not_direct():
    attention = pc.compile("causal", backend="torch")
    traced = torch.jit.trace(lambda q, k, v: attention(q, k, v), (CALL.q, CALL.k, CALL.v), check_trace=False)
    assert "patternc::attention" in str(traced.graph)


def test_a_view_to_be_negated():
    q, k, v = (torch.complex(t, t).conj().imag for t in (CALL.q, CALL.k, CALL.v))
    attention = pc.compile("causal", backend="torch")
    assert torch.equal(attention(q, k, v), attention(-CALL.q, -CALL.k, -CALL.v))


def test_forward_mode_gets_no_tangents():
    attention = pc.compile("causal", backend="torch")
    with forward_ad.dual_level():
        q = forward_ad.make_dual(CALL.q, CALL.q)
        assert forward_ad.unpack_dual(attention(q, CALL.k, CALL.v)).tangent is None
        with pytest.raises(NotImplementedError, match="jvp"):
            attention(q, *leaves()[1:])


def test_second_derivatives_are_refused_on_both_routes(monkeypatch):
    attention = pc.compile("causal", backend="torch")
    for route in (nullcontext(), through_operators(monkeypatch)):
        q, k, v = leaves()
        with route:
            (grad,) = torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)
            with pytest.raises(RuntimeError, match=r"patternc.attention_backward.*no autograd formula"):
                grad.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_on_both_routes(reentrant, monkeypatch):
    attention = pc.compile("causal & random(3)", backend="torch")
    found = []
    for checkpointed, route in ((False, nullcontext()), (True, nullcontext()), (True, through_operators(monkeypatch))):
        tensors = leaves()
        run = lambda q, k, v: attention(q * 2, k, v).sin()  # noqa: E731
        with route:
            out = torch.utils.checkpoint.checkpoint(run, *tensors, use_reentrant=reentrant) if checkpointed else run(*tensors)
            out.sum().backward()
        found.append([t.grad for t in tensors])
    for plain, *others in zip(*found, strict=True):
        assert all(torch.equal(plain, other) for other in others)


def test_selective_checkpoint_sees_operators():
    attention = pc.compile("causal", backend="torch")
    kept = [torch.ops.patternc.attention.default]
    saved = lambda: torch.utils.checkpoint.create_selective_checkpoint_contexts(kept)  # noqa: E731
    grads = []
    for options in ({}, {"context_fn": saved}):
        tensors = leaves()
        torch.utils.checkpoint.checkpoint(attention, *tensors, use_reentrant=False, **options).square().sum().backward()
        grads.append([t.grad for t in tensors])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_saved_tensors_go_through_hooks():
    tensors, packed = leaves(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        out = pc.compile("causal", backend="torch")(*tensors)
    out.sum().backward()
    assert CALL.q.shape in packed


def test_autocast_on_both_routes(monkeypatch):
    attention = pc.compile("causal", backend="torch")
    found = []
    for route in (nullcontext(), through_operators(monkeypatch)):
        with route, torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(outcome(attention, CALL))
    assert found[0][0].dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_inference_mode():
    attention = pc.compile("causal", backend="torch")
    with torch.inference_mode():
        out = attention(*leaves())
        assert operators(lambda: attention(CALL.q, CALL.k, CALL.v)) == []
    assert out.is_inference()
    assert torch.equal(out, attention(CALL.q, CALL.k, CALL.v))


def test_no_graph_below_autograd():
    """As inside another operator's kernel."""
    with torch._C._AutoDispatchBelowAutograd():
        assert not pc.compile("causal", backend="torch")(*leaves()).requires_grad


def test_runtime_inputs_make_no_graph(monkeypatch):
    table = torch.ones(10, 10, requires_grad=True)
    attention = pc.compile("layout(table, 4)", backend="torch")
    for route in (nullcontext(), through_operators(monkeypatch)):
        with route:
            assert not attention(CALL.q, CALL.k, CALL.v, table=table).requires_grad
