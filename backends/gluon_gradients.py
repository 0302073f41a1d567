"""All three gradients at once on Hopper GPUs: copied verbatim into the files whose patterns have long enough rows.

A program has 128 keys and walks tiles of 64 queries. One warpgroup copies queries and gradients of the output; two consumers
have 64 keys each. Scores and weights are computed with keys as rows, so that the products that add to dK and dV take their
left side from registers. Only dS goes to shared memory, where both consumers read that of the step before for their half of
dQ's dims, which the copy engine adds to what is in memory.
"""

import torch
from triton._C.libtriton import ir
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .gluon_kernel import meet


def joins(blocks, whole):
    """Whether one kernel can compute all gradients: the order in which it adds to those of queries is not always the same."""
    return whole and blocks[2:] == (128, 128) and not torch.are_deterministic_algorithms_enabled()


@builtin
def add_tile(view, coord, tile, _semantic=None):
    """Has the copy engine add a tile in shared memory to one in memory; Gluon has no name for that."""
    coord = _semantic._convert_to_ir_values(coord, require_i64=False)
    _semantic.builder.create_async_tma_reduce(ir.DESCRIPTOR_REDUCE_KIND.ADD, view.handle, coord, tile.handle)


@gluon.jit
def keep_keys(k_view, v_view, batch, kv, first, k_s, v_s, kept, BLOCK_D: gl.constexpr, BLOCK_V: gl.constexpr):
    """Copies the keys and values of a program, for the two consumers."""
    mbarrier.expect(kept.index(0), 256 * (BLOCK_D + BLOCK_V))
    for slot in gl.static_range(2):
        row = first + slot * 64
        tma.async_copy_global_to_shared(k_view, [batch, kv, 0, row, 0], kept.index(0), k_s.index(slot))
        tma.async_copy_global_to_shared(v_view, [batch, kv, 0, row, 0], kept.index(0), v_s.index(slot))


