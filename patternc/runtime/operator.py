"""The torch operators behind a call, so that `torch.compile`, export and autograd see one opaque node each.

A kernel is named by its pattern's text: any process can rebuild it. Torch takes longer to dispatch to an operator than a
short kernel takes to run, so where there is nothing to dispatch on (`direct`), `call` does the same without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, reduce
from operator import or_
from typing import Any

import torch
from torch import _C, Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

from patternc.backend import Request
from patternc.pattern import parse
from patternc.runtime.compile import failures, kernel, serving

MAX_LENGTH = 1 << 24


def _bits(*names: str) -> int:
    return reduce(or_, (_C.DispatchKeySet(getattr(_C.DispatchKey, name)).raw_repr() for name in names))


# What the dispatcher looks at in a thread without modes, transforms and tracing, and in a tensor that is just memory.
THREAD_KEYS = _bits("BackendSelect", "ADInplaceOrView")
TENSOR_KEYS = _bits(
    "ADInplaceOrView", *(stage + device for stage in ("", "Autograd", "Autocast") for device in ("CPU", "CUDA"))
)


def direct(*tensors: Tensor) -> bool:
    """Whether an operator on these tensors would do nothing but run its kernel and note the gradients."""
    if torch.compiler.is_compiling() or has_torch_function(tensors) or forward_ad._current_level >= 0:
        return False
    keys = _C._dispatch_tls_local_include_set().raw_repr() & ~THREAD_KEYS
    for t in tensors:
        if not isinstance(t, Tensor):
            return False
        keys |= _C._dispatch_keys(t).raw_repr() & ~TENSOR_KEYS
    return keys == 0


def request_of(q: Tensor, v: Tensor) -> Request:
    """The request that a call makes of a backend."""
    return _request(*_key(q, v))


def _key(q: Tensor, v: Tensor) -> tuple[torch.device, torch.dtype, int, int, int]:
    """What a request is made from. Kernels are specialised to the head_dims, under torch.compile too."""
    return q.device, q.dtype, int(q.shape[3]), int(v.shape[3]), v.shape[2]


def _request(device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, length: int) -> Request:
    return Request(device.type, str(dtype).removeprefix("torch."), head_dim, value_dim, length, generation_of(device))


@lru_cache(maxsize=64)
def generation_of(device: torch.device) -> int:
    """The major compute capability of an NVIDIA GPU, and 0 for everything else."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_capability(device)[0] if nvidia else 0


def module_of(program: str, layer: int, backend: str, q: Tensor, v: Tensor) -> Any:
    """The loaded kernel that serves a call; an empty ``backend`` leaves the choice to the request."""
    key = _key(q, v)
    find = _module if type(key[-1]) is int else _module.__wrapped__  # a symbolic length has no hash
    return find(program, layer, backend, *key)


@lru_cache(maxsize=4096)
def _module(program: str, layer: int, backend: str, *key: Any) -> Any:
    """Kept for each length, because the backend may depend on it; the kernel does not."""
    request = _request(*key)
    return kernel(program, layer, serving(parse(program), layer, request, backend), replace(request, length=0))


def fit(q: Any, k: Any, v: Any) -> bool:
    """Whether nothing is wrong with a call, in less time than `check_call` takes to say what is."""
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        return False
    return _fit(q.device, k.device, v.device, q.dtype, k.dtype, v.dtype, q.shape, k.shape, v.shape)


def _fit(d: Any, d1: Any, d2: Any, dtype: torch.dtype, dtype1: Any, dtype2: Any, a: Any, b: Any, c: Any) -> bool:
    return bool(
        len(a) == len(b) == len(c) == 4
        and d == d1 == d2
        and dtype == dtype1 == dtype2
        and dtype.is_floating_point
        and a[0] == b[0] == c[0]
        and b[1] == c[1] > 0
        and a[1] % b[1] == 0
        and a[2] <= b[2] == c[2] <= MAX_LENGTH
        and a[3] == b[3] > 0
    )


@lru_cache(maxsize=4096)
def ready(program: str, backend: str, *kinds: Any) -> tuple[Any, str, float] | None:
    """What a call without inputs needs: its kernel, device type and usual scale; None where it does not fit.

    ``kinds`` are the devices, the dtypes and the shapes of q, k and v: all that has to be looked at, in one look.
    """
    if not _fit(*kinds):
        return None
    device, dtype, q, v = kinds[0], kinds[3], kinds[6], kinds[8]
    return _module(program, 0, backend, device, dtype, q[3], v[3], v[2]), device.type, float(q[3] ** -0.5)


def _from_compiler(error: Exception) -> bool:
    """Whether a kernel could not be compiled, or needs more than the GPU has."""
    return type(error).__module__.startswith("triton.") or "PassManager" in str(error)


