"""Training what selects keys: the scores of an indexer, the attention that it is to predict, and the loss between them.

The indexer of DeepSeek Sparse Attention (DSA; DeepSeek-V3.2, DeepSeek-AI 2025) gives query t and key s the score

    I[t, s] = sum_h w[h, t] relu(q_idx[h, t] . k_idx[s])

and `topk` reads the best keys of each query. Selecting passes no gradient, so the indexer is trained to predict attention:
`indexer_kl`. Nothing here is ever n x n: rows go by in chunks whose temporaries fit ``memory`` bytes, once for the loss and
once more for its gradients. Plain torch, on any device; sums are in float32 (float64 for float64).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patternc.pattern import Pattern
from patternc.runtime import operator
from patternc.runtime.allowed import Allowed, allowed
from patternc.runtime.attention import Attention
from patternc.runtime.support import check_call

MEMORY = 1 << 28
"""Bytes that the temporaries of a chunk of rows may take, by default; a chunk has one row at least."""


def indexer_scores(q_idx: Tensor, k_idx: Tensor, w: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """The scores of the queries start to stop: I[t, s] = sum_h w[h, t] relu(q_idx[h, t] . k_idx[s]).

    The lightning indexer of DeepSeek-V3.2 (DeepSeek-AI 2025), for all keys, those after the query too: masks are the
    pattern's. ``functools.partial(indexer_scores, q_idx, k_idx, w)`` is a runtime input of `topk` that is asked for a few
    rows at a time. DeepSeek's factor H^-1/2 D^-1/2 is the caller's, in w.

    Args:
        q_idx: (B, H, Nq, D), the indexer's queries, of any floating dtype.
        k_idx: (B, 1, N, D), its keys, one head for all queries.
        w: (B, H, Nq), the weight of each head for each query; may be negative.
        start, stop: which of the Nq queries; all by default.

    Returns:
        (B, 1, stop - start, N) in float32 (float64 for float64), differentiable by autograd in all three (which then keeps
        what it needs for every head: to train on many rows, use `indexer_kl`).

    Raises:
        ValueError: shapes or devices that do not fit, or rows that there are not.
        TypeError: something other than floating-point tensors of one dtype.
    """
    _check_indexer(q_idx, k_idx, w)
    start, stop = _span(start, stop, q_idx.shape[2])
    return _scores_of(q_idx[:, :, start:stop], k_idx, w[:, :, start:stop])


def attention_mass(
    q: Tensor,
    k: Tensor,
    start: int = 0,
    stop: int | None = None,
    *,
    indices: Tensor | None = None,
    pattern: Pattern | str | None = None,
    lse: Tensor | None = None,
    scale: float | None = None,
    memory: int = MEMORY,
    **inputs: Any,
) -> Tensor:
    """How much attention each key gets from the queries start to stop, over all heads: A[t, s] = sum_h exp(S_h[t, s] - L_h[t]).

    S = Q K^T * scale, and L is ``lse`` or, without it, the log-sum-exp over the keys in question themselves. With the lse
    of dense attention and ``indices``, the sum over s divided by H is the share of attention that a selection catches.
    ``functools.partial(attention_mass, q, k)`` is a runtime input of `topk`: the best selection that an indexer could learn.

    Args:
        q: (B, H, Nq, D), floating point.
        k: (B, Hkv, N, D) with H a multiple of Hkv; the queries are the last Nq positions.
        start, stop: which of the Nq queries; all by default. The result has N numbers for each.
        indices: (B or 1, Nq, K) integers, the keys of each query, each once, padded with -1; default: what ``pattern`` allows.
        pattern: which keys there are without indices, "causal" by default; the same for all heads, without `topk` and `random`.
        lse: (B, H, Nq), the log-sum-exp to use, such as attention returns with ``return_lse``.
        scale: the factor on the scores, 1 / sqrt(D) by default.
        memory: bytes that temporaries may take beside the result and copies of k in float32.
        inputs: the pattern's runtime inputs by name.

    Returns:
        (B, 1, stop - start, N), or (B, 1, stop - start, K) for indices, in float32 (float64 for float64), without gradient;
        0 for keys that the pattern does not allow, where the indices hold -1, and where lse is -inf.

    Raises:
        ValueError: shapes or devices that do not fit, or a pattern that cannot be used here.
        TypeError: wrong types or dtypes, or a runtime input that the pattern does not have.
        PatternError: the text is not a pattern.
    """
    keys = _keys_of(q, k, indices, pattern, inputs)
    _check_lse(lse, q)
    start, stop = _span(start, stop, q.shape[2])
    chunk = _chunk(memory, keys, q, k)
    width = k.shape[2] if indices is None else indices.shape[2]
    found = torch.zeros(q.shape[0], 1, stop - start, width, dtype=_wide(q), device=q.device)
    scale = float(q.shape[3] ** -0.5 if scale is None else scale)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        wide = k.to(_wide(q))
        for first, last in _chunks(start, stop, chunk):
            of_rows = None if lse is None else lse[:, :, first:last].to(wide.dtype)
            mass, _ = _mass(keys.take(first, last), q[:, :, first:last].to(wide.dtype), wide, of_rows, scale)
            found[:, 0, first - start : last - start, : mass.shape[2]] = mass
    return found


def indexer_kl(
    q_idx: Tensor,
    k_idx: Tensor,
    w: Tensor,
    q: Tensor,
    k: Tensor,
    *,
    indices: Tensor | None = None,
    pattern: Pattern | str | None = None,
    lse: Tensor | None = None,
    scale: float | None = None,
    memory: int = MEMORY,
    **inputs: Any,
) -> Tensor:
    """The loss of an indexer, for each query: D_KL(p || softmax(I)) over the query's keys, p being where attention goes.

    p[t, s] = A[t, s] / sum_s A[t, s] with A = `attention_mass`, head-summed and L1-normalised; I = `indexer_scores`. p is a
    constant: no gradient reaches q and k. This is the indexer's loss of DeepSeek-V3.2 (DeepSeek-AI 2025): in the warm-up
    stage over all causal keys, in the sparse stage over the selected set only (``indices``, see `selected`); the paper sums
    it over queries. Gradients are computed in a second pass over the rows:

        dI = softmax(I) - p,  dw_h = sum_s dI relu(a_h),  da_h = dI w_h [a_h > 0],  with a_h[t, s] = q_idx[h, t] . k_idx[s].

    Args:
        q_idx, k_idx, w: the indexer's (B, Hi, Nq, Di), (B, 1, N, Di) and (B, Hi, Nq), as `indexer_scores` takes them.
        q, k: attention's (B, H, Nq, D) and (B, Hkv, N, D), H a multiple of Hkv; the queries are the last Nq positions.
        indices: (B or 1, Nq, K) integers, the keys of each query, each once, padded with -1; default: what ``pattern`` allows.
        pattern: which keys there are without indices, "causal" by default, or such as "causal & document(ids)"; the same for
            all heads, without `topk` and `random`.
        lse: (B, H, Nq), attention's log-sum-exp where it is at hand; default: computed, over the query's keys. That of
            attention over more keys (or a sink) weighs heads by how much of their attention is in the set.
        scale: the factor on attention's scores, 1 / sqrt(D) by default.
        memory: bytes that temporaries may take beside the results, copies of k and k_idx in float32, and the log-sum-exps.
        inputs: the pattern's runtime inputs by name.

    Returns:
        (B, Nq) in float32 (float64 for float64): the divergence of each query, 0 where it has no keys or no mass. Sum or
        average it; differentiable once in q_idx, k_idx and w. With indices, gradients of k_idx are summed by `index_add_`,
        which is atomic on GPUs unless torch is told to be deterministic.

    Raises:
        ValueError: shapes or devices that do not fit, or a pattern that cannot be used here.
        TypeError: wrong types or dtypes, or a runtime input that the pattern does not have.
        PatternError: the text is not a pattern.
    """
    _check_indexer(q_idx, k_idx, w)
    keys = _keys_of(q, k, indices, pattern, inputs)
    _check_lse(lse, q)
    mine, wanted = (q_idx.shape[0], q_idx.shape[2], k_idx.shape[2]), (q.shape[0], q.shape[2], k.shape[2])
    if mine != wanted or q_idx.device != q.device:
        raise ValueError(
            f"the indexer has batch, queries and keys {mine} on {q_idx.device}, and attention {wanted} on {q.device}; "
            "they must be equal"
        )
    chunk = _chunk(memory, keys, q, k, q_idx)
    scale = float(q.shape[3] ** -0.5 if scale is None else scale)
    given = None if lse is None else lse.detach()
    loss: Tensor = _Divergence.apply(q_idx, k_idx, w, q.detach(), k.detach(), given, keys, scale, chunk)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def selected(attention: Attention, q: Tensor, k: Tensor, v: Tensor, **inputs: Any) -> Tensor:
    """The keys that a pattern's one `topk` picks for these queries: the same that a call of ``attention`` reads.

    Keys that another part of a union holds are not listed: of ``causal & (window(9) | topk(s, 4))``, those outside the
    window.

    Args:
        attention: a compiled pattern with one selection, such as ``compile("causal & topk(indexer, 64)")``.
        q, k, v, inputs: as for a call of it.

    Returns:
        (B or 1, Nq, K) int32, ascending, padded with -1: what `indexer_kl` and `attention_mass` take as indices.

    Raises:
        ValueError: the pattern does not have exactly one selection, or it is not the same for all heads.
    """
    check_call(q, k, v)
    given = attention._inputs(inputs)
    lists = operator.module_of(attention._program, 0, "torch", q, v).selections(q, k, given)
    if attention.pattern.heads > 1 or len(lists) != 1 or not bool((lists[0] == lists[0][:, :1]).all()):
        raise ValueError(
            f"selected takes a pattern with one selection, the same for all heads; {attention.pattern} has another"
        )
    found: Tensor = lists[0][:, 0]
    return found


# Rows, a few at a time


@dataclass(frozen=True)
class _All:
    """The keys of some rows where all of the first ``width`` are looked at, under a mask (B or 1, rows, width)."""

    mask: Tensor

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """x[b, h, t] . y[b, g, s]: (B, H, rows, width), of the rows' x (B, H, rows, D) and all y (B, G, N, D)."""
        return _grouped(x, y[:, :, : self.mask.shape[2]].transpose(-1, -2))

    def to_queries(self, d: Tensor, y: Tensor) -> Tensor:
        """sum_s d[b, h, t, s] y[b, g, s]: (B, H, rows, D), of d (B, H, rows, width)."""
        return _grouped(d, y[:, :, : self.mask.shape[2]])

    def add_to_keys(self, total: Tensor, d: Tensor, x: Tensor) -> None:
        """Add sum_h,t d[b, h, t, s] x[b, h, t] to total (B, 1, N, D)."""
        total[:, 0, : self.mask.shape[2]] += d.flatten(1, 2).transpose(-1, -2) @ x.flatten(1, 2)


