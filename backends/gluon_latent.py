"""Latent attention to lists of single keys on Hopper GPUs: copied verbatim into the files whose passes may use it.

Keys have 576 dims, the first 512 of which are the values. A program has one query and 64 of the heads that share its list. One
warpgroup copies the listed keys, in tiles of 64, and two consumers share the work: each computes the scores and the weights of
every other tile, and half of the output's dims from all tiles, because sums of 64 x 512 are too much for one warpgroup's
registers. So they show each other their highest scores and their weights, through shared memory.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .gluon_kernel import barriers, meet, peak_of, rows_layout
from .triton_kernel import is_same


def fits_latent(members, q, k, v, blocks):
    """Whether `latent` can do a pass: 64 heads or more share a list, and the values are the first dims of the keys."""
    return members >= 64 and blocks[:2] == (576, 512) and q.element_size() == 2 and is_same(k, v, blocks)


@gluon.jit
def latent_lanes(tile, ROWS: gl.constexpr, LAYOUT: gl.constexpr):
    """The heads of a tile, counted from the first that shares the list; and whether each is there, and of the pass."""
    first, before, members, FIRST, RUN, PERIOD = tile
    lanes = first + gl.arange(0, ROWS, LAYOUT)
    head = (before + lanes) % PERIOD
    return lanes, (lanes < members) & (head >= FIRST) & (head < FIRST + RUN)


@gluon.jit
def latent_copies(
    shared,
    tile,
    keys_at,
    count,
    q_at,
    q_h,
    k_base,
    k_n,
    VALUE_DIM: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
):
    """Copies the query of each head, and then the listed keys, a tile as soon as its place is empty."""
    q_s, q_rest_s, k_s, rest_s, _, q_full, k_full, k_empty, _, _, _ = shared
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    PARTS: gl.constexpr = VALUE_DIM // 64
    dims = gl.arange(0, 64, gl.SliceLayout(0, WIDE))[None, :]
    lanes, mine = latent_lanes(tile, ROWS, gl.SliceLayout(1, WIDE))
    inside = mine[:, None] & (dims >= 0)
    at = q_at + (lanes.to(tl.int64) * q_h)[:, None] + dims
    for part in gl.static_range(PARTS):
        place = q_s.index(0).slice(part * 64, 64, dim=1)
        async_copy.async_copy_global_to_shared(place, at + part * 64, mask=inside)
    async_copy.async_copy_global_to_shared(q_rest_s.index(0), at + VALUE_DIM, mask=inside)
    async_copy.mbarrier_arrive(q_full.index(0), increment_count=False)
    near = gl.arange(0, COLUMNS, gl.SliceLayout(1, WIDE))
    for step in range((count + 2 * COLUMNS - 1) // (2 * COLUMNS) * 2):
        # Behind the end of the list its last key comes again, without a weight: what is not listed is never read.
        key = gl.load(keys_at + gl.minimum(step * COLUMNS + near, count - 1))
        at = k_base + gl.multiple_of(key.to(tl.int64) * k_n, 16)[:, None] + dims
        mbarrier.wait(k_empty.index(step % 2), (step // 2 & 1) ^ 1)
        for part in gl.static_range(PARTS):
            place = k_s.index(step % 2).slice(part * 64, 64, dim=1)
            async_copy.async_copy_global_to_shared(place, at + part * 64)
        async_copy.async_copy_global_to_shared(rest_s.index(step % 2), at + VALUE_DIM)
        async_copy.mbarrier_arrive(k_full.index(step % 2), increment_count=False)


@gluon.jit
def latent_consumer(
    SLOT: gl.constexpr,
    shared,
    tile,
    count,
    results,
    scale,
    VALUE_DIM: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    CHAINED: gl.constexpr,
):
    """Weights of the even tiles (SLOT 0) or the odd ones (1), and the lower or the upper half of the output's dims."""
    q_s, q_rest_s, k_s, rest_s, shown_s, q_full, k_full, k_empty, peak_full, weights_full, total_full = shared
    out_ptr, prior_ptr, lse_ptr, out_at, n_q = results
    HALF: gl.constexpr = VALUE_DIM // 2
    OTHER: gl.constexpr = 1 - SLOT
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    LINE: gl.constexpr = gl.SliceLayout(1, SCORES)
    lanes, mine = latent_lanes(tile, ROWS, LINE)
    lse_at = lse_ptr + out_at + lanes.to(tl.int64) * n_q
    lanes, kept = latent_lanes(tile, ROWS, gl.SliceLayout(1, OUT))
    dims = SLOT * HALF + gl.arange(0, HALF, gl.SliceLayout(0, OUT))[None, :]
    at = (out_at + lanes.to(tl.int64) * n_q)[:, None] * VALUE_DIM + dims
    kept = kept[:, None] & (dims >= 0)
    top = gl.full([ROWS], float("-inf"), gl.float32, LINE)
    total = gl.full([ROWS], 0.0, gl.float32, LINE)
    acc = gl.zeros([ROWS, HALF], gl.float32, OUT)
    if CHAINED:
        top = gl.load(lse_at, mask=mine, other=float("-inf")) * 1.4426950408889634
        acc = gl.load(prior_ptr + at, mask=kept, other=0.0)
        if SLOT == 0:  # totals are added up in the end
            total = gl.where(top == float("-inf"), 0.0, 1.0)
    zero = gl.zeros([ROWS, COLUMNS], gl.float32, SCORES)
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, SCORES))
    factor = scale * 1.4426950408889634
    mbarrier.wait(q_full.index(0), 0)
    for turn in range((count + 2 * COLUMNS - 1) // (2 * COLUMNS)):
        phase = turn & 1
        # Always 0. The assembler would take addresses that it knows out of the loop, and has no registers for all of them.
        none = turn >> 30
        mbarrier.wait(k_full.index(SLOT), phase)
        fence_async_shared()
        scores = warpgroup_mma(q_s.index(none), k_s.index(SLOT + none).permute((1, 0)), zero, use_acc=False, is_async=True)
        scores = warpgroup_mma(q_rest_s.index(none), rest_s.index(SLOT + none).permute((1, 0)), scores, is_async=True)
        scores = warpgroup_mma_wait(0, deps=[scores])
        place = (turn * 2 + SLOT) * COLUMNS + columns
        scores = gl.where((place < count)[None, :], scores * factor, float("-inf"))
        peak = gl.max(scores, 1)
        shown_s.index(SLOT).store(peak)
        meet()
        mbarrier.arrive(peak_full.index(SLOT))
        mbarrier.wait(peak_full.index(OTHER), phase)
        top, safe, decay = peak_of(top, gl.maximum(peak, shown_s.index(OTHER).load(LINE)))
        weights = gl.exp2(scores - safe[:, None])
        total = total * decay + gl.sum(weights, 1)
        rest_s.index(SLOT).store(weights.to(q_s.dtype))  # where this tile's last dims were, which no one else reads
        fence_async_shared()
        meet()
        mbarrier.arrive(weights_full.index(SLOT))
        acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, OUT))[:, None]
        mbarrier.wait(weights_full.index(0), phase)
        fence_async_shared()
        values = k_s.index(none).slice(SLOT * HALF, HALF, dim=1)
        acc = warpgroup_mma(rest_s.index(none), values, acc, is_async=True)
        mbarrier.wait(weights_full.index(1), phase)
        fence_async_shared()
        values = k_s.index(1 + none).slice(SLOT * HALF, HALF, dim=1)
        acc = warpgroup_mma(rest_s.index(1 + none), values, acc, is_async=True)
        acc = warpgroup_mma_wait(1, deps=[acc])
        mbarrier.arrive(k_empty.index(0))
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(k_empty.index(1))
    shown_s.index(2 + SLOT).store(total)
    meet()
    mbarrier.arrive(total_full.index(SLOT))
    mbarrier.wait(total_full.index(OTHER), 0)
    total = total + shown_s.index(2 + OTHER).load(LINE)
    empty = total == 0.0
    if SLOT == 0:
        lse = gl.where(empty, float("-inf"), (top + gl.log2(total)) * 0.6931471805599453)
        gl.store(lse_at, lse, mask=mine)
    part = gl.convert_layout(1.0 / gl.where(empty, 1.0, total), gl.SliceLayout(1, OUT))
    gl.store(out_ptr + at, (acc * part[:, None]).to(out_ptr.dtype.element_ty), mask=kept)


