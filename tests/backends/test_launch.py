"""What the host code of Triton files does to launch a kernel: Triton looks at the arguments of a known case once."""

import os

import pytest

import patternc as pc
from patternc.backend import Request
from patternc.runtime.compile import emit_source
from patternc.runtime.loader import load

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("in the interpreter there is nothing to launch", allow_module_level=True)

from patternc.backends import triton_kernel  # noqa: E402 - needs triton

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
    triton_kernel.launch(kernel, (3, 1, 1), case, ("q", 7), {"num_warps": 4})
    assert kernel.bound == [((3, 1, 1), ("q", 7), {"num_warps": 4})]
    triton_kernel.launch(kernel, (5, 1, 1), case, ("k", 8), {"num_warps": 4})
    assert (len(kernel.bound), kernel.launched) == (1, [((5, 1, 1), ("k", 8))])
    triton_kernel.launch(kernel, (5, 1, 1), (*case, 1), ("k", 8), {"num_warps": 4})
    triton_kernel.launch(Kernel(), (5, 1, 1), case, ("k", 8), {"num_warps": 4})
    assert (len(kernel.bound), len(kernel.launched)) == (2, 1)


def test_the_interpreter_binds_every_time():
    kernel, case = Kernel(interpreted=True), ((torch.device("cpu"),),)
    for _ in range(2):
        triton_kernel.launch(kernel, (1, 1, 1), case, (), {})
    assert len(kernel.bound) == 2


def test_kernels_are_launched_where_q_is(current):
    kernel = Kernel()
    places = []
    kernel.bound = type("Places", (list,), {"append": lambda self, _: places.append(current[-1])})()
    kernel.launched = type("Places", (list,), {"append": lambda self, _: places.append(current[-1])})()
    for _ in range(2):
        triton_kernel.launch(kernel, (1, 1, 1), ((CUDA, torch.float16),), (), {})
    assert places == [1, 1]
    assert current == [0, 1, 0, 1, 0]
    triton_kernel.launch(kernel, (1, 1, 1), ((torch.device("cuda", 0), torch.float16),), (), {})
    assert (places, current[5:]) == ([1, 1, 0], [])


def test_what_kind_an_argument_is():
    whole = torch.zeros(64, dtype=torch.uint8)
    base = whole.data_ptr() % 16
    kinds = [triton_kernel.kind(whole[i:]) for i in range(17)]
    assert kinds == [(base + i) % 16 for i in range(17)]
    assert triton_kernel.kind(None) is True
    assert triton_kernel.kind(3) is triton_kernel.kind(4) is False


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
