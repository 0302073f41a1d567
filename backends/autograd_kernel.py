"""Attention for people, differentiable: copied verbatim after the kernels whose `forward` and `backward` it calls."""

import torch

from patternc.runtime.selecting import selections
from patternc.runtime.support import check_call


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, inputs, chosen, scale):
        out, lse = forward(q, k, v, inputs, chosen, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rest = inputs, chosen, scale
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, grad_lse):
        q, k, v, out, lse = ctx.saved_tensors
        inputs, chosen, scale = ctx.rest
        return *backward(q, k, v, inputs, chosen, scale, out, lse, grad_out, grad_lse), None, None, None


def attention(q, k, v, *, scale=None, return_lse=False, **inputs):
    """Sparse attention of q (b, h, n_q, d), k (b, h_kv, n, d), v (b, h_kv, n, d_v): out (b, h, n_q, d_v), and lse if asked."""
    check_call(q, k, v)
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)  # kernels are compiled for numbers of one type
    with torch.no_grad():
        chosen = selections(q, k, inputs, scale)
    out, lse = _Attention.apply(q, k, v, inputs, chosen, scale)
    return (out, lse) if return_lse else out