@gluon.jit
def latent(
    q_ptr,
    k_ptr,
    out_ptr,
    prior_ptr,
    lse_ptr,
    keys_ptr,
    keys_b,
    keys_h,
    keys_q,
    count_ptr,
    count_b,
    count_h,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    n_q,
    heads,
    sharing,
    scale,
    members,
    FIRST: gl.constexpr,
    RUN: gl.constexpr,
    PERIOD: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    VALUE_DIM: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    CHAINED: gl.constexpr,
):
    """Output and log-sum-exp of a tile of heads that share a list, of one query."""
    ELEMENT: gl.constexpr = q_ptr.dtype.element_ty
    REST: gl.constexpr = HEAD_DIM - VALUE_DIM
    parts = (members + ROWS - 1) // ROWS
    row = n_q - 1 - tl.program_id(0) // parts
    batch = (tl.program_id(1) // (heads // members)).to(tl.int64)
    set_of = tl.program_id(1) % (heads // members)
    before = set_of * members
    tile = (tl.program_id(0) % parts * ROWS, before, members, FIRST, RUN, PERIOD)
    count = gl.load(count_ptr + batch * count_b + set_of.to(tl.int64) * count_h + row)
    keys_at = keys_ptr + batch * keys_b + set_of.to(tl.int64) * keys_h + row.to(tl.int64) * keys_q
    # Offsets are multiples of 16, but the stride of an axis of one need not be (`aligned`).
    q_at = q_ptr + gl.multiple_of(batch * q_b + before.to(tl.int64) * q_h + row.to(tl.int64) * q_n, 16)
    k_base = k_ptr + gl.multiple_of(batch * k_b + (before // sharing).to(tl.int64) * k_h, 16)
    out_at = (batch * heads + before) * n_q + row
    shared = (
        gl.allocate_shared_memory(ELEMENT, [1, ROWS, VALUE_DIM], rows_layout(ROWS, VALUE_DIM, ELEMENT)),
        gl.allocate_shared_memory(ELEMENT, [1, ROWS, REST], rows_layout(ROWS, REST, ELEMENT)),
        gl.allocate_shared_memory(ELEMENT, [2, COLUMNS, VALUE_DIM], rows_layout(COLUMNS, VALUE_DIM, ELEMENT)),
        gl.allocate_shared_memory(ELEMENT, [2, COLUMNS, REST], rows_layout(COLUMNS, REST, ELEMENT)),
        gl.allocate_shared_memory(gl.float32, [4, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0])),
        barriers(1, 128),
        barriers(2, 128),
        barriers(2, 2),
        barriers(2, 1),
        barriers(2, 1),
        barriers(2, 1),
    )
    fence_async_shared()
    results = (out_ptr, prior_ptr, lse_ptr, out_at, n_q)
    gl.warp_specialize(
        [
            (latent_consumer, (0, shared, tile, count, results, scale, VALUE_DIM, ROWS, COLUMNS, CHAINED)),
            (latent_consumer, (1, shared, tile, count, results, scale, VALUE_DIM, ROWS, COLUMNS, CHAINED)),
            (latent_copies, (shared, tile, keys_at, count, q_at, q_h, k_base, k_n, VALUE_DIM, ROWS, COLUMNS)),
        ],
        [4, 4],
        [216, 80],
    )
