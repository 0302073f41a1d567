"""The fixed part of Triton kernels: copied verbatim into every file that `emit_triton` writes."""

import torch
import triton
import triton.language as tl


@triton.jit
def div(a, d: tl.constexpr):
    """a // d rounded down, whichever way the hardware's division rounds."""
    quotient = a // d
    return quotient - (a - quotient * d < 0).to(quotient.dtype)


@triton.jit
def mod(a, d: tl.constexpr):
    """a % d in 0 <= r < d."""
    rest = a - a // d * d
    return tl.where(rest < 0, rest + d, rest)


@triton.jit
def load_tile(
    base, first, stride_n, stride_d, limit, SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BOUND: tl.constexpr
):
    """Rows first to first + SIZE of (n, WIDTH) values as (SIZE, BLOCK); with BOUND, rows at or over ``limit`` are zero."""
    rows = tl.arange(0, SIZE)
    dims = tl.arange(0, BLOCK)
    at = base + first.to(tl.int64) * stride_n + rows[:, None] * stride_n + dims[None, :] * stride_d
    if BOUND:
        inside = (first + rows < limit)[:, None]
        if BLOCK != WIDTH:
            inside = inside & (dims < WIDTH)[None, :]
        return tl.load(at, mask=inside, other=0.0)
    if BLOCK != WIDTH:
        return tl.load(at, mask=(dims < WIDTH)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def load_rows(
    base, places, stride_n, stride_d, limit, SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BOUND: tl.constexpr
):
    """Like `load_tile`, of the rows at ``places`` (SIZE,)."""
    dims = tl.arange(0, BLOCK)
    at = base + places.to(tl.int64)[:, None] * stride_n + dims[None, :] * stride_d
    if BOUND:
        inside = (places < limit)[:, None]
        if BLOCK != WIDTH:
            inside = inside & (dims < WIDTH)[None, :]
        return tl.load(at, mask=inside, other=0.0)
    if BLOCK != WIDTH:
        return tl.load(at, mask=(dims < WIDTH)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def fold(acc, total, top, scores, values):
    """One step of the online softmax, in base 2: scores (rows, columns) and values (columns, dims)."""
    peak = tl.maximum(top, tl.max(scores, 1))
    safe = tl.where(peak == float("-inf"), 0.0, peak)
    p = tl.exp2(scores - safe[:, None])
    decay = tl.exp2(top - safe)
    total = total * decay + tl.sum(p, 1)
    acc = tl.dot(p.to(values.dtype), values, acc * decay[:, None], input_precision="ieee")
    return acc, total, peak


@triton.jit
def fold_one(acc, total, top, scores, values):
    """One step with one key a row: scores (rows,) and values (rows, dims)."""
    peak = tl.maximum(top, scores)
    safe = tl.where(peak == float("-inf"), 0.0, peak)
    p = tl.exp2(scores - safe)
    decay = tl.exp2(top - safe)
    return acc * decay[:, None] + p[:, None] * values.to(tl.float32), total * decay + p, peak


@triton.jit
def column(keys, i, SLOTS: tl.constexpr):
    """Column i of (rows, SLOTS) keys."""
    return tl.max(tl.where(tl.arange(0, SLOTS)[None, :] == i, keys, -1), 1)


@triton.jit
def member(keys, blocks, DRAWS: tl.constexpr, SLOTS: tl.constexpr):
    """Whether each key block is among the draws of its row: keys (rows, SLOTS), blocks (1 or rows, columns)."""
    found = column(keys, 0, SLOTS)[:, None] == blocks
    for i in range(1, DRAWS):
        found = found | (column(keys, i, SLOTS)[:, None] == blocks)
    return found


@triton.jit
def drawn_ranks(count, head, row, SEED: tl.constexpr, DRAWS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr):
    """Floyd's sampling without replacement, as in `draw_ranks`: count and row (ROWS, 1) int64 -> ranks (ROWS, SLOTS)."""
    slots = tl.arange(0, SLOTS)[None, :]
    picked = tl.full([ROWS, SLOTS], -1, tl.int64)
    seed = tl.full([1, 1], SEED, tl.int64)
    for i in range(DRAWS):
        last = count - DRAWS + i
        rank = device_below(last + 1, seed, head, row, i)
        again = tl.max((picked == rank).to(tl.int32), 1)[:, None] > 0
        picked = tl.where(slots == i, tl.where(again, last, rank), picked)
    picked = tl.where(count <= DRAWS, tl.where(slots < count, slots, -1), picked)
    return tl.where(slots < DRAWS, picked, -1)


def launch_options(wide, itemsize, generation):
    """Warps and pipeline stages that keep accumulators in registers and tiles in shared memory.

    ``wide`` is the padded head dim, ``generation`` the GPU's major compute capability, or 0 for AMD.
    """
    heavy = MASK_SIZE > (24 if generation >= 9 or wide <= 64 else 16) and generation > 0
    roomy = ROWS <= 64 and ROWS * wide * itemsize <= 16384 and not heavy
    shallow = COMPACTED or generation == 0 or wide * itemsize > 256
    return {"num_warps": 4 if roomy else 8, "num_stages": 2 if shallow else 3}


def generation_of(device):
    """The GPU's major compute capability; 0 for AMD and for the interpreter."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" and not torch.version.hip else 0


def aligned(t):
    """The tensor, or a copy of it, with unit stride in the last axis and rows that start at multiples of 16 elements.

    Loads are wide only then. It is also a matter of right and wrong: with unaligned rows and different dims of q and v,
    Triton 3.6 compiles the two matrix products into wrong results.
    """
    spread = all(stride % 16 == 0 or size == 1 for stride, size in zip(t.stride()[:-1], t.shape[:-1]))  # noqa: B905
    if spread and t.stride(-1) == 1 and t.data_ptr() % 16 == 0:
        return t
    wide = torch.empty(*t.shape[:-1], -(-t.shape[-1] // 16) * 16, dtype=t.dtype, device=t.device)
    return wide[..., : t.shape[-1]].copy_(t)


def strides(t):
    """Strides of a runtime input's leading axes, 0 where an axis is shared."""
    return tuple(0 if t.shape[i] == 1 else t.stride(i) for i in range(t.dim()))


def listed_by_table(table, active, first, tiles, rows, columns, block, n):
    """The key tiles that a block table may hold for each row tile, ascending: lists and counts, int32."""
    width = -(-n // columns)
    device = table.device
    total = torch.nn.functional.pad(table.to(torch.int32).cumsum(-1).cumsum(-2), (1, 0, 1, 0))

    def edges(begin, count, size):
        start = torch.arange(begin, begin + count, device=device) * size
        return start // block, (start + size).clamp(max=n).sub(1) // block + 1

    (top, bottom), (left, right) = edges(first, tiles, rows), edges(0, width, columns)
    corner = lambda r, c: total[:, :, r[:, None], c[None, :]]  # noqa: E731
    some = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left) > 0
    row_tile = torch.arange(first, first + tiles, device=device)[:, None]
    some = some & active(row_tile, torch.arange(width, device=device)[None, :], n)
    return _lists(torch.where(some, torch.arange(width, device=device, dtype=torch.int32), width), width)


def listed_by_draws(scope, keys, first, tiles, rows, columns, block):
    """The key tiles that hold the drawn key blocks of each row tile, ascending: lists (1, h, tiles, width) and counts."""
    n, device = scope.n, scope.head.device
    start = torch.arange(first, first + tiles, device=device)[:, None] * rows
    spread = 1 if block % rows == 0 else (rows - 1) // block + 2
    query_blocks = start // block + torch.arange(spread, device=device)[None, :]
    inside = query_blocks * block < (start + rows).clamp(max=n)
    drawn = keys(scope, query_blocks.clamp(max=(n - 1) // block).view(-1, 1)).view(scope.head.numel(), tiles, -1)
    drawn = torch.where(inside.repeat_interleave(drawn.shape[2] // spread, 1)[None], drawn, -1)
    across = 1 if columns % block == 0 else block // columns if block % columns == 0 else (block - 1) // columns + 2
    tile = (drawn * block // columns)[..., None] + torch.arange(across, device=device)
    valid = (drawn >= 0)[..., None] & (tile * columns < ((drawn + 1) * block).clamp(max=n)[..., None])
    return _lists(torch.where(valid, tile, n).flatten(2)[None].to(torch.int32), n)


def _lists(tiles, nothing):
    """Sorted, without repeats, ``nothing`` entries last; and how many entries each list has."""
    tiles = tiles.sort(-1).values
    again = torch.zeros_like(tiles, dtype=torch.bool)
    again[..., 1:] = tiles[..., 1:] == tiles[..., :-1]
    tiles = tiles.masked_fill(again, nothing).sort(-1).values
    return tiles.contiguous(), (tiles < nothing).sum(-1, dtype=torch.int32)


def attention(q, k, v, *, scale=None, return_lse=False, **inputs):
    """Sparse attention of q (b, h, n_q, d), k (b, h_kv, n, d), v (b, h_kv, n, d_v): out (b, h, n_q, d_v), and lse if asked.

    This file holds the forward pass only.
    """
    check_call(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with torch.no_grad():
        out, lse = forward(q, k, v, dict(inputs), selections(q, k, inputs), scale)
    return (out, lse) if return_lse else out
