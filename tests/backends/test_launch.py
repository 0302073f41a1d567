"""What the host code of Triton files does to launch a kernel: Triton looks at the arguments of a known case once."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest

import patternc as pc
from patternc.backend import Request
from patternc.runtime.compile import emit_source
from patternc.runtime.loader import load

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("in the interpreter there is nothing to launch", allow_module_level=True)

from patternc.backends import launch_kernel  # noqa: E402 - needs triton

CUDA = torch.device("cuda", 1)


class Kernel:
    """A kernel as Triton's are: it binds what it is given, launches, and returns what it launched."""

    def __init__(self, interpreted=False):
        self.bound, self.launched, self._interpreted = [], [], interpreted

    def __getitem__(self, grid):
        def bind(*given, **options):
            self.bound.append((grid, given, options))
            return None if self._interpreted else Compiled(self)

        return bind


class Compiled:
    def __init__(self, kernel):
        self._kernel = kernel

    def __getitem__(self, grid):
        return lambda *given: self._kernel.launched.append((grid, given))


@pytest.fixture
def current(monkeypatch):
    """The devices that are made current, from device 0 on, on a machine that may have none."""
    seen = [0]

    class Device:
        def __init__(self, device):
            self._index = device.index

        def __enter__(self):
            seen.append(self._index)

        def __exit__(self, *_):
            seen.append(seen[-2])

    monkeypatch.setattr(torch.cuda, "current_device", lambda: seen[-1])
    monkeypatch.setattr(torch.cuda, "device", Device)
    return seen


def test_a_known_case_is_not_bound_again():
    kernel, case = Kernel(), ((torch.device("cpu"), torch.bfloat16), 0)
    launch_kernel.launch(kernel, (3, 1, 1), case, ("q", 7), {"num_warps": 4})
    assert kernel.bound == [((3, 1, 1), ("q", 7), {"num_warps": 4})]
    launch_kernel.launch(kernel, (5, 1, 1), case, ("k", 8), {"num_warps": 4})
    assert (len(kernel.bound), kernel.launched) == (1, [((5, 1, 1), ("k", 8))])
    launch_kernel.launch(kernel, (5, 1, 1), (*case, 1), ("k", 8), {"num_warps": 4})
    launch_kernel.launch(Kernel(), (5, 1, 1), case, ("k", 8), {"num_warps": 4})
    assert (len(kernel.bound), len(kernel.launched)) == (2, 1)


def test_the_interpreter_binds_every_time():
    kernel, case = Kernel(interpreted=True), ((torch.device("cpu"),),)
    for _ in range(2):
        launch_kernel.launch(kernel, (1, 1, 1), case, (), {})
    assert len(kernel.bound) == 2


def test_kernels_are_launched_where_q_is(current):
    kernel = Kernel()
    places = []
    kernel.bound = type("Places", (list,), {"append": lambda self, _: places.append(current[-1])})()
    kernel.launched = type("Places", (list,), {"append": lambda self, _: places.append(current[-1])})()
    for _ in range(2):
        launch_kernel.launch(kernel, (1, 1, 1), ((CUDA, torch.float16),), (), {})
    assert places == [1, 1]
    assert current == [0, 1, 0, 1, 0]
    launch_kernel.launch(kernel, (1, 1, 1), ((torch.device("cuda", 0), torch.float16),), (), {})
    assert (places, current[5:]) == ([1, 1, 0], [])


def test_what_kind_an_argument_is():
    whole = torch.zeros(64, dtype=torch.uint8)
    base = whole.data_ptr() % 16
    kinds = [launch_kernel.kind(whole[i:]) for i in range(17)]
    assert kinds == [(base + i) % 16 for i in range(17)]
    assert launch_kernel.kind(None) is True
    assert launch_kernel.kind(3) is launch_kernel.kind(4) is False


# Whole calls.

Q = torch.zeros(2, 4, 200, 64, dtype=torch.bfloat16)
K = torch.zeros(2, 2, 200, 64, dtype=torch.bfloat16)
IDS = torch.zeros(1 << 9, dtype=torch.int32)