@dataclass(frozen=True)
class _Some:
    """The keys of some rows from a list ``index`` (B or 1, rows, width), of which a mask of that shape counts.

    The methods are those of `_All`.
    """

    mask: Tensor
    index: Tensor

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        return self._by_row(x, self._gather(y).transpose(-1, -2))

    def to_queries(self, d: Tensor, y: Tensor) -> Tensor:
        return self._by_row(d, self._gather(y))

    def add_to_keys(self, total: Tensor, d: Tensor, x: Tensor) -> None:
        each = d.movedim(1, 3) @ x.transpose(1, 2)  # (B, rows, width, D)
        first = total.shape[2] * torch.arange(total.shape[0], device=d.device)[:, None, None]
        total.flatten(0, 2).index_add_(0, (self.index + first).flatten(), each.flatten(0, 2))

    def _by_row(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, H, rows, a) @ y (B, G, rows, a, b), each row with a y of its own: (B, H, rows, b)."""
        batch, heads, rows, a = x.shape
        groups = y.shape[1]
        each = x.reshape(batch, groups, heads // groups, rows, a).transpose(2, 3)
        return (each @ y).transpose(2, 3).flatten(1, 2)

    def _gather(self, y: Tensor) -> Tensor:
        """(B, G, rows, width, D)."""
        batch = torch.arange(y.shape[0], device=y.device)[:, None, None]
        return y.transpose(1, 2)[batch, self.index].movedim(3, 1)


@dataclass(frozen=True)
class _Listed:
    """Lists of keys for all rows: (B or 1, Nq, K), padded with -1."""

    indices: Tensor

    def take(self, start: int, stop: int) -> _Some:
        index = self.indices[:, start:stop].long()
        return _Some(index >= 0, index.clamp(min=0))


@dataclass(frozen=True)
class _Ruled:
    """The keys that a pattern allows."""

    allowed: Allowed

    def take(self, start: int, stop: int) -> _All:
        return _All(self.allowed.rows(start, stop))


def _grouped(x: Tensor, y: Tensor) -> Tensor:
    """x (B, H, rows, a) @ y (B, G, a, b) with H a multiple of G: (B, H, rows, b)."""
    batch, heads, rows, a = x.shape
    each = x.reshape(batch, y.shape[1], heads // y.shape[1] * rows, a)
    return (each @ y).reshape(batch, heads, rows, y.shape[3])


def _chunks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(stop, first + size)) for first in range(start, stop, size))


def _chunk(memory: int, keys: _Listed | _Ruled, q: Tensor, k: Tensor, q_idx: Tensor | None = None) -> int:
    """How many rows a chunk has: of a row, what is held at once at most, for each key."""
    own = (0, 0) if q_idx is None else (q_idx.shape[1], q_idx.shape[3])
    each = 3 * q.shape[1] + 4 * own[0] + 8  # scores, their exponentials, weighted scores, and sums over heads
    width = k.shape[2]
    if isinstance(keys, _Listed):
        width = keys.indices.shape[2]
        each += 3 * max(k.shape[1] * k.shape[3], own[1]) + 4  # gathered keys, and a copy that a product makes
    return max(1, memory // max(1, q.shape[0] * width * each * _wide(q).itemsize))


# The equations


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _scores_of(q: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """sum_h w_h relu(q_h . k), (B, 1, rows, N), head by head: one head's scores at a time, unless autograd keeps them."""
    wide = _wide(q)
    total = torch.zeros(q.shape[0], 1, q.shape[2], k.shape[2], dtype=wide, device=q.device)
    with torch.autocast(q.device.type, enabled=False):
        turned = k.to(wide).transpose(-1, -2)
        for h in range(q.shape[1]):
            total = total + w[:, h : h + 1, :, None].to(wide) * (q[:, h : h + 1].to(wide) @ turned).relu()
    return total


