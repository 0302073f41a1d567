"""The gradients of keys and values on Hopper GPUs, tile by tile: copied verbatim into the files that `emit_gluon` writes.

One warpgroup copies queries, gradients of the output and what belongs to their rows; a consumer has 64 keys. Scores and weights
are computed with keys as rows, so that the products that add to dK and dV take their left side from registers.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .gluon_kernel import meet


def fits_keys(blocks, whole):
    """Whether sums of 64 keys fit into the registers of a warpgroup, and every key has a query."""
    return whole and blocks[2:] in ((64, 64), (128, 128))


@gluon.jit
def keep_keys(
    k_view,
    v_view,
    batch,
    kv,
    residue,
    first,
    k_s,
    v_s,
    kept,
    SLOTS: gl.constexpr,
    BLOCK_D: gl.constexpr,
    BLOCK_V: gl.constexpr,
):
    """Copies the keys and values of a program, 64 for each of its consumers."""
    mbarrier.expect(kept.index(0), SLOTS * 128 * (BLOCK_D + BLOCK_V))
    for slot in gl.static_range(SLOTS):
        row = first + slot * 64
        tma.async_copy_global_to_shared(k_view, [batch, kv, residue, row, 0], kept.index(0), k_s.index(slot))
        tma.async_copy_global_to_shared(v_view, [batch, kv, residue, row, 0], kept.index(0), v_s.index(slot))


@gluon.jit
def copy_queries(
    q_view,
    g_view,
    batch,
    head,
    residue,
    first,
    n,
    stride,
    norm_at,
    delta_at,
    shared,
    step,
    COLUMNS: gl.constexpr,
    BLOCK_D: gl.constexpr,
    BLOCK_V: gl.constexpr,
):
    """Copies a tile of queries, of gradients and of what belongs to their rows, as soon as its place is empty."""
    q_s, g_s, norm_s, delta_s, full, done = shared
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    rows = (first + gl.arange(0, COLUMNS, LINE)) * stride + residue
    norm = gl.load(norm_at + rows, mask=rows < n, other=float("inf"))
    delta = gl.load(delta_at + rows, mask=rows < n, other=0.0)
    place = step % 2
    mbarrier.wait(done.index(place), (step // 2 & 1) ^ 1)
    mbarrier.expect(full.index(place), COLUMNS * 2 * (BLOCK_D + BLOCK_V))
    tma.async_copy_global_to_shared(q_view, [batch, head, residue, first, 0], full.index(place), q_s.index(place))
    tma.async_copy_global_to_shared(g_view, [batch, head, residue, first, 0], full.index(place), g_s.index(place))
    norm_s.index(place).store(norm)
    delta_s.index(place).store(0.0 - delta)
    meet()
    mbarrier.arrive(full.index(place))


@gluon.jit
def scores_of(k_s, q_s, step, zero, SLOT: gl.constexpr, BLOCK_D: gl.constexpr):
    """The product of the keys with the queries of a step, begun."""
    queries = q_s.index(step % 2).reshape([zero.shape[1], BLOCK_D])
    return warpgroup_mma(k_s.index(SLOT).reshape([64, BLOCK_D]), queries.permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def slopes_of(v_s, g_s, step, less, SLOT: gl.constexpr, BLOCK_V: gl.constexpr):
    """The product of the values with the gradients of a step, begun, added to ``less``."""
    grads = g_s.index(step % 2).reshape([less.shape[1], BLOCK_V])
    return warpgroup_mma(v_s.index(SLOT).reshape([64, BLOCK_V]), grads.permute((1, 0)), less, is_async=True)


@gluon.jit
def less_delta(delta_s, step, zero, SCORES: gl.constexpr):
    """What slopes start from: with -delta in the sums, no register is for it."""
    less, _ = gl.broadcast(delta_s.index(step % 2).load(gl.SliceLayout(0, SCORES))[None, :], zero)
    return less


@gluon.jit
def begin_scores(k_s, q_s, full, step, more, zero, SLOT: gl.constexpr, BLOCK_D: gl.constexpr):
    """Begins the scores of a step; if there are no more, with what is left in the place of its queries."""
    if more:
        mbarrier.wait(full.index(step % 2), step // 2 & 1)
    return scores_of(k_s, q_s, step, zero, SLOT, BLOCK_D)


@gluon.jit
def begin_slopes(
    v_s, g_s, norm_s, delta_s, scores, step, zero, SLOT: gl.constexpr, BLOCK_V: gl.constexpr, SCORES: gl.constexpr
):
    """Begins the slopes of a step; what they start from is there before the scores are waited for."""
    less = less_delta(delta_s, step, zero, SCORES)
    scores = warpgroup_mma_wait(0, deps=[scores])
    slopes = slopes_of(v_s, g_s, step, less, SLOT, BLOCK_V)
    return scores, slopes, norm_s.index(step % 2).load(gl.SliceLayout(0, SCORES))


@gluon.jit
def begin_both(tiles, full, step, zero, SLOT: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_V: gl.constexpr, SCORES: gl.constexpr):
    """Begins the scores and the slopes of a step, and waits for the scores; norm is there before."""
    k_s, v_s, q_s, g_s, norm_s, delta_s = tiles
    mbarrier.wait(full.index(step % 2), step // 2 & 1)
    less = less_delta(delta_s, step, zero, SCORES)
    scores = scores_of(k_s, q_s, step, zero, SLOT, BLOCK_D)
    slopes = slopes_of(v_s, g_s, step, less, SLOT, BLOCK_V)
    norm = norm_s.index(step % 2).load(gl.SliceLayout(0, SCORES))
    scores = warpgroup_mma_wait(1, deps=[scores])
    return scores, slopes, norm


@gluon.jit
def fold_keys(
    p,
    slopes,
    dk,
    dv,
    step,
    shared,
    BLOCK_D: gl.constexpr,
    BLOCK_V: gl.constexpr,
    KEYS: gl.constexpr,
    VALUES: gl.constexpr,
):
    """What a step adds to dK and dV, of the weights p (64 keys, COLUMNS queries)."""
    q_s, g_s, done = shared
    place = step % 2
    grads = g_s.index(place).reshape([p.shape[1], BLOCK_V])
    dv = warpgroup_mma(gl.convert_layout(p.to(q_s.dtype), VALUES), grads, dv, is_async=True)
    slopes = warpgroup_mma_wait(1, deps=[slopes])
    slopes = gl.convert_layout((p * slopes).to(q_s.dtype), KEYS)
    dk = warpgroup_mma(slopes, q_s.index(place).reshape([p.shape[1], BLOCK_D]), dk, is_async=True)
    dk, dv = warpgroup_mma_wait(0, deps=[dk, dv])
    mbarrier.arrive(done.index(place))
    return dk, dv
