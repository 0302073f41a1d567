"""The torch kernel: copied verbatim, after the support code, into every file that `emit_torch` writes.

Work and memory follow the tiles: for each row tile the keys it may read are visited in spans, with an online softmax; the
backward pass recomputes the probabilities from the log-sum-exp.
"""

from dataclasses import dataclass
from typing import Any

import torch

from patternc.runtime.support import Scope, check_call, head_ids, prepare, selections, without_autocast

SPAN = 2048  # keys of one step
ELEMENTS = 1 << 22  # scores of one step
GATHERED = 1 << 24  # gathered key elements of one step


@dataclass(frozen=True)
class Walk:
    """Key tiles of each row tile in closed form: ``tiles(I, n)`` yields (J, masked)."""

    tiles: Any
    mask: Any
    documents: tuple = ()


@dataclass(frozen=True)
class Listed:
    """Key tiles that ``blocks(scope, q)`` lists, as (block size, key blocks) of the queries q, where ``active(I, J, n)``."""

    blocks: Any
    active: Any
    mask: Any


@dataclass(frozen=True)
class Gather:
    """Keys of each query one by one: ``keys(scope, q)`` of shape (b, h, rows, slots), -1 where there are fewer."""

    keys: Any
    mask: Any


@dataclass(frozen=True)
class Heads:
    """The heads that share a plan: runs (first, count) of each period."""

    runs: tuple
    period: int
    selections: int
    phases: tuple

    @property
    def separate(self):
        """Whether heads and batches may read different key tiles."""
        return any(isinstance(phase, Listed) for phase in self.phases)