def _mass(keys: _All | _Some, q: Tensor, k: Tensor, lse: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of some rows summed over heads, (B, rows, width), and the log-sum-exp that it took, (B, H, rows)."""
    scores = keys.dot(q, k).mul_(scale).masked_fill_(~keys.mask[:, None], -torch.inf)
    lse = torch.logsumexp(scores, -1) if lse is None else lse
    scores -= lse.masked_fill(lse == -torch.inf, torch.inf)[..., None]
    return scores.exp_().sum(1), lse


def _shares(mass: Tensor) -> Tensor:
    """Mass that sums to 1 in each row, and stays 0 where there is none."""
    total = mass.sum(-1, keepdim=True)
    return mass / total.masked_fill(total == 0, 1)


class _Divergence(torch.autograd.Function):
    """The divergence of each query and, in a second pass over the rows, its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        q_idx: Tensor,
        k_idx: Tensor,
        w: Tensor,
        q: Tensor,
        k: Tensor,
        lse: Tensor | None,
        keys: _Listed | _Ruled,
        scale: float,
        chunk: int,
    ) -> Tensor:
        wide, n_q = _wide(q), q.shape[2]
        loss = torch.zeros(q.shape[0], n_q, dtype=wide, device=q.device)
        used = torch.empty(q.shape[:3], dtype=wide, device=q.device)
        total = torch.empty_like(loss)
        with torch.autocast(q.device.type, enabled=False):
            k_wide, k_idx_wide = k.to(wide), k_idx.to(wide)
            for start, stop in _chunks(0, n_q, chunk):
                rows, held = slice(start, stop), keys.take(start, stop)
                given = None if lse is None else lse[:, :, rows].to(wide)
                mass, used[:, :, rows] = _mass(held, q[:, :, rows].to(wide), k_wide, given, scale)
                p = _shares(mass)
                scores = held.dot(q_idx[:, :, rows].to(wide), k_idx_wide).relu_()
                scores = scores.mul_(w[:, :, rows, None]).sum(1).masked_fill_(~held.mask, -torch.inf)
                total[:, rows] = torch.logsumexp(scores, -1)
                logs = (scores - total[:, rows, None]).masked_fill_(~held.mask, 0)
                loss[:, rows] = (torch.xlogy(p, p) - p * logs).sum(-1)
        ctx.save_for_backward(q_idx, k_idx, w, q, k, used, total)
        ctx.rest = keys, scale, chunk
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q_idx, k_idx, w, q, k, used, total = ctx.saved_tensors
        keys, scale, chunk = ctx.rest
        wide = _wide(q)
        dq, dw = torch.empty_like(q_idx), torch.empty_like(w)
        dk = torch.zeros(k_idx.shape, dtype=wide, device=q.device)
        with torch.autocast(q.device.type, enabled=False):
            k_wide, k_idx_wide = k.to(wide), k_idx.to(wide)
            for start, stop in _chunks(0, q.shape[2], chunk):
                rows, held = slice(start, stop), keys.take(start, stop)
                p = _shares(_mass(held, q[:, :, rows].to(wide), k_wide, used[:, :, rows], scale)[0])
                q_rows, weights = q_idx[:, :, rows].to(wide), w[:, :, rows, None].to(wide)
                a = held.dot(q_rows, k_idx_wide).relu_()
                scores = (a * weights).sum(1).masked_fill_(~held.mask, -torch.inf)
                level = total[:, rows, None]
                d = torch.exp(scores - level.masked_fill(level == -torch.inf, torch.inf)) - p
                # A row whose attention is nowhere has divergence 0 whatever its scores are.
                d = (d * grad[:, rows, None]).masked_fill_(p.sum(-1, keepdim=True) == 0, 0)[:, None]
                dw[:, :, rows] = (a * d).sum(-1)
                da = (d * weights).masked_fill_(a <= 0, 0)
                dq[:, :, rows] = held.to_queries(da, k_idx_wide)
                held.add_to_keys(dk, da, q_rows)
        return dq, dk.to(k_idx.dtype), dw, None, None, None, None, None, None