def kernels_of(text, patch):
    """The emitted module, and the kernels that it launches."""
    module = load(emit_source(pc.parse(text), "triton", None, Request("cuda", "bfloat16", 64, 64, 0, 9)))
    found = {name for name, value in vars(module).items() if isinstance(value, triton.runtime.JITFunction)}
    kernels = {name: Kernel() for name in found if name.startswith(("kernel_g", "queries_g", "keys_g"))}
    for name, kernel in kernels.items():
        patch.setattr(module, name, kernel)
    return module, kernels


def call(module, q=Q, k=K, v=K, lse=None, scale=0.1, **inputs):
    out, own = module.forward(q, k, v, inputs, [], scale)
    lse = own if lse is None else lse
    module.backward(q, k, v, inputs, [], scale, out, lse, out, own)


def counts(kernels):
    return {len(kernel.bound) for kernel in kernels.values()}, {len(kernel.launched) for kernel in kernels.values()}


def test_a_second_call_binds_nothing(monkeypatch):
    """Nor does one with other tensors in the same places, or with another scale."""
    module, kernels = kernels_of("causal & (window(40) | stride(40))", monkeypatch)
    call(module)
    assert len(kernels) > 3
    assert counts(kernels) == ({1}, {0})
    call(module)
    call(module, Q + 1, K + 1, K + 1)
    call(module, scale=0.3)
    assert counts(kernels) == ({1}, {3})


