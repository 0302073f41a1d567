"""The torch operators behind a call, so that `torch.compile`, export and autograd see one opaque node each.

A kernel is named by its pattern's text: any process can rebuild it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from patternc.backend import Request, choose
from patternc.runtime.compile import kernel


def request_of(q: Tensor, v: Tensor) -> Request:
    """The request that a call makes of a backend."""
    dtype = str(q.dtype).removeprefix("torch.")
    head_dim, value_dim = int(q.shape[3]), int(v.shape[3])  # kernels are specialised to them, under torch.compile too
    return Request(q.device.type, dtype, head_dim, value_dim, v.shape[2], _generation(q.device))


@lru_cache(maxsize=64)
def _generation(device: torch.device) -> int:
    nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_capability(device)[0] if nvidia else 0


def module_of(program: str, layer: int, backend: str, q: Tensor, v: Tensor) -> Any:
    """The loaded kernel that serves a call; an empty ``backend`` leaves the choice to the request."""
    request = request_of(q, v)
    return kernel(program, layer, choose(request, backend).name, replace(request, length=0))


def _by_name(module: Any, tensors: list[Tensor], *, scores: bool) -> dict[str, Tensor]:
    names = [name for name, kind, _ in module.INPUTS if (kind == "scores") <= scores]
    return dict(zip(names, tensors, strict=True))


@torch.library.custom_op("patternc::select", mutates_args=())
def select(q: Tensor, k: Tensor, v: Tensor, inputs: list[Tensor], program: str, layer: int, backend: str) -> list[Tensor]:
    """The lists of keys that the pattern's selections pick."""
    module = module_of(program, layer, backend, q, v)
    found: list[Tensor] = module.selections(q, k, _by_name(module, inputs, scores=True))
    return found


@select.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, inputs: list[Tensor], program: str, layer: int, backend: str) -> list[Tensor]:
    module = module_of(program, layer, backend, q, v)
    shapes = module.selection_shapes(q, k, _by_name(module, inputs, scores=True))
    return [q.new_empty(shape, dtype=torch.int32) for shape in shapes]


@torch.library.custom_op("patternc::attention", mutates_args=())
def attention(
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
    module = module_of(program, layer, backend, q, v)
    out, lse = module.forward(q, k, v, _by_name(module, inputs, scores=False), chosen, scale)
    return out, lse


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


@torch.library.custom_op("patternc::attention_backward", mutates_args=())
def attention_backward(
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
    dq, dk, dv = module.backward(q, k, v, _by_name(module, inputs, scores=False), chosen, scale, out, lse, grad_out, grad_lse)
    return dq, dk, dv


@attention_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, tensors, chosen, *rest = inputs
    ctx.save_for_backward(q, k, v, *output, *tensors, *chosen)
    ctx.split, ctx.rest = len(tensors), rest


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    inputs, chosen = tensors[: ctx.split], tensors[ctx.split :]
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    grads = attention_backward(q, k, v, inputs, chosen, *ctx.rest, out, lse, grad_out, grad_lse)
    wanted = (g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=False))
    return *wanted, [None] * len(inputs), [None] * len(chosen), None, None, None, None


attention.register_autograd(_backward, setup_context=_setup)