# What does not fit


def _keys_of(
    q: Tensor, k: Tensor, indices: Tensor | None, pattern: Pattern | str | None, inputs: dict[str, Any]
) -> _Listed | _Ruled:
    check_call(q, k, k)
    batch, n_q, n = q.shape[0], q.shape[2], k.shape[2]
    if indices is None:
        return _Ruled(allowed("causal" if pattern is None else pattern, inputs, batch=batch, n_q=n_q, n=n, device=q.device))
    if inputs or pattern is not None:
        raise ValueError("indices say which keys there are: pass no pattern, and none of its runtime inputs, beside them")
    if not isinstance(indices, Tensor) or indices.is_floating_point() or indices.dtype == torch.bool:
        raise TypeError(f"indices must be a tensor of integers, got {getattr(indices, 'dtype', type(indices).__name__)}")
    if indices.dim() != 3 or indices.shape[0] not in (1, batch) or indices.shape[1] != n_q:
        raise ValueError(f"indices must have shape ({batch} or 1, {n_q}, any), got {tuple(indices.shape)}")
    if indices.device != q.device:
        raise ValueError(f"indices is on {indices.device} and q on {q.device}; they must be on one device")
    return _Listed(indices)


def _check_indexer(q_idx: Tensor, k_idx: Tensor, w: Tensor) -> None:
    for name, t, axes in (("q_idx", q_idx, 4), ("k_idx", k_idx, 4), ("w", w, 3)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
        if not t.dtype.is_floating_point or t.dtype != q_idx.dtype:
            raise TypeError(f"q_idx, k_idx and w must have one floating-point dtype, got {t.dtype} for {name}")
        if t.device != q_idx.device:
            raise ValueError(f"{name} is on {t.device} and q_idx on {q_idx.device}; they must be on one device")
        if t.dim() != axes:
            raise ValueError(f"{name} must have {axes} axes, got shape {tuple(t.shape)}")
    batch, heads, n_q, dim = q_idx.shape
    if k_idx.shape[:2] != (batch, 1) or k_idx.shape[3] != dim:
        raise ValueError(f"k_idx must have shape ({batch}, 1, n, {dim}), one head for all queries, got {tuple(k_idx.shape)}")
    if w.shape != (batch, heads, n_q):
        raise ValueError(f"w must have shape {(batch, heads, n_q)}, one weight for each head and query, got {tuple(w.shape)}")


def _check_lse(lse: Tensor | None, q: Tensor) -> None:
    if lse is None:
        return
    if not isinstance(lse, Tensor) or not lse.dtype.is_floating_point:
        raise TypeError(f"lse must be a floating-point tensor, got {getattr(lse, 'dtype', type(lse).__name__)}")
    if lse.shape != q.shape[:3] or lse.device != q.device:
        raise ValueError(f"lse must have shape {tuple(q.shape[:3])} on {q.device}, got {tuple(lse.shape)} on {lse.device}")


def _span(start: int, stop: int | None, n_q: int) -> tuple[int, int]:
    stop = n_q if stop is None else stop
    if not 0 <= start <= stop <= n_q:
        raise ValueError(f"rows {start} to {stop} are not within the {n_q} queries")
    return start, stop