@gluon.jit
def copy_queries(
    q_view, g_view, batch, head, first, n, norm_at, delta_at, shared, step, BLOCK_D: gl.constexpr, BLOCK_V: gl.constexpr
):
    """Copies a tile of queries, of gradients and of what belongs to their rows, as soon as its place is empty."""
    q_s, g_s, norm_s, delta_s, full, done = shared
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    rows = first + gl.arange(0, 64, LINE)
    norm = gl.load(norm_at + rows, mask=rows < n, other=float("inf"))
    delta = gl.load(delta_at + rows, mask=rows < n, other=0.0)
    place = step % 2
    mbarrier.wait(done.index(place), (step // 2 & 1) ^ 1)
    mbarrier.expect(full.index(place), 128 * (BLOCK_D + BLOCK_V))
    tma.async_copy_global_to_shared(q_view, [batch, head, 0, first, 0], full.index(place), q_s.index(place))
    tma.async_copy_global_to_shared(g_view, [batch, head, 0, first, 0], full.index(place), g_s.index(place))
    norm_s.index(place).store(norm)
    delta_s.index(place).store(0.0 - delta)
    meet()
    mbarrier.arrive(full.index(place))


@gluon.jit
def begin_scores(k_s, q_s, full, step, more, zero, SLOT: gl.constexpr, BLOCK_D: gl.constexpr):
    """Begins the product of the keys with the queries of a step; if there are none, with what is left in their place."""
    if more:
        mbarrier.wait(full.index(step % 2), step // 2 & 1)
    queries = q_s.index(step % 2).reshape([64, BLOCK_D])
    return warpgroup_mma(k_s.index(SLOT).reshape([64, BLOCK_D]), queries.permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def begin_slopes(v_s, g_s, delta_s, scores, step, zero, SLOT: gl.constexpr, BLOCK_V: gl.constexpr, SCORES: gl.constexpr):
    """Begins the product of the values with the gradients of a step, less delta: with that in the sums, no register is for it.

    What it starts from is there before the scores are waited for.
    """
    less, _ = gl.broadcast(delta_s.index(step % 2).load(gl.SliceLayout(0, SCORES))[None, :], zero)
    scores = warpgroup_mma_wait(0, deps=[scores])
    grads = g_s.index(step % 2).reshape([64, BLOCK_V])
    return scores, warpgroup_mma(v_s.index(SLOT).reshape([64, BLOCK_V]), grads.permute((1, 0)), less, is_async=True)


@gluon.jit
def begin_before(slope_s, k_s, step, zero, SLOT: gl.constexpr, BLOCK_D: gl.constexpr):
    """Begins dQ of the step before: half of its dims, from dS of both consumers."""
    HALF: gl.constexpr = BLOCK_D // 2
    pair = step % 2 * 2
    acc = zero
    for part in gl.static_range(2):
        keys = k_s.index(part).reshape([64, BLOCK_D]).slice(SLOT * HALF, HALF, dim=1)
        acc = warpgroup_mma(slope_s.index(pair + part).permute((1, 0)), keys, acc, use_acc=part > 0, is_async=True)
    return acc


@gluon.jit
def add_before(acc, dq_view, batch, head, before, dq_s, SLOT: gl.constexpr, BLOCK_D: gl.constexpr):
    """Adds dQ of the step before, whose first query that is; the copy engine has read what was added last."""
    dq_s.index(SLOT).reshape([64, BLOCK_D // 2]).store(acc)
    fence_async_shared()
    meet()
    add_tile(dq_view, [batch, head, 0, before, SLOT * (BLOCK_D // 2)], dq_s.index(SLOT))


@gluon.jit
def fold_gradients(
    p,
    slopes,
    dk,
    dv,
    step,
    more,
    before,
    dq_view,
    batch,
    head,
    shared,
    SLOT: gl.constexpr,
    BLOCK_D: gl.constexpr,
    BLOCK_V: gl.constexpr,
    SCORES: gl.constexpr,
    KEYS: gl.constexpr,
    VALUES: gl.constexpr,
    HALVES: gl.constexpr,
):
    """What a step adds, of the weights p (64 keys, 64 queries): dK, dV, and the step before to dQ; begins the next scores."""
    k_s, q_s, g_s, slope_s, dq_s, full, done = shared
    place = step % 2
    other = (step + 1) % 2
    zero = gl.zeros([64, 64], gl.float32, SCORES)
    dv = warpgroup_mma(gl.convert_layout(p.to(q_s.dtype), VALUES), g_s.index(place).reshape([64, BLOCK_V]), dv, is_async=True)
    slopes = warpgroup_mma_wait(1, deps=[slopes])
    slopes = (p * slopes).to(q_s.dtype)
    mbarrier.wait(done.index(other), ((step + 1) // 2 & 1) ^ 1)
    slope_s.index(other * 2 + SLOT).store(slopes)
    tma.store_wait(0)
    fence_async_shared()
    meet()
    dk = warpgroup_mma(gl.convert_layout(slopes, KEYS), q_s.index(place).reshape([64, BLOCK_D]), dk, is_async=True)
    acc = begin_before(slope_s, k_s, step, gl.zeros([64, BLOCK_D // 2], gl.float32, HALVES), SLOT, BLOCK_D)
    dk, dv = warpgroup_mma_wait(2, deps=[dk, dv])
    scores = begin_scores(k_s, q_s, full, step + 1, more, zero, SLOT, BLOCK_D)
    acc = warpgroup_mma_wait(1, deps=[acc])
    mbarrier.arrive(done.index(place))
    if before >= 0:
        add_before(acc, dq_view, batch, head, before, dq_s, SLOT, BLOCK_D)
    return scores, dk, dv


@gluon.jit
def finish_before(step, before, dq_view, batch, head, shared, SLOT: gl.constexpr, BLOCK_D: gl.constexpr, HALVES: gl.constexpr):
    """Adds dQ of the last step of a head."""
    k_s, _, _, slope_s, dq_s, _, done = shared
    if before >= 0:
        mbarrier.wait(done.index((step + 1) % 2), ((step + 1) // 2 & 1) ^ 1)
        acc = begin_before(slope_s, k_s, step, gl.zeros([64, BLOCK_D // 2], gl.float32, HALVES), SLOT, BLOCK_D)
        acc = warpgroup_mma_wait(0, deps=[acc])
        tma.store_wait(0)
        meet()
        add_before(acc, dq_view, batch, head, before, dq_s, SLOT, BLOCK_D)
