"""The gradient of queries on Hopper GPUs, tile by tile: copied verbatim into the files that `emit_gluon` writes."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from .gluon_kernel import tile_of


def fits_queries(blocks):
    """Whether 64 queries, gradients and sums fit into the registers of a warpgroup."""
    return blocks[2:] in ((64, 64), (128, 128))


@gluon.jit
def begin_row_scores(query, k_s, k_full, step, more, zero, COLUMNS: gl.constexpr, BLOCK_D: gl.constexpr):
    """Begins the scores of a step; if there are no more, with what is left in the place of its keys."""
    if more:
        mbarrier.wait(k_full.index(step % 2), step // 2 & 1)
    keys = tile_of(k_s, step, COLUMNS, BLOCK_D, 2)
    return warpgroup_mma(query, keys.permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def begin_row_slopes(grad, v_s, v_full, scores, step, zero, COLUMNS: gl.constexpr, BLOCK_V: gl.constexpr):
    """Waits for the scores of a step, begun before, and begins the product of gradients with its values."""
    mbarrier.wait(v_full.index(step % 2), step // 2 & 1)
    scores = warpgroup_mma_wait(0, deps=[scores])
    values = tile_of(v_s, step, COLUMNS, BLOCK_V, 2)
    return scores, warpgroup_mma(grad, values.permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def fold_row(
    query,
    p,
    slopes,
    delta,
    dq,
    k_s,
    k_full,
    k_empty,
    v_empty,
    step,
    more,
    zero,
    COLUMNS: gl.constexpr,
    BLOCK_D: gl.constexpr,
    SLOPES: gl.constexpr,
):
    """What a step adds to dQ, of its weights p (64 queries, COLUMNS keys); begins the scores of the next."""
    slopes = warpgroup_mma_wait(0, deps=[slopes])
    mbarrier.arrive(v_empty.index(step % 2))
    slopes = gl.convert_layout((p * (slopes - delta[:, None])).to(k_s.dtype), SLOPES)
    dq = warpgroup_mma(slopes, tile_of(k_s, step, COLUMNS, BLOCK_D, 2), dq, is_async=True)
    scores = begin_row_scores(query, k_s, k_full, step + 1, more, zero, COLUMNS, BLOCK_D)
    dq = warpgroup_mma_wait(1, deps=[dq])
    mbarrier.arrive(k_empty.index(step % 2))
    return scores, dq
