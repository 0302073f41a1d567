"""All three gradients at once on Hopper GPUs: copied verbatim into the files whose patterns have long enough rows.

A program has 128 keys and walks tiles of 64 queries, or of 128 for heads of 64 dims. One warpgroup copies queries and gradients
of the output; two consumers have 64 keys each. Scores and weights are computed with keys as rows, so that the products that add
to dK and dV take their left side from registers. Only dS goes to shared memory, where both consumers read that of the step
before for their part of dQ, half of its dims or of its queries, which the copy engine adds to what is in memory.
"""

import torch
import triton
import triton.language as tl
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
from .gluon_keys import begin_scores, fits_keys
from .launch_kernel import launch


def joins(blocks, whole, columns):
    """Whether one kernel can compute all gradients: the order in which it adds to those of queries is not always the same."""
    fits = fits_keys(blocks, whole) and blocks[2] * columns == 64 * 128
    return fits and not torch.are_deterministic_algorithms_enabled()


@builtin
def add_tile(view, coord, tile, _semantic=None):
    """Has the copy engine add a tile in shared memory to one in memory; Gluon has no name for that."""
    coord = _semantic._convert_to_ir_values(coord, require_i64=False)
    _semantic.builder.create_async_tma_reduce(ir.DESCRIPTOR_REDUCE_KIND.ADD, view.handle, coord, tile.handle)


@gluon.jit
def begin_before(slope_s, k_s, step, SLOT: gl.constexpr, COLUMNS: gl.constexpr, BLOCK_D: gl.constexpr, PARTS: gl.constexpr):
    """Begins this consumer's part of dQ of the step before, from dS of both consumers."""
    PART: gl.constexpr = BLOCK_D * COLUMNS // 128
    pair = step % 2 * 2
    acc = gl.zeros([64, PART], gl.float32, PARTS)
    for part in gl.static_range(2):
        slopes = slope_s.index(pair + part)
        keys = k_s.index(part).reshape([64, BLOCK_D])
        if COLUMNS > 64:
            slopes = slopes.slice(SLOT * 64, 64, dim=1)
        else:
            keys = keys.slice(SLOT * PART, PART, dim=1)
        acc = warpgroup_mma(slopes.permute((1, 0)), keys, acc, use_acc=part > 0, is_async=True)
    return acc


@gluon.jit
def add_before(acc, dq_view, batch, head, before, dq_s, SLOT: gl.constexpr, COLUMNS: gl.constexpr):
    """Adds dQ of the step before, whose first query that is; the copy engine has read what was added last."""
    PART: gl.constexpr = acc.shape[1]
    dq_s.index(SLOT).reshape([64, PART]).store(acc)
    fence_async_shared()
    meet()
    if COLUMNS > 64:
        add_tile(dq_view, [batch, head, 0, before + SLOT * 64, 0], dq_s.index(SLOT))
    else:
        add_tile(dq_view, [batch, head, 0, before, SLOT * PART], dq_s.index(SLOT))


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
    COLUMNS: gl.constexpr,
    BLOCK_D: gl.constexpr,
    BLOCK_V: gl.constexpr,
    SCORES: gl.constexpr,
    KEYS: gl.constexpr,
    VALUES: gl.constexpr,
    PARTS: gl.constexpr,
):
    """What a step of the weights p (64 keys, COLUMNS queries) adds, and the step before to dQ; begins the next scores."""
    k_s, q_s, g_s, slope_s, dq_s, full, done = shared
    place = step % 2
    other = (step + 1) % 2
    zero = gl.zeros([64, COLUMNS], gl.float32, SCORES)
    grads = g_s.index(place).reshape([COLUMNS, BLOCK_V])
    dv = warpgroup_mma(gl.convert_layout(p.to(q_s.dtype), VALUES), grads, dv, is_async=True)
    slopes = warpgroup_mma_wait(1, deps=[slopes])
    slopes = (p * slopes).to(q_s.dtype)
    mbarrier.wait(done.index(other), ((step + 1) // 2 & 1) ^ 1)
    slope_s.index(other * 2 + SLOT).store(slopes)
    tma.store_wait(0)
    fence_async_shared()
    meet()
    queries = q_s.index(place).reshape([COLUMNS, BLOCK_D])
    dk = warpgroup_mma(gl.convert_layout(slopes, KEYS), queries, dk, is_async=True)
    acc = begin_before(slope_s, k_s, step, SLOT, COLUMNS, BLOCK_D, PARTS)
    dk, dv = warpgroup_mma_wait(2, deps=[dk, dv])
    scores = begin_scores(k_s, q_s, full, step + 1, more, zero, SLOT, BLOCK_D)
    acc = warpgroup_mma_wait(1, deps=[acc])
    mbarrier.arrive(done.index(place))
    if before >= 0:
        add_before(acc, dq_view, batch, head, before, dq_s, SLOT, COLUMNS)
    return scores, dk, dv


@gluon.jit
def finish_before(
    step,
    before,
    dq_view,
    batch,
    head,
    shared,
    SLOT: gl.constexpr,
    COLUMNS: gl.constexpr,
    BLOCK_D: gl.constexpr,
    PARTS: gl.constexpr,
):
    """Adds dQ of the last step of a head."""
    k_s, _, _, slope_s, dq_s, _, done = shared
    if before >= 0:
        mbarrier.wait(done.index((step + 1) % 2), ((step + 1) // 2 & 1) ^ 1)
        acc = begin_before(slope_s, k_s, step, SLOT, COLUMNS, BLOCK_D, PARTS)
        acc = warpgroup_mma_wait(0, deps=[acc])
        tma.store_wait(0)
        meet()
        add_before(acc, dq_view, batch, head, before, dq_s, SLOT, COLUMNS)


@triton.jit
def scaled_kernel(sums_ptr, out_ptr, size, scale, BLOCK: tl.constexpr):
    """Sums times the scale, rounded."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    result = tl.load(sums_ptr + at, mask=inside, other=0.0) * scale
    tl.store(out_ptr + at, result.to(out_ptr.dtype.element_ty), mask=inside)


def scaled(sums, scale, out):
    """``out`` as the sums times the scale, both contiguous; torch takes half as long again for two dtypes."""
    size = out.numel()
    case = (out.device,), out.dtype, size % 16, size == 1
    launch(scaled_kernel, (-(-size // 4096), 1, 1), case, (sums, out, size, scale, 4096), {"num_warps": 8})
    return out
