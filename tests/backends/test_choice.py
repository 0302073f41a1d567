"""Which backend runs a pattern: by the request, by the plan, and, where its kernels do not compile, by what is left."""

import subprocess
import sys
import warnings
from dataclasses import replace

import pytest

import patternc as pc
from patternc.backend import Request, backend_named
from patternc.lower.phases import lower, with_queries
from patternc.lower.plan import Gather, Tile
from patternc.testing import random_call

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from triton.compiler.errors import CompilationError  # noqa: E402 - needs triton

from patternc.backends.emit_triton import TritonBackend  # noqa: E402
from patternc.runtime import operator  # noqa: E402 - needs torch
from patternc.runtime.compile import candidates, complete, failures, plan_for, serving, usual  # noqa: E402

HOPPER = Request("cuda", "bfloat16", 128, 128, 0, 9)
CPU = Request("cpu", "float32", 16, 16, 0, 0)
ONE_BY_ONE = "it copies tiles of keys, and this pattern picks keys one by one"


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """Kernels are compiled, wherever these tests run."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


# Requests and plans.

ON_HOPPER = {
    "causal": "gluon",
    "window(7) | stride(64)": "gluon",
    "bigbird": "gluon",
    "causal & document(ids)": "gluon",
    "layout(table, 64)": "gluon",
    "causal & random(3)": "triton",
    "causal & topk(scores, 8)": "gluon",
    "causal & (window(9) | topk(meanpool(16), 2, block=16))": "gluon",
    "heads(causal + (window(9) | random(2)))": "triton",
}


@pytest.mark.parametrize("text", ON_HOPPER)
def test_what_serves_a_pattern_on_hopper(text):
    pattern, wanted = pc.parse(text), ON_HOPPER[text]
    assert serving(pattern, None, HOPPER) == wanted
    attention = pc.compile(pattern)
    assert attention.plan == plan_for(pattern, backend=wanted)
    assert f"{wanted} backend" in attention.source
    plan = plan_for(pattern, None, "gluon", HOPPER)
    gathers = any(isinstance(phase, Gather) for group in plan.heads for phase in group.phases)
    assert gathers == (wanted == "triton")
    assert backend_named("gluon").refused(plan, HOPPER) == ([ONE_BY_ONE] if gathers else [])
    for name in ("triton", "torch", "reference"):
        assert backend_named(name).refused(plan_for(pattern, None, name, HOPPER), HOPPER) == []


GENERATION = "it is for NVIDIA GPUs of compute capability 9.x"
ELSEWHERE = {
    "an older GPU": ({"generation": 8}, "triton", [GENERATION]),
    "a newer GPU": ({"generation": 10}, "triton", [GENERATION]),
    "a GPU that is not NVIDIA's": ({"generation": 0}, "triton", [GENERATION]),
    "float32": ({"dtype": "float32"}, "triton", ["dtype float32 is not one of float16, bfloat16"]),
    "head_dim": ({"head_dim": 20}, "triton", ["head_dim 20 is not a multiple of 8"]),
    "value head_dim": ({"value_dim": 36}, "triton", ["value head_dim 36 is not a multiple of 8"]),
    "wide heads": ({"head_dim": 264}, "torch", ["head_dim 264 is over 256"]),
    "a CPU": (
        {"device": "cpu", "generation": 0, "dtype": "float64"},
        "torch",
        ["it runs on cuda devices, not cpu", "dtype float64 is not one of float16, bfloat16", GENERATION],
    ),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_what_serves_other_requests(case):
    """And what the Gluon backend says of them when it is asked for by name."""
    change, wanted, reasons = ELSEWHERE[case]
    pattern, request = pc.parse("causal"), replace(HOPPER, **change)
    assert serving(pattern, None, request) == wanted
    assert pc.compile(pattern).plan_for(request) == plan_for(pattern, None, wanted, request)
    with pytest.raises(ValueError, match="the gluon backend cannot run this call") as caught:
        serving(pattern, None, request, "gluon")
    assert str(caught.value) == f"the gluon backend cannot run this call: {', '.join(reasons)}"


def test_a_plan_is_refused_by_name():
    with pytest.raises(ValueError, match=f"the gluon backend cannot run this call: {ONE_BY_ONE}"):
        serving(pc.parse("causal & random(3)"), None, HOPPER, "gluon")


def test_what_usually_serves_a_pattern_does_not_depend_on_this_machine(monkeypatch):
    monkeypatch.setattr(sys.modules[TritonBackend.__module__], "find_spec", lambda _: None)  # triton is not installed
    for text, wanted in ON_HOPPER.items():
        assert (serving(pc.parse(text), None, HOPPER), usual(pc.parse(text))) == ("torch", wanted)
    assert usual(pc.parse("causal"), None, replace(HOPPER, generation=8)) == "triton"
    assert usual(pc.parse("causal"), None, CPU) == "torch"


WITHOUT_TRITON = """
import sys
from importlib.machinery import PathFinder

