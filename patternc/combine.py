"""Joining the results of several attentions exactly: by log-sum-exp, by gates, and with a logit that has no value.

All of it is plain torch on outputs (B, H, Nq, Dv) and log-sum-exps (B, H, Nq): any device, differentiable, traced by
torch.compile. A query that read no key has log-sum-exp -inf; whatever its output holds, NaN included, counts as 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from patternc.diagnostics import suggest


def merge(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One attention over disjoint sets of keys, from the attentions over each of them.

    With l_i the log-sum-exp of part i: lse = log sum_i exp(l_i), out = sum_i exp(l_i - lse) out_i (the combination of
    FlashAttention's and Flash-Decoding's partial results). A key that two parts read counts twice.

    Args:
        outputs: the parts' outputs, (B, H, Nq, Dv) each, of one dtype and device.
        lses: their log-sum-exps, (B, H, Nq) each; -inf where a part has no key for a query.

    Returns:
        out (B, H, Nq, Dv) in the outputs' dtype and lse (B, H, Nq) in float32 (float64 for float64), both differentiable in
        all outputs and lses. A query that no part has keys for gets output 0, log-sum-exp -inf and zero gradients.

    Raises:
        ValueError: no parts, not one lse for each output, or shapes or devices that differ.
        TypeError: something other than floating-point tensors, or outputs of several dtypes.
    """
    if len(outputs) == 0 or len(outputs) != len(lses):
        raise ValueError(f"merge takes one lse for each output and at least one of both, got {len(outputs)} and {len(lses)}")
    first = outputs[0]
    for i, (out, lse) in enumerate(zip(outputs, lses, strict=True)):
        _check_output(f"outputs[{i}]", out, first)
        _check_rows(f"lses[{i}]", lse, first)
    wide = _wide(first)
    logs = torch.stack([lse.to(wide) for lse in lses])
    some = logs.amax(0) > -torch.inf
    total = logs.masked_fill(~some, 0).logsumexp(0)  # the 0 keeps NaN out of the gradients of rows without keys
    shares = torch.exp(logs - total).masked_fill(~some, 0)
    out = torch.zeros_like(first, dtype=wide)
    for share, lse, one in zip(shares, lses, outputs, strict=True):
        out = out + share[..., None] * _silenced(one, lse).to(wide)
    return out.to(first.dtype), total.masked_fill(~some, -torch.inf)


def gated(outputs: Mapping[str, Tensor], gates: Mapping[str, Tensor], lses: Mapping[str, Tensor] | None = None) -> Tensor:
    """Several attentions, each with a softmax and with keys and values of its own, weighed by gates.

    out[b, h, t] = sum_c gates[c][b, h, t] * outputs[c][b, h, t], over named branches c: the gated sum of compressed, selected
    and window attention of Native Sparse Attention (NSA, Yuan et al. 2025, arXiv:2502.11089), whose gates are sigmoids of
    the query's features. Unlike `merge` this is no softmax over all keys: gates are used as they are.

    Args:
        outputs: the branches' outputs by name, (B, H, Nq, Dv) each, of one dtype and device.
        gates: a gate for each branch, (B, H, Nq) each, of any floating dtype.
        lses: log-sum-exps of some branches, (B, H, Nq) each: where one is -inf, its branch counts as 0 whatever its output
            holds. Attention of this library needs none: its output is 0 there already.

    Returns:
        (B, H, Nq, Dv) in the outputs' dtype, summed in float32 (float64 for float64); differentiable in outputs and gates.

    Raises:
        ValueError: no branches, a branch without gate or a gate without branch, or shapes or devices that differ.
        TypeError: something other than floating-point tensors, or outputs of several dtypes.
    """
    if not outputs:
        raise ValueError("gated takes at least one branch, got none")
    for what, given in (("gate", gates), ("lse", lses or {})):
        for name in given:
            if name not in outputs:
                hint = suggest(name, outputs) or f"the branches are {', '.join(outputs)}"
                raise ValueError(f"there is a {what} for '{name}' and no such branch; {hint}")
    for name in outputs:
        if name not in gates:
            raise ValueError(f"the branch '{name}' has no gate; the gates are for {', '.join(gates) or 'none'}")
    first = next(iter(outputs.values()))
    total = torch.zeros_like(first, dtype=_wide(first))
    for name, out in outputs.items():
        _check_output(f"outputs['{name}']", out, first)
        _check_rows(f"gates['{name}']", gates[name], first)
        if lses is not None and name in lses:
            _check_rows(f"lses['{name}']", lses[name], first)
            out = _silenced(out, lses[name])
        total = total + gates[name].to(total.dtype)[..., None] * out.to(total.dtype)
    return total.to(first.dtype)


