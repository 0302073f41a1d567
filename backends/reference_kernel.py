"""The dense reference: the whole mask, the whole score matrix, a softmax. Copied into every file `emit_reference` writes."""

import torch

from patternc.runtime.support import Scope, check_call, head_ids, prepare, without_autocast
from patternc.scorers import Sight, shared


def best(scope, scorer, k, block, share, forced, may):
    """The k best allowed key blocks of each query as a mask: forced ones, then by score. ``may``: (b, h, n_q, n)."""
    n, sight = scope.n, Sight(torch, *scope.call, scope.inputs)
    heads, key_heads, n_q = sight.queries.shape[1], sight.keys.shape[1], may.shape[2]
    blocks, of_key = -(-n // block), torch.arange(n, device=may.device) // block

    def in_blocks(keys):
        counts = torch.zeros(*may.shape[:3], blocks, device=may.device)
        return counts.scatter_add(3, of_key.expand(may.shape), keys.expand(may.shape).float()) > 0

    scores = shared(scorer.rows(sight)(0, n_q), share, heads, key_heads)
    scores = scores.repeat_interleave(heads // scores.shape[1], 1)[:, scope.head.view(-1)]
    if scores.shape[3] == n:
        scores = scores.masked_fill(scores.isnan() | ~may, -torch.inf)
        lowest = scores.new_full((*may.shape[:3], blocks), -torch.inf)
        scores = lowest.scatter_reduce(3, of_key.expand(may.shape), scores.expand(may.shape), "amax")
    first = in_blocks(forced & may)
    scores = scores.masked_fill(scores.isnan() | ~in_blocks(may) | first, -torch.inf)
    rank = scores.argsort(dim=3, descending=True, stable=True).argsort(dim=3)
    return (first | ((rank < k - first.sum(3, keepdim=True)) & (scores > -torch.inf)))[..., of_key]


@without_autocast
def dense_mask(q, k, inputs, scale=None):
    """The whole mask: bool (b, h, n_q, n)."""
    batch, heads, n_q, _ = q.shape
    n, device = k.shape[2], q.device
    ready = prepare(inputs, batch, heads, n, device)
    mask = torch.zeros(batch, heads, n_q, n, dtype=torch.bool, device=device)
    rows, keys = torch.arange(n - n_q, n, device=device)[:, None], torch.arange(n, device=device)[None, :]
    for runs, period, of_group in MASKS:
        ids = head_ids(runs, period, heads, device)
        if ids.numel():
            scope = Scope(n, torch.arange(batch, device=device).view(-1, 1, 1, 1), ids.view(-1, 1, 1), ready)
            scope.call = q, k, float(q.shape[3] ** -0.5 if scale is None else scale)
            mask[:, ids] = of_group(scope, rows, keys)
    return mask


def selections(q, k, inputs, scale=None):
    """The whole mask, as the one thing that is chosen before the forward pass."""
    return [dense_mask(q, k, inputs, scale).to(torch.int32)]


def selection_shapes(q, k, inputs):
    """The shape of the mask."""
    return [(*q.shape[:3], k.shape[2])]


@without_autocast
def dense(q, k, v, mask, scale):
    """softmax(Q K^T * scale + mask) V and its log-sum-exp, in float32 (float64 for float64)."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    sharing = q.shape[1] // k.shape[1]
    keys, values = (t.to(wide).repeat_interleave(sharing, 1) for t in (k, v))
    scores = (q.to(wide) @ keys.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    some = mask.any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(~some, 0), -1) * some
    return (weights @ values).to(q.dtype), torch.logsumexp(scores, -1)


def forward(q, k, v, inputs, chosen, scale):
    """Output (b, h, n_q, d_v) in q's dtype and log-sum-exp (b, h, n_q)."""
    mask = chosen[0] if chosen else dense_mask(q, k, inputs, scale)
    return dense(q, k, v, mask.bool(), scale)


@without_autocast
def backward(q, k, v, inputs, chosen, scale, out, lse, grad_out, grad_lse):
    """Gradients of q, k and v by the equations: with P the weights, dV = P^T dO and dS = P (dO V^T - dO.O + dlse)."""
    mask = chosen[0].bool() if chosen else dense_mask(q, k, inputs, scale)
    wide, sharing = lse.dtype, q.shape[1] // k.shape[1]
    keys, values = (t.to(wide).repeat_interleave(sharing, 1) for t in (k, v))
    scores = (q.to(wide) @ keys.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    p = torch.exp(scores - lse.masked_fill(lse == -torch.inf, torch.inf)[..., None])
    do = grad_out.to(wide)
    delta = (do * out.to(wide)).sum(-1) - grad_lse
    ds = p * (do @ values.transpose(-1, -2) - delta[..., None]) * scale
    dk, dv = ds.transpose(-1, -2) @ q.to(wide), p.transpose(-1, -2) @ do
    dk, dv = (t.unflatten(1, (-1, sharing)).sum(2) for t in (dk, dv))
    return (ds @ keys).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def attention(q, k, v, *, scale=None, return_lse=False, **inputs):
    """Dense attention under the pattern's mask; differentiable."""
    check_call(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = dense(q, k, v, dense_mask(q.detach(), k.detach(), inputs, scale), scale)
    return (out, lse) if return_lse else out