class WithoutTriton(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "triton" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTriton
import torch
import patternc as pc

q = torch.ones(1, 1, 8, 16)
assert bool((pc.attention(q, q, q, "causal") == q).all())
try:
    pc.compile("causal", backend="gluon")(q, q, q)
except ValueError as error:
    print(error)
"""


def test_triton_need_not_be_installed():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the gluon backend cannot run this call: triton is not installed" in done.stdout


def test_layers_may_be_served_by_different_backends():
    pattern = pc.parse("layers(causal + random(3))")
    assert [serving(pattern, layer, HOPPER) for layer in (0, 1)] == ["gluon", "triton"]


# The gradient of queries in tiles of its own.


@pytest.mark.parametrize("text", ["causal", "local(40) | global([0])", "causal & (window(64) | stride(64))", "bigbird"])
def test_queries_in_their_own_tile(text):
    """The same pattern lowered again: masks, passes and heads are those of a plan in that tile."""
    pattern, tile = pc.parse(text), Tile(64, 32)
    plan = lower(pattern, Tile(128, 128), views=True, splits=True)
    found = with_queries(plan, pattern, tile)
    assert (found.query_tile, found.queries) == (tile, lower(pattern, tile, views=True, splits=True).heads)
    assert found.queries != plan.heads
    assert replace(found, query_tile=None, queries=()) == plan


@pytest.mark.parametrize("name", ["gluon", "triton", "torch"])
def test_a_plan_has_queries_of_its_own_where_tiles_differ(name):
    pattern, backend = pc.parse("causal & window(4096)"), backend_named(name)
    for head_dim in (64, 256):
        request = replace(HOPPER, head_dim=head_dim, value_dim=head_dim)
        tile = backend.query_tile(request)
        for one in candidates(pattern, None, name, request):
            done = complete(one.plan, pattern, None, name, request)
            assert done.query_tile == (None if one.plan.tile == tile else tile)
            assert bool(done.queries) == (done.query_tile is not None)
    both = {one.plan.tile for one in candidates(pattern, None, "gluon", HOPPER)}
    assert both == {Tile(64, 64), Tile(128, 128)}


# Kernels that do not compile.

ERRORS = {
    "Triton's": lambda: CompilationError("out = a @", None, "no such product"),
    "the compiler's": lambda: RuntimeError("PassManager::run failed"),
}


def not_compiled(monkeypatch, text, error, ways=("forward",)):
    """The kernel of the torch backend, which would run a pattern here, does not compile; what it is asked for."""
    failures.cache_clear()
    operator._module.cache_clear()
    operator.ready.cache_clear()
    module = operator.module_of(str(pc.parse(text)), 0, "torch", *[torch.zeros(1, 1, 1, 16)] * 2)
    asked = []

    def fails(*_, way):
        asked.append(way)
        raise error()

    for way in ways:
        monkeypatch.setattr(module, way, lambda *given, way=way: fails(*given, way=way))
    return asked


@pytest.fixture
def forgotten():
    """What failed in a test is not known after it."""
    yield
    failures.cache_clear()
    operator._module.cache_clear()
    operator.ready.cache_clear()


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("error", ERRORS)
def test_a_kernel_that_does_not_compile_leaves_the_pattern_to_the_next_backend(error, monkeypatch):
    text = "causal & (window(9) | document(ids))"
    call = random_call(text, n=40, heads=2)
    wanted = pc.compile(text, backend="reference")(call.q, call.k, call.v, return_lse=True, **call.inputs)
    asked, attention = not_compiled(monkeypatch, text, ERRORS[error]), pc.compile(text)
    assert attention.plan_for(CPU) == plan_for(attention.pattern, None, "torch", CPU)
    reason = str(ERRORS[error]()).strip().split("\n")[-1].strip()
    message = f"the torch kernel of {text!r} does not compile here ({reason}); the reference backend runs it"
    with pytest.warns(RuntimeWarning) as said:
        found = attention(call.q, call.k, call.v, return_lse=True, **call.inputs)
    assert [str(one.message) for one in said] == [message]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

    with warnings.catch_warnings():  # the same again, other lengths and another object: nothing is tried, nothing is said
        warnings.simplefilter("error")
        for n in (40, 30):
            again = random_call(text, n=n, heads=2)
            pc.compile(text)(again.q, again.k, again.v, **again.inputs)
    assert asked == ["forward"]
    with pytest.raises(type(ERRORS[error]())):  # whoever names it wants to know
        pc.attention(call.q, call.k, call.v, text, backend="torch", **call.inputs)
    assert asked == ["forward", "forward"]
    assert attention.plan_for(CPU) == plan_for(attention.pattern, None, "reference", CPU)
    assert attention.plan_for(CPU) != plan_for(attention.pattern, None, "torch", CPU)
    assert "reference backend" in attention.source_for(CPU)
    assert pc.compile("causal").plan_for(CPU) == plan_for(pc.parse("causal"), None, "torch", CPU)  # others are as before


@pytest.mark.usefixtures("forgotten")
def test_gradients_that_do_not_compile(monkeypatch):
    """The output came from one backend, its gradients come from the next; nothing is computed twice after that."""
    text = "causal & (window(9) | stride(16))"
    call = random_call(text, n=40, heads=2)
    leaves = [t.requires_grad_() for t in (call.q, call.k, call.v)]
    wanted = torch.autograd.grad(pc.compile(text, backend="reference")(*leaves).square().sum(), leaves)
    asked, attention = not_compiled(monkeypatch, text, ERRORS["Triton's"], ("backward",)), pc.compile(text)
    out = attention(*leaves)
    with pytest.warns(RuntimeWarning, match="does not compile here .*; the reference backend runs it"):
        found = torch.autograd.grad(out.square().sum(), leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.autograd.grad(attention(*leaves).sum(), leaves)
    assert asked == ["backward"]


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_a_backend_that_was_named_fails(way, monkeypatch):
    text = "causal & window(9)"
    call = random_call(text, n=40)
    asked = not_compiled(monkeypatch, text, ERRORS["Triton's"], (way,))
    for _ in range(2):
        with pytest.raises(CompilationError):
            pc.compile(text, backend="torch")(call.q.requires_grad_(), call.k, call.v).sum().backward()
    assert asked == [way, way]


@pytest.mark.usefixtures("forgotten")
def test_other_errors_are_not_the_compilers(monkeypatch):
    text = "causal & window(9)"
    call = random_call(text, n=40)
    not_compiled(monkeypatch, text, lambda: RuntimeError("CUDA out of memory"))
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        pc.attention(call.q, call.k, call.v, text)


@pytest.mark.usefixtures("forgotten")
def test_no_backend_is_left(monkeypatch):
    """The error lists what failed."""
    text = "causal & window(9)"
    call = random_call(text, n=40)
    not_compiled(monkeypatch, text, ERRORS["Triton's"])
    reference = operator.module_of(str(pc.parse(text)), 0, "reference", call.q, call.v)
    monkeypatch.setattr(reference, "forward", operator.module_of(str(pc.parse(text)), 0, "torch", call.q, call.v).forward)
    with (
        pytest.warns(RuntimeWarning, match="the reference backend runs it"),
        pytest.raises(ValueError, match="no backend") as caught,
    ):
        pc.attention(call.q, call.k, call.v, text)
    for name in ("torch", "reference"):
        assert f"{name}: its kernel does not compile: " in str(caught.value)