def with_sink(out: Tensor, lse: Tensor, sink_logit: Tensor) -> tuple[Tensor, Tensor]:
    """Attention with one more logit for each head, which has no value: what it draws goes nowhere.

    With z the sink of the head: lse' = log(exp(lse) + exp(z)) and out' = out * exp(lse - lse'). That is the softmax over the
    scores and z with the last column left out, as in gpt-oss (OpenAI 2025). The sink is not scaled as scores are.

    Args:
        out: (B, H, Nq, Dv), an attention's output.
        lse: (B, H, Nq), its log-sum-exp.
        sink_logit: (H,), the learned logits; -inf for a head without.

    Returns:
        out' in out's dtype and lse' in lse's dtype, differentiable in all three. A query without keys keeps output 0 and gets
        lse' = z: its gradient reaches z alone.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: something other than floating-point tensors.
    """
    _check_output("out", out, out)
    _check_rows("lse", lse, out)
    check_sink(sink_logit, out)
    logs, sink = lse.to(_wide(out)), sink_logit.to(_wide(out))[:, None].expand(lse.shape)
    dead = (logs == -torch.inf) & (sink == -torch.inf)
    logs, sink = logs.masked_fill(dead, 0), sink.masked_fill(dead, 0)
    kept = torch.sigmoid(logs - sink).masked_fill(dead, 0)
    total = torch.logaddexp(logs, sink).masked_fill(dead, -torch.inf)
    return (_silenced(out, lse).to(kept.dtype) * kept[..., None]).to(out.dtype), total.to(lse.dtype)


def check_sink(sink_logit: Tensor, q: Tensor) -> None:
    """Refuse a sink that does not fit queries or outputs (B, H, Nq, D)."""
    _check_tensor("sink_logit", sink_logit, q)
    if tuple(sink_logit.shape) != (q.shape[1],):
        raise ValueError(f"sink_logit must have shape ({q.shape[1]},), one logit for each head, got {tuple(sink_logit.shape)}")


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _silenced(out: Tensor, lse: Tensor) -> Tensor:
    """The output with 0 for queries without keys, whatever it holds there."""
    return out.masked_fill((lse == -torch.inf)[..., None], 0)


def _check_tensor(name: str, t: Tensor, like: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if not t.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {t.dtype}")
    if t.device != like.device:
        raise ValueError(f"{name} is on {t.device}, and the first output or q on {like.device}; they must be on one device")


def _check_output(name: str, out: Tensor, first: Tensor) -> None:
    _check_tensor(name, out, first)
    if out.dim() != 4:
        raise ValueError(f"{name} must have shape (batch, heads, queries, value_dim), got {tuple(out.shape)}")
    if out.shape != first.shape:
        raise ValueError(f"{name} has shape {tuple(out.shape)}, and the first output {tuple(first.shape)}; they must be equal")
    if out.dtype != first.dtype:
        raise TypeError(f"{name} is {out.dtype}, and the first output {first.dtype}; they must have one dtype")


def _check_rows(name: str, t: Tensor, out: Tensor) -> None:
    _check_tensor(name, t, out)
    if t.shape != out.shape[:3]:
        raise ValueError(f"{name} must have shape {tuple(out.shape[:3])}, one number for each query, got {tuple(t.shape)}")