def _chunks(batch, heads, separate):
    """Batches and heads of each step, few enough that its scores stay near the caches."""
    size = 1 if separate else max(1, ELEMENTS // (ROWS * SPAN))
    batches = max(1, size // max(1, heads.numel()))
    for b in range(0, batch, batches):
        for part in heads.split(size):
            if part.numel():
                yield slice(b, min(batch, b + batches)), part


def _spans(tiles, n):
    """Touching tiles as spans of at most SPAN keys: (first, end, [(first, end) of the masked parts])."""
    spans = []
    for j, masked in sorted(tiles):
        first, end = j * COLUMNS, min(n, (j + 1) * COLUMNS)
        if spans and spans[-1][1] == first and end - spans[-1][0] <= SPAN:
            spans[-1][1] = end
        else:
            spans.append([first, end, []])
        parts = spans[-1][2]
        if masked and parts and parts[-1][1] == first:
            parts[-1][1] = end
        elif masked:
            parts.append([first, end])
    return spans


def _tiles(phase, scope, tile, rows):
    """The key tiles (J, masked) of a row tile for the batches and heads of a scope."""
    if isinstance(phase, Walk):
        found = phase.tiles(tile, scope.n)
        for name in phase.documents:
            first, end = scope.inputs[f"{name}:bounds"]
            batch, _ = scope.pick(first[:, None])
            low, high = int(first[batch.flatten(), rows[0]].min()), int(end[batch.flatten(), rows[-1]].max())
            found = [(j, masked) for j, masked in found if j * COLUMNS < high and (j + 1) * COLUMNS > low]
        return found
    found = set()
    for block, keys in phase.blocks(scope, rows):
        for key in torch.unique(keys).tolist():
            if key >= 0:
                found.update(range(key * block // COLUMNS, (min(scope.n, (key + 1) * block) - 1) // COLUMNS + 1))
    return [(j, True) for j in found if phase.active(tile, j, scope.n)]


def _steps(group, scope, tile, rows):
    """What a row tile reads, step by step: (key indices, mask or None). A slice of keys, or a gather (b, h, rows, slots)."""
    q = rows[:, None]
    for phase in group.phases:
        if isinstance(phase, Gather):
            keys = phase.keys(scope, q)
            valid = (keys >= 0) & phase.mask(scope, q, keys.clamp(min=0))
            slots = torch.where(valid.flatten(0, -2).any(0))[0]
            size = max(1, GATHERED // max(1, scope.head.numel() * scope.batch.numel() * len(rows) * scope.width))
            for part in slots.split(size) if len(slots) else ():
                yield keys.clamp(min=0)[..., part], valid[..., part]
            continue
        for first, end, masked in _spans(_tiles(phase, scope, tile, rows), scope.n):
            mask = None
            if masked:
                k = torch.arange(first, end, device=rows.device)
                parts = [(a, b, phase.mask(scope, q, k[None, a - first : b - first])) for a, b in masked]
                mask = _joined(parts, first, end)
            yield slice(first, end), mask


def _joined(parts, first, end):
    """One mask over a span from the masks of its masked parts; the rest is true."""
    if len(parts) == 1 and parts[0][0] == first and parts[0][1] == end:
        return parts[0][2]
    shape = torch.broadcast_shapes(*(mask.shape[:-1] for _, _, mask in parts))
    whole = torch.ones(*shape, end - first, dtype=torch.bool, device=parts[0][2].device)
    for a, b, mask in parts:
        whole[..., a - first : b - first] = mask
    return whole


def _scores(q, keys, index, mask, kv):
    """Scores of a step and the keys they are of: q (b, h, rows, d) against keys (b, kv heads, n, d)."""
    if isinstance(index, slice):
        part = keys[:, :, index] if kv is None else keys[:, kv, index]
        part = part.to(q.dtype)
        scores = q @ part.transpose(-1, -2)
    else:
        part = _gathered(keys, index, kv, q)
        scores = (part @ q[..., None])[..., 0]
    return part, scores if mask is None else scores.masked_fill_(~mask, -torch.inf)


def _gathered(values, index, kv, q):
    """Rows of ``values`` (b, kv heads, n, d) at index (b or 1, h or 1, rows, slots): (b, h, rows, slots, d)."""
    batch = torch.arange(q.shape[0], device=q.device).view(-1, 1, 1, 1)
    head = (torch.arange(q.shape[1], device=q.device) if kv is None else kv).view(-1, 1, 1)
    return values[batch, head, index].to(q.dtype)


def _setup(q, k, v, inputs, chosen):
    batch, heads, n_q, _ = q.shape
    n = k.shape[2]
    ready = prepare(inputs, batch, heads, n, q.device, scores=False)
    sharing, at = heads // k.shape[1], 0
    for group in GROUPS:
        ids = head_ids(group.runs, group.period, heads, q.device)
        ready["selections"] = chosen[at : at + group.selections]
        at += group.selections
        for bs, hs in _chunks(batch, ids, group.separate):
            scope = Scope(n, torch.arange(batch, device=q.device)[bs].view(-1, 1, 1, 1), hs.view(-1, 1, 1), dict(ready))
            scope.width = max(k.shape[3], v.shape[3])
            whole = len(hs) == heads and sharing == 1
            kv = None if whole else torch.div(hs, sharing, rounding_mode="floor")
            for tile in range((n - n_q) // ROWS, (n - 1) // ROWS + 1):
                first, end = max(n - n_q, tile * ROWS), min(n, (tile + 1) * ROWS)
                rows = torch.arange(first, end, device=q.device)
                yield group, scope, bs, (slice(None) if whole else hs), kv, tile, rows, slice(first - n + n_q, end - n + n_q)


def _compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@without_autocast
def forward(q, k, v, inputs, chosen, scale):
    """Output (b, h, n_q, d_v) in q's dtype and log-sum-exp (b, h, n_q) in float32 (float64 for float64)."""
    wide = _compute_dtype(q.dtype)
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:3], -torch.inf, dtype=wide, device=q.device)
    for group, scope, bs, hs, kv, tile, rows, at in _setup(q, k, v, inputs, chosen):
        tile_q = q[bs, hs, at].to(wide) * scale
        top = total = acc = None
        for index, mask in _steps(group, scope, tile, rows):
            _, scores = _scores(tile_q, k[bs], index, mask, kv)
            peak = scores.amax(-1, keepdim=True)
            new_top = peak if top is None else torch.maximum(top, peak)
            scores = scores.sub_(new_top.masked_fill(new_top == -torch.inf, 0)).exp_()
            if isinstance(index, slice):
                values = (v[bs][:, :, index] if kv is None else v[bs][:, kv, index]).to(wide)
                add = scores @ values
            else:
                add = (scores[..., None, :] @ _gathered(v[bs], index, kv, tile_q))[..., 0, :]
            if top is None:
                total, acc = scores.sum(-1, keepdim=True), add
            else:
                decay = (top - new_top).masked_fill_(new_top == -torch.inf, 0).exp_()
                total = total.mul_(decay).add_(scores.sum(-1, keepdim=True))
                acc = acc.mul_(decay).add_(add)
            top = new_top
        if top is not None:
            empty = total == 0
            out[bs, hs, at] = (acc / total.masked_fill(empty, 1)).to(q.dtype)
            lse[bs, hs, at] = (total.log() + top).masked_fill(empty, -torch.inf)[..., 0]
    return out, lse


@without_autocast
def backward(q, k, v, inputs, chosen, scale, out, lse, grad_out, grad_lse):
    """Gradients of q, k and v. With p = exp(s - lse): ds = p (dO.v - dO.o + dlse)."""
    wide = _compute_dtype(q.dtype)
    dq = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    dk = torch.zeros(k.shape, dtype=wide, device=q.device)
    dv = torch.zeros(v.shape, dtype=wide, device=q.device)
    for group, scope, bs, hs, kv, tile, rows, at in _setup(q, k, v, inputs, chosen):
        tile_q = q[bs, hs, at].to(wide)
        tile_do = grad_out[bs, hs, at].to(wide)
        delta = (tile_do * out[bs, hs, at].to(wide)).sum(-1, keepdim=True) - grad_lse[bs, hs, at].to(wide)[..., None]
        norm = lse[bs, hs, at][..., None]
        norm = norm.masked_fill(norm == -torch.inf, torch.inf)
        acc = torch.zeros_like(tile_q)
        for index, mask in _steps(group, scope, tile, rows):
            part, scores = _scores(tile_q * scale, k[bs], index, mask, kv)
            p = scores.sub_(norm).exp_()
            if isinstance(index, slice):
                values = (v[bs][:, :, index] if kv is None else v[bs][:, kv, index]).to(wide)
                ds = (tile_do @ values.transpose(-1, -2)).sub_(delta).mul_(p).mul_(scale)
                acc += ds @ part
                add_k, add_v = ds.transpose(-1, -2) @ tile_q, p.transpose(-1, -2) @ tile_do
                if kv is None:
                    dk[bs, :, index] += add_k
                    dv[bs, :, index] += add_v
                else:
                    dk[bs, :, index].index_add_(1, kv, add_k)
                    dv[bs, :, index].index_add_(1, kv, add_v)
            else:
                values = _gathered(v[bs], index, kv, tile_q)
                ds = ((values @ tile_do[..., None])[..., 0] - delta).mul_(p).mul_(scale)
                acc += (ds[..., None, :] @ part)[..., 0, :]
                _scatter(dk[bs], index, kv, ds[..., None] * tile_q[..., None, :])
                _scatter(dv[bs], index, kv, p[..., None] * tile_do[..., None, :])
        dq[bs, hs, at] = acc.to(q.dtype)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _scatter(total, index, kv, add):
    """Add (b, h, rows, slots, d) to the rows of ``total`` (b, kv heads, n, d) that the index names."""
    b, h, rows, slots, d = add.shape
    head = torch.arange(h, device=add.device) if kv is None else kv
    flat = (torch.arange(b, device=add.device).view(-1, 1, 1, 1) * total.shape[1] + head.view(-1, 1, 1)) * total.shape[2]
    places = (flat + index.expand(b, h, rows, slots)).flatten()
    view = total.view(-1, d) if total.is_contiguous() else None
    if view is not None:
        view.index_add_(0, places, add.reshape(-1, d))
    else:
        flat_sum = torch.zeros(total.numel() // d, d, dtype=total.dtype, device=total.device)
        total += flat_sum.index_add_(0, places, add.reshape(-1, d)).view(total.shape)


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
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with torch.no_grad():
        chosen = selections(q, k, inputs)
    out, lse = _Attention.apply(q, k, v, inputs, chosen, scale)
    return (out, lse) if return_lse else out