OTHERS = {
    "length": {"q": Q[:, :, :100], "k": K[:, :, :100], "v": K[:, :, :100]},
    "fewer queries": {"q": Q[:, :, :160]},
    "batch": {"q": Q[:1], "k": K[:1], "v": K[:1]},
    "heads": {"q": Q[:, :2]},
    "strides": {"q": Q.transpose(1, 2).contiguous().transpose(1, 2)},
    "dtype": {"q": Q.half(), "k": K.half(), "v": K.half()},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tensors_are_another_case(name, monkeypatch):
    module, kernels = kernels_of("causal & (window(40) | stride(40))", monkeypatch)
    call(module)
    call(module, **OTHERS[name])
    assert counts(kernels) == ({2}, {0})
    call(module, **OTHERS[name])
    call(module)
    assert counts(kernels) == ({2}, {2})


@pytest.mark.parametrize("first", [1, 3])
def test_where_a_runtime_input_begins_is_another_case(first, monkeypatch):
    """Triton compiles wide loads for memory that begins at a multiple of 16 bytes, and those would be wrong elsewhere."""
    module, kernels = kernels_of("causal & document(ids)", monkeypatch)
    bounds = module.document_bounds  # which begin where they are allocated
    monkeypatch.setattr(module, "document_bounds", lambda ids: bounds(ids.clone()))
    call(module, ids=IDS[:200])
    call(module, ids=IDS[4:204])
    assert counts(kernels) == ({1}, {1})
    call(module, ids=IDS[first : first + 200])
    assert counts(kernels) == ({2}, {1})
    call(module, ids=IDS[first : first + 200])
    call(module, ids=IDS[:200])
    assert counts(kernels) == ({2}, {3})


def test_where_the_output_begins_is_another_case_of_the_gradients(monkeypatch):
    module, kernels = kernels_of("causal", monkeypatch)
    wide = torch.zeros(2 * 4 * 200 + 4)
    call(module, lse=wide[:1600].view(2, 4, 200))
    call(module, lse=wide[1:1601].view(2, 4, 200))
    call(module, lse=wide[4:1604].view(2, 4, 200))
    assert {name: len(kernel.bound) for name, kernel in kernels.items()} == {"kernel_g0": 1, "queries_g0": 2, "keys_g0": 2}


def test_scales_are_of_one_type(monkeypatch):
    """Triton compiles whole numbers into kernels, where a later call with another scale would find them."""
    module, kernels = kernels_of("causal", monkeypatch)
    for scale in (1, 2.0, torch.tensor(0.5)):
        module.attention(Q, K, K, scale=scale)
    kernel = kernels["kernel_g0"]
    every = [given for _, given, _ in kernel.bound] + [given for _, given in kernel.launched]
    assert [[x for x in given if isinstance(x, float)] for given in every] == [[1.0], [2.0], [0.5]]
    assert counts({"kernel_g0": kernel}) == ({1}, {2})


@pytest.mark.parametrize("backend", ["triton", "gluon"])
@pytest.mark.parametrize("n", [1, 64])
def test_descriptors_of_axes_of_one(backend, n):
    """The step of an axis of one element is whatever the tensor was cut from; descriptors take steps of 16 bytes."""
    module = load(emit_source(pc.parse("causal"), backend, None, Request("cuda", "bfloat16", 64, 64, 0, 9)))
    t = torch.empty(4096, dtype=torch.bfloat16).as_strided((1, 1, n, 64), (3, 5, 7 if n == 1 else 64, 1))
    view = (module.described if backend == "triton" else module.shared_view)(t, 1, 64, 64, 9)
    assert view.shape == [1, 1, 1, n, 64]
    assert all(step % 8 == 0 for step in view.strides[:-1])


# Triton's own launcher, on a driver that writes down the last call.

nvidia = pytest.importorskip("triton.backends.nvidia.driver")
META = {"swizzle": 3, "elem_size": 2, "elem_type": 9, "block_size": [1, 1, 1, 64, 64], "fp4_padded": False}


class Driver:
    """A function that is not written in Python."""

    def __init__(self, calls):
        self._calls = calls

    def __call__(self, *passed):
        self._calls.append(passed)


@pytest.fixture
def driver(monkeypatch):
    """What is called in the end, for each launch, and how often a descriptor is made."""
    calls, filled = [], []

    def fill(address, *_):
        filled.append(address)
        return f"map of {address:x}"

    names = ("launch", "build_signature_metadata", "fill_tma_descriptor", "fill_tma_descriptor_tiled")
    functions = (Driver(calls), len, fill, fill)
    utils = SimpleNamespace(**dict(zip(names, functions, strict=True)))
    active = SimpleNamespace(utils=utils, get_current_device=lambda: None, get_current_stream=lambda _: 17)
    monkeypatch.setattr(triton.runtime.driver, "_active", active)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # as the index of the CPU
    for name in ("ARG_KERNEL", "ARG_CONSTEXPR", "ARG_TUPLE"):
        monkeypatch.setattr(nvidia, name, name, raising=False)
    monkeypatch.setattr(nvidia, "PyKernelArg", lambda **given: tuple(given.values()), raising=False)
    if hasattr(nvidia, "make_launcher"):  # Triton 3.6 compiles a launcher for each signature
        monkeypatch.setattr(nvidia, "library_dirs", list)
        monkeypatch.setattr(nvidia, "make_launcher", lambda *_: "")
        monkeypatch.setattr(nvidia, "compile_module_from_src", lambda **_: utils)
    return SimpleNamespace(calls=calls, filled=filled, utils=utils)


def compiled_for(kernel, given, **changed):
    """What Triton would have compiled for some arguments, without the code."""
    signature, metas = {}, []
    for name, argument in zip(kernel.arg_names, given, strict=True):
        if hasattr(argument, "block_shape"):
            signature[name] = "tensordesc<bf16[1, 1, 1, 64, 64]>"
            metas.append(META)
        elif argument is None or name.isupper():
            signature[name] = "constexpr"
        else:
            signature[name] = "*bf16" if isinstance(argument, torch.Tensor) else "fp32" if name == "scale" else "i32"
    scratch = {f"{kind}_scratch_{what}": 0 for kind in ("global", "profile") for what in ("size", "align")}
    flags = {"num_ctas": 1, "launch_cooperative_grid": False, "launch_pdl": False}
    fields = {"tensordesc_meta": metas, **flags, **scratch, **changed}
    compiled = object.__new__(triton.compiler.CompiledKernel)
    source, metadata = SimpleNamespace(constants={}, signature=signature, fn=kernel), SimpleNamespace(**fields)
    made = {"name": "kernel", "function": 1234, "packed_metadata": (4, 1, 99), "module": "loaded"}
    vars(compiled).update(src=source, metadata=metadata, **made)
    compiled._run = nvidia.CudaLauncher(source, metadata)
    return compiled


class Bound(Kernel):
    """A kernel that Triton compiles at its first launch."""

    def __init__(self, kernel, **changed):
        super().__init__()
        self.arg_names, self._kernel, self._changed, self.compiled = kernel.arg_names, kernel, changed, []

    def __getitem__(self, grid):
        def bind(*given, **options):
            self.bound.append((grid, given, options))
            self.compiled.append(compiled_for(self._kernel, given, **self._changed))
            self.compiled[-1][grid](*given)
            return self.compiled[-1]

        return bind


def emitted(text, backend, patch, generation=9, **changed):
    """An emitted module as it is on a GPU of some compute capability, and its kernel."""
    module = load(emit_source(pc.parse(text), backend, None, Request("cuda", "bfloat16", 64, 64, 0, 9)))
    kernel = Bound(module.kernel_g0, **changed)
    patch.setattr(module, "kernel_g0", kernel)
    patch.setattr(module, "generation_of", lambda _: generation)
    patch.setattr(module, "processors", lambda _: 132, raising=False)
    module.setting.cache_clear()
    module.known_call.cache_clear()
    return module, kernel


def plain(passed):
    """A last call without what it says of hooks, and with tensors by their addresses."""
    flat = [y for x in passed for y in (x if isinstance(x, tuple | list) else [x])]
    flat = [x for x in flat if not isinstance(x, triton.compiler.compiler.LazyDict | triton.knobs.HookChain) and x is not None]
    return [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in flat]


@pytest.fixture(params=["triton", "gluon"])
def causal(request, driver, monkeypatch):
    module, kernel = emitted("causal", request.param, monkeypatch)
    yield SimpleNamespace(module=module, kernel=kernel, driver=driver)
    module.setting.cache_clear()


def tensors(*shape):
    return [torch.randn(shape or (2, 4, 200, 64)).bfloat16() for _ in range(3)]


def of_triton(one, kernel, given, grid):
    """The last call of Triton's own for some arguments."""
    kernel.compiled[0][grid](*given)
    return plain(one.driver.calls.pop())


def is_triton_s(passed):
    """Whether a last call was Triton's own, which has its hooks to call."""
    return any(isinstance(x, triton.knobs.HookChain) for x in passed)


def given_again(kernel, **own):
    """The arguments of a kernel's first launch, but for some."""
    _, first, _ = kernel.bound[0]
    views = {f"{name[0]}_view": t for name, t in own.items() if isinstance(t, torch.Tensor)}
    given = zip(kernel.arg_names, first, strict=True)
    return [replace(x, base=views[name]) if hasattr(x, "base") else own.get(name, x) for name, x in given]


@pytest.mark.parametrize("n", [200, 192])
def test_repeated_calls_pass_what_triton_passes(causal, n):
    repeat(causal, n)


def test_repeated_calls_without_descriptors(driver, monkeypatch):
    module, kernel = emitted("causal", "triton", monkeypatch, generation=8)
    repeat(SimpleNamespace(module=module, kernel=kernel, driver=driver), 200)
    assert driver.filled == []
    module.setting.cache_clear()


def repeat(causal, n):
    module, kernel, driver = causal.module, causal.kernel, causal.driver
    module.forward(*tensors(2, 4, n, 64), {}, [], 0.1)
    assert is_triton_s(driver.calls[-1])
    for scale in (0.1, 0.3):
        q, k, v = tensors(2, 4, n, 64)
        out, lse = module.forward(q, k, v, {}, [], scale)
        assert (out.shape, out.dtype, lse.shape, lse.dtype) == (q.shape, q.dtype, q.shape[:3], torch.float32)
        assert out.is_contiguous()
        assert lse.is_contiguous()
        passed = driver.calls.pop()
        assert not is_triton_s(passed)
        own = {"q_ptr": q, "k_ptr": k, "v_ptr": v, "out_ptr": out, "prior_ptr": out, "lse_ptr": lse, "scale": scale}
        assert plain(passed) == of_triton(causal, kernel, given_again(kernel, **own), kernel.bound[0][0])
    assert len(kernel.bound) == 1


@pytest.fixture
def deterministic():
    """Where one kernel for all gradients may not run."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_launches_of_gradients_pass_what_triton_passes(causal, monkeypatch):
    module, driver = causal.module, causal.driver
    kind = "specialised_" if hasattr(module, "specialised_keys_g0") else ""
    names = f"{kind}queries_g0", f"{kind}keys_g0"
    kernels = [Bound(getattr(module, name)) for name in names]
    for name, kernel in zip(names, kernels, strict=True):
        monkeypatch.setattr(module, name, kernel)
    first, again = [(t, t + 1, t - 1) for t in tensors()[:2]]
    out, lse = module.forward(*first, {}, [], 0.1)
    module.backward(*first, {}, [], 0.1, out, lse, first[0], lse)
    del driver.calls[:]
    module.backward(*again, {}, [], 0.1, out, lse, again[0], lse)
    assert not any(map(is_triton_s, driver.calls))
    q, k, v = again
    for kernel, passed in zip(kernels, list(driver.calls), strict=True):
        own = {"q_ptr": q, "k_ptr": k, "v_ptr": v, "grad_ptr": q}
        expected = of_triton(causal, kernel, given_again(kernel, **own), kernel.bound[0][0])
        assert len(kernel.bound) == 1
        assert sum(a != b for a, b in zip(plain(passed), expected, strict=True)) <= 6  # delta, norm and the gradients


def test_a_descriptor_is_made_once_for_a_place(causal):
    module, driver = causal.module, causal.driver
    tried = [tensors() for _ in range(4)]
    for some in (tried[0], *tried, *tried):
        module.forward(*some, {}, [], 0.1)
    made = len(driver.filled)
    for some in tried:
        module.forward(*some, {}, [], 0.1)
    assert len(driver.filled) == made
    q, k, v = tensors()
    for _ in range(2):
        module.forward(q, k, v, {}, [], 0.1)
        assert f"map of {k.data_ptr():x}" in str(driver.calls[-1])
        assert f"map of {v.data_ptr():x}" in str(driver.calls[-1])


def test_other_shapes_in_the_same_place_are_another_call(causal):
    module, kernel = causal.module, causal.kernel
    memory = [torch.zeros(2 * 4 * 200 * 64).bfloat16() for _ in range(3)]
    shapes = (2, 4, 200, 64), (4, 2, 200, 64), (2, 4, 100, 64), (1, 8, 200, 64)
    for _ in range(2):
        for b, h, n, d in shapes:
            out, _ = module.forward(*(t[: b * h * n * d].view(b, h, n, d) for t in memory), {}, [], 0.1)
            assert out.shape == (b, h, n, d)
    q, k, v = (t.view(2, 200, 4, 64).transpose(1, 2) for t in memory)
    module.forward(q, k, v, {}, [], 0.1)
    assert len(kernel.bound) == len(shapes) + 1
    del causal.driver.calls[:]
    for b, h, n, d in shapes:
        module.forward(*(t[: b * h * n * d].view(b, h, n, d) for t in memory), {}, [], 0.1)
        passed = plain(causal.driver.calls.pop())
        at = [i for i, x in enumerate(passed) if str(x).startswith("map of")]
        assert [passed[i + 1 : i + 6] for i in at] == [[b, h, 1, n, d]] * 2


def test_calls_that_are_not_repeated(causal):
    module, kernel, driver = causal.module, causal.kernel, causal.driver
    wide = torch.zeros(2 * 4 * 200 * 64 + 8).bfloat16()
    q, k, v = tensors()
    for _ in range(2):
        module.forward(q, k, v, {}, [], 0.1)
    with pytest.raises(TypeError, match="no runtime input 'ids'"):
        module.forward(q, k, v, {"ids": q}, [], 0.1)
    own = module.known_call(q.device, q.dtype, q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride())
    beside = wide[1:-7].view(q.shape)
    assert own[0](q, k, v, 0.1) is not None
    assert own[0](beside, k, v, 0.1) is None
    module.forward(beside, k, v, {}, [], 0.1)  # of a copy
    assert len(kernel.bound) == 1
    assert not is_triton_s(driver.calls[-1])


def test_an_unaligned_first_call_is_not_repeated(causal):
    wide = torch.zeros(2 * 4 * 200 * 64 + 8).bfloat16()
    q, k, v = tensors()
    causal.module.forward(wide[1:-7].view(q.shape), k, v, {}, [], 0.1)
    assert not causal.module.known_call(q.device, q.dtype, *[q.shape] * 3, *[q.stride()] * 3)


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_are_told_of_every_launch(causal, name, monkeypatch):
    module, driver = causal.module, causal.driver
    hook = lambda *_: None  # noqa: E731
    chain = getattr(triton.knobs.runtime, name)
    module.forward(*tensors(), {}, [], 0.1)
    for told in (True, False):
        chain.add(hook) if told else chain.remove(hook)
        for _ in range(2):
            module.forward(*tensors(), {}, [], 0.1)
            assert is_triton_s(driver.calls[-1]) == told
    monkeypatch.setattr(triton.knobs.runtime, name, hook)  # as it was set before there were chains
    module.forward(*tensors(), {}, [], 0.1)
    assert hook in driver.calls[-1]


def test_the_stream_is_the_current_one(causal, monkeypatch):
    causal.module.forward(*tensors(), {}, [], 0.1)
    for stream in (5, 6):
        monkeypatch.setattr(triton.runtime.driver.active, "get_current_stream", lambda _, stream=stream: stream)
        launch_kernel.Launcher(causal.kernel.compiled[0])((1, 1, 1), causal.kernel.bound[0][1])
        assert causal.driver.calls[-1][3] == stream


CHANGES = {"scratch": {"global_scratch_size": 1}, "no metadata": {"tensordesc_meta": []}}


@pytest.mark.parametrize("name", CHANGES)
def test_other_kernels_are_launched_by_triton(causal, name):
    causal.module.forward(*tensors(), {}, [], 0.1)
    given = causal.kernel.bound[0][1]
    assert launch_kernel.last_call(compiled_for(causal.kernel, given)) is not None
    assert launch_kernel.last_call(compiled_for(causal.kernel, given, **CHANGES[name])) is None


def test_other_versions_of_triton_launch_by_themselves(causal, monkeypatch):
    causal.module.forward(*tensors(), {}, [], 0.1)
    compiled = causal.kernel.compiled[0]
    known = launch_kernel.last_call(compiled)
    for of in (lambda self, *passed: None, lambda self, *passed: self.launch(*passed[::-1]), lambda self: self.launch()):
        with monkeypatch.context() as patch:
            patch.setattr(nvidia.CudaLauncher, "__call__", of)
            assert launch_kernel.last_call(compiled) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.4")
        assert launch_kernel.last_call(compiled) is None
    assert launch_kernel.last_call(compiled)[1] == known[1]


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("causal", True),
        ("causal & window(40)", True),
        ("full", True),
        ("causal & document(ids)", False),
        ("layout(table, 64)", False),
        ("causal & (window(40) | stride(40))", False),
        ("heads(causal + full)", False),
        ("causal & random(3)", True),
    ],
)
def test_which_calls_are_repeated(text, repeated):
    source = emit_source(pc.parse(text), "triton", None, Request("cuda", "bfloat16", 64, 64, 0, 9))
    assert ("known_call(q.device" in source) == repeated