def _give_up(program: str, layer: int, q: Tensor, v: Tensor, error: Exception) -> None:
    """Leave a pattern to the next backend that can run it, and say so.

    Raises:
        ValueError: there is none.
    """
    pattern, request = parse(program), request_of(q, v)
    name, reason = serving(pattern, layer, request), str(error).strip().split("\n")[-1].strip()
    failures(pattern, layer, name, replace(request, length=0)).append(f"its kernel does not compile: {reason}")
    _module.cache_clear()
    ready.cache_clear()
    other = serving(pattern, layer, request)
    message = f"the {name} kernel of {program!r} does not compile here ({reason}); the {other} backend runs it"
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _by_name(module: Any, tensors: list[Tensor], *, scores: bool) -> dict[str, Tensor]:
    names = [name for name, kind, _ in module.INPUTS if (kind == "scores") <= scores]
    return dict(zip(names, tensors, strict=True))


@torch.library.custom_op("patternc::select", mutates_args=())
def select(
    q: Tensor, k: Tensor, v: Tensor, inputs: list[Tensor], program: str, layer: int, backend: str, scale: float | None = None
) -> list[Tensor]:
    """The lists of keys that the pattern's selections pick."""
    module = module_of(program, layer, backend, q, v)
    found: list[Tensor] = module.selections(q, k, _by_name(module, inputs, scores=True), scale)
    return found


@select.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, inputs: list[Tensor], program: str, layer: int, backend: str, scale: float | None = None
) -> list[Tensor]:
    module = module_of(program, layer, backend, q, v)
    shapes = module.selection_shapes(q, k, _by_name(module, inputs, scores=True))
    return [q.new_empty(shape, dtype=torch.int32) for shape in shapes]


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inputs: list[Tensor],
    chosen: list[Tensor],
    program: str,
    layer: int,
    backend: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (B, H, Nq, Dv) and log-sum-exp (B, H, Nq)."""
    return _run(module_of(program, layer, backend, q, v), q, k, v, inputs, chosen, program, layer, backend, scale)


def _run(module: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """`_forward` by the kernel ``module``; ``rest`` is what it takes besides."""
    inputs, chosen, program, layer, backend, scale = rest
    try:
        out, lse = module.forward(q, k, v, _by_name(module, inputs, scores=False) if inputs else {}, chosen, scale)
    except Exception as error:
        if backend or not _from_compiler(error):
            raise
        _give_up(program, layer, q, v, error)
        return _forward(q, k, v, *rest)
    return out, lse


attention = torch.library.custom_op("patternc::attention", _forward, mutates_args=())


@attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inputs: list[Tensor],
    chosen: list[Tensor],
    program: str,
    layer: int,
    backend: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=wide)


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inputs: list[Tensor],
    chosen: list[Tensor],
    program: str,
    layer: int,
    backend: str,
    scale: float,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    module = module_of(program, layer, backend, q, v)
    if not hasattr(module, "backward"):
        module = module_of(program, layer, "torch", q, v)
    given = q, k, v, _by_name(module, inputs, scores=False), chosen, scale, out, lse, grad_out, grad_lse
    try:
        dq, dk, dv = module.backward(*given)
    except Exception as error:
        if backend or not _from_compiler(error):
            raise
        _give_up(program, layer, q, v, error)
        return _gradients(q, k, v, inputs, chosen, program, layer, backend, scale, out, lse, grad_out, grad_lse)
    return dq, dk, dv


attention_backward = torch.library.custom_op("patternc::attention_backward", _gradients, mutates_args=())


@attention_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, tensors, chosen, *rest = inputs
    ctx.save_for_backward(q, k, v, *output, *tensors, *chosen)
    ctx.split, ctx.rest = (len(tensors), len(chosen)), rest


def _wanted(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of q, k and v that are needed."""
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    inputs, chosen = tensors[: ctx.split[0]], tensors[ctx.split[0] :]
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    # Gradients that are to be differentiated again come from the operator, which says that they cannot be.
    plain = not torch.is_grad_enabled() and direct(q, k, v, out, lse, *tensors, grad_out, grad_lse)
    run: Callable[..., tuple[Tensor, Tensor, Tensor]] = _gradients if plain else attention_backward
    grads = run(q, k, v, inputs, chosen, *ctx.rest, out, lse, grad_out, grad_lse)
    return tuple(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=False))


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    lists = [[None] * count for count in ctx.split]
    return *_wanted(ctx, grad_out, grad_lse), *lists, None, None, None, None


attention.register_autograd(_backward, setup_context=_save)


class _Attention(torch.autograd.Function):
    """What the operator is to autograd, without the operator."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, module: Any, rest: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        output = _run(module, q, k, v, *rest)
        _save(ctx, (q, k, v, *rest), output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        return *_wanted(ctx, grad_out, grad_lse), None, None


def call(module: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """What the operator ``attention`` gives, of tensors that are `direct`, by the kernel ``module``."""
    differentiable = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if differentiable and not _C._dispatch_tls_is_dispatch_key_excluded(_C.DispatchKey.AutogradFunctionality):
        found: tuple[Tensor, Tensor] = _Attention.apply(q, k, v, module, rest)  # type: ignore[no-untyped-call]
        return found
    return _run(module, q, k, v, *rest)
