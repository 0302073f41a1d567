"""How much attention key blocks get through compressed keys, in Triton: copied verbatim into files that select by it."""

import torch
import triton
import triton.language as tl

from patternc.scorers import norm_of

from .triton_kernel import aligned, generation_of, strides


@triton.jit
def seen_from(position, count, LENGTH: tl.constexpr, STRIDE: tl.constexpr):
    """How many of ``count`` compressed keys end at a position or before."""
    return tl.minimum(tl.maximum(position + 1 - LENGTH + STRIDE, 0) // STRIDE, count)


@triton.jit
def vectors_at(ptr, places, given, step, dims, DIM: tl.constexpr):
    """A tile of vectors (places, dims), ``step`` apart in memory, zero where none is given."""
    at = places.to(tl.int64)[:, None] * step + dims[None, :]
    return tl.load(ptr + at, mask=given[:, None] & (dims < DIM)[None, :], other=0.0)


@triton.jit(do_not_specialize=["heads", "sharing", "rows", "count", "first"])
def norms_kernel(
    q_ptr,
    k_ptr,
    more_ptr,
    norm_ptr,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    heads,
    sharing,
    rows,
    count,
    first,
    scale,
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    MORE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """The base-2 log-sum-exp of each query over the compressed keys that it sees, inf where it sees none.

    It is 0 where a score is NaN, so that the shares of other keys stay what they can be ranked by.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    row, dims, near = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE), tl.arange(0, KEYS)
    query = vectors_at(q_ptr + batch * q_b + head * q_h, row, row < rows, q_n, dims, DIM)
    k_ptr += batch * k_b + head // sharing * k_h
    more_ptr += batch * k_b + head // sharing * k_h
    seen = seen_from(first + row, count, LENGTH, STRIDE)
    most = seen_from(first + tile * ROWS + ROWS - 1, count, LENGTH, STRIDE)
    top, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    strange = tl.zeros([ROWS], tl.int32)
    for start in range(0, most, KEYS):
        places = start + near
        key = vectors_at(k_ptr, places, places < count, k_n, dims, DIM)
        scores = tl.dot(query, key.T, input_precision="ieee")
        if MORE:  # a key is the sum of two vectors
            more = vectors_at(more_ptr, places, places < count, k_n, dims, DIM)
            scores = tl.dot(query, more.T, scores, input_precision="ieee")
        scores = scores * (scale * 1.4426950408889634)
        sees = places[None, :] < seen[:, None]
        strange = tl.maximum(strange, tl.max((sees & (scores != scores)).to(tl.int32), 1))
        scores = tl.where(sees & (scores == scores), scores, float("-inf"))
        peak = tl.maximum(top, tl.max(scores, 1))
        safe = tl.where(tl.abs(peak) == float("inf"), 0.0, peak)
        total = total * tl.exp2(top - safe) + tl.sum(tl.exp2(scores - safe[:, None]), 1)
        top = peak
    norm = tl.where(tl.abs(top) == float("inf"), float("inf"), top + tl.log2(tl.where(total == 0.0, 1.0, total)))
    norm = tl.where(strange > 0, 0.0, norm)
    tl.store(norm_ptr + (batch * heads + head) * rows + row, norm, mask=row < rows)


@triton.jit(do_not_specialize=["heads", "sharing", "rows", "count", "first", "blocks", "together"])
def importance_kernel(
    q_ptr,
    k_ptr,
    more_ptr,
    norm_ptr,
    out_ptr,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    heads,
    sharing,
    rows,
    count,
    first,
    scale,
    blocks,
    together,
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    MORE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCKS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """The importance of BLOCKS (padded to SLOTS) key blocks of STEPS steps each, summed over ``together`` query heads.

    The shares of all the heads in a tile of keys are added up; what of them a block gets is a product with whole numbers.
    """
    apart: tl.constexpr = LENGTH // STRIDE
    across = tl.cdiv(blocks, BLOCKS)
    tile, block = tl.program_id(0) // across, tl.program_id(0) % across * BLOCKS
    groups = heads // together
    batch, group = (tl.program_id(1) // groups).to(tl.int64), tl.program_id(1) % groups
    row, dims, near = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE), tl.arange(0, KEYS)
    slots = tl.arange(0, SLOTS)
    kv = (group * together // sharing).to(tl.int64)
    k_ptr += batch * k_b + kv * k_h
    more_ptr += batch * k_b + kv * k_h
    seen = seen_from(first + row, count, LENGTH, STRIDE)
    most = seen_from(first + tile * ROWS + ROWS - 1, count, LENGTH, STRIDE)
    found = tl.zeros([ROWS, SLOTS], tl.float32)
    start = block * STEPS - apart + 1
    for at in range(start, tl.minimum(most, start + BLOCKS * STEPS + apart - 1), KEYS):
        places = at + near
        inside = (places >= 0) & (places < count)
        sees = inside[None, :] & (places[None, :] < seen[:, None])
        key = vectors_at(k_ptr, places, inside, k_n, dims, DIM)
        more = vectors_at(more_ptr, places, inside, k_n, dims, DIM) if MORE else key
        worth = tl.zeros([ROWS, KEYS], tl.float32)
        for turn in tl.range(together):
            head = (group * together + turn).to(tl.int64)
            query = vectors_at(q_ptr + batch * q_b + head * q_h, row, row < rows, q_n, dims, DIM)
            norm = tl.load(norm_ptr + (batch * heads + head) * rows + row, mask=row < rows, other=float("inf"))
            scores = tl.dot(query, key.T, input_precision="ieee")
            if MORE:
                scores = tl.dot(query, more.T, scores, input_precision="ieee")
            scores = scores * (scale * 1.4426950408889634)
            worth += tl.where(sees, tl.exp2(scores - norm[:, None]), 0.0)
        step = (at - start - apart + 1) + near[:, None]  # the first that a key stands for, counted from those of the blocks
        low = slots[None, :] * STEPS
        common = tl.minimum(step + apart, low + STEPS) - tl.maximum(step, low)
        times = tl.where(slots[None, :] < BLOCKS, tl.maximum(common, 0), 0).to(tl.float32)
        # A NaN would reach the other blocks too, as 0 times NaN.
        worth = tl.where(worth == worth, tl.minimum(worth, 1e30), -1e30)
        found = tl.dot(worth, times, found, input_precision="ieee")
    found = tl.where(found < -1e29, float("nan"), found)
    out_at = out_ptr + ((batch * groups + group) * rows + row.to(tl.int64)[:, None]) * blocks + block + slots[None, :]
    kept = (row < rows)[:, None] & (slots < BLOCKS)[None, :] & (block + slots < blocks)[None, :]
    tl.store(out_at, found, mask=kept)


def importance_tiles(dim, itemsize, apart, steps, generation):
    """The dims padded, queries and keys of a tile, and how many blocks at a time, as they are and padded."""
    wide = max(16, triton.next_power_of_2(dim))
    rows, keys = (64, 128) if itemsize == 2 and wide <= 128 and generation == 9 else (64, 64) if itemsize == 2 else (32, 32)
    blocks = max(1, min(keys, (keys - apart + 1) // steps))
    return wide, rows, keys, blocks, max(16, triton.next_power_of_2(blocks))


def norms_of(lse, batch):
    """What `norms_kernel` computes, from log-sum-exps (b or 1, h, rows)."""
    return (norm_of(torch, lse.float()) * 1.4426950408889634).expand(batch, -1, -1).contiguous()


def importance(xp, queries, keys, scale, first, sizes, together, lse=None):  # noqa: ARG001
    """How much attention key blocks get from queries (b, h, rows, d) that attend to compressed keys (b or 1, h_kv, count, d).

    The first query is at position ``first``; sizes: a compressed key's length and stride, and a block's size and their number.
    Returns float32 (b, h, rows, blocks), or with ``together`` sums over the heads of each key head, (b, h_kv, rows, blocks).
    Keys of another dtype than that of 16-bit queries are taken as sums of two. With the log-sum-exp of the attention, lse (b or
    1, h, rows), scores are computed once, and otherwise twice. No gradient.
    """
    length, stride, block, blocks = sizes
    (batch, heads, rows, dim), (_, key_heads, count, _) = queries.shape, keys.shape
    sharing = heads // key_heads
    of = sharing if together else 1
    exact = queries.dtype in (keys.dtype, torch.float32)
    keys = keys if exact else keys.float().contiguous()
    high = keys.to(queries.dtype)
    more = None if exact else aligned((keys - high.float()).to(queries.dtype))
    queries, high = aligned(queries), aligned(high)
    norms = torch.empty(batch, heads, rows, dtype=torch.float32, device=queries.device) if lse is None else norms_of(lse, batch)
    out = torch.empty(batch, heads // of, rows, blocks, dtype=torch.float32, device=queries.device)
    if out.numel() == 0:
        return out
    generation = generation_of(out.device)
    wide, tile, width, some, slots = importance_tiles(
        dim, queries.element_size(), length // stride, block // stride, generation
    )
    given = (*strides(queries)[:3], *strides(high)[:3], heads, sharing, rows, count, first, float(scale))
    constants = (length, stride, dim, wide, more is not None, tile, width)
    low = high if more is None else more
    tiles = triton.cdiv(rows, tile)
    with torch.cuda.device_of(out):
        if lse is None:
            options = {"num_warps": 4, "num_stages": 1 + (generation > 0)}
            norms_kernel[(tiles, batch * heads)](queries, high, low, norms, *given, *constants, **options)
        grid = tiles * triton.cdiv(blocks, some), batch * heads // of
        options = {"num_warps": 4, "num_stages": 1}
        importance_kernel[grid](
            queries, high, low, norms, out, *given, blocks, of, *constants, block // stride, some, slots, **options
        )
    return out
