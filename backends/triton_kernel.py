"""The fixed part of Triton kernels: copied verbatim into every file that `emit_triton` writes."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch_kernel import launch


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
def load_at(at, places, limit, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BOUND: tl.constexpr):
    """Values (rows, BLOCK) at addresses; with BOUND, rows whose place is not under ``limit`` (or, with 2, under 0) are zero."""
    dims = tl.arange(0, BLOCK)
    if BOUND:
        inside = (places < limit)[:, None]
        if BOUND == 2:
            inside = inside & (places >= 0)[:, None]
        if BLOCK != WIDTH:
            inside = inside & (dims < WIDTH)[None, :]
        return tl.load(at, mask=inside, other=0.0)
    if BLOCK != WIDTH:
        return tl.load(at, mask=(dims < WIDTH)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def load_tile(
    view,
    batch,
    head,
    residue,
    index,
    base,
    places,
    stride_n,
    stride_d,
    limit,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BOUND: tl.constexpr,
):
    """A tile (SIZE, BLOCK) of rows: by the copy engine from ``index`` on in a `described` view, or those at ``places``.

    ``places`` is the first of SIZE neighbours, or all of them (SIZE,).
    """
    dims = tl.arange(0, BLOCK)[None, :] * stride_d
    if view is not None:
        return view.load([batch, head, residue, index, 0]).reshape(SIZE, BLOCK)
    elif len(places.shape) == 0:  # noqa: RET505 - what follows a branch is compiled with it
        rows = tl.arange(0, SIZE)
        at = base + places.to(tl.int64) * stride_n + rows[:, None] * stride_n + dims
        return load_at(at, places + rows, limit, WIDTH, BLOCK, BOUND)
    else:
        return load_at(base + places.to(tl.int64)[:, None] * stride_n + dims, places, limit, WIDTH, BLOCK, BOUND)


@triton.jit
def load_values(base, places, limit, other, SIZE: tl.constexpr, BOUND: tl.constexpr):
    """Values (SIZE,) at places as in `load_tile`; those out of bounds are ``other``."""
    if len(places.shape) == 0:
        places = places + tl.arange(0, SIZE)
    if BOUND == 2:
        return tl.load(base + places, mask=(places >= 0) & (places < limit), other=other)
    elif BOUND == 1:  # noqa: RET505 - what follows a branch is compiled with it
        return tl.load(base + places, mask=places < limit, other=other)
    else:
        return tl.load(base + places)


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
def join(acc, total, top, other, lse):
    """The softmax state with another output (rows, dims) and its log-sum-exp in base 2 (rows,), -inf for none."""
    peak = tl.maximum(top, lse)
    safe = tl.where(peak == float("-inf"), 0.0, peak)
    decay, gain = tl.exp2(top - safe), tl.exp2(lse - safe)
    return acc * decay[:, None] + other * gain[:, None], total * decay + gain, peak


@triton.jit
def fold_query(acc, scores, norm, delta, grad, key, value):
    """One step of the gradient of q: scores (rows, columns) in base 2, norm and delta (rows,)."""
    p = tl.exp2(scores - norm[:, None])
    slope = p * (tl.dot(grad, value.T, input_precision="ieee") - delta[:, None])
    return tl.dot(slope.to(key.dtype), key, acc, input_precision="ieee")


@triton.jit
def fold_query_one(acc, scores, norm, delta, grad, key, value):
    """One step with one key a row: scores (rows,), key and value (rows, dims)."""
    slope = tl.exp2(scores - norm) * (tl.sum(grad.to(tl.float32) * value.to(tl.float32), 1) - delta)
    return acc + slope[:, None] * key.to(tl.float32)


@triton.jit
def fold_key_one(dk, dv, scores, norm, delta, query, grad, value):
    """One step with one query a key: scores, norm and delta (keys,), query and grad (keys, dims)."""
    p = tl.exp2(scores - norm)
    slope = p * (tl.sum(grad.to(tl.float32) * value.to(tl.float32), 1) - delta)
    return dk + slope[:, None] * query.to(tl.float32), dv + p[:, None] * grad.to(tl.float32)


@triton.jit(do_not_specialize=["rows", "splits"])
def merge_kernel(out_ptr, lse_ptr, rows, splits, WIDTH: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr):
    """Outputs (splits, rows, WIDTH) with their log-sum-exp (splits, rows), merged into the first."""
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK)[None, :]
    top = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([1, BLOCK], tl.float32)
    for first in range(0, splits, AT_ONCE):
        part = first + tl.arange(0, AT_ONCE)
        at = part * rows + row
        inside = (part < splits)[:, None] & (dims < WIDTH)
        others = tl.load(out_ptr + at[:, None] * WIDTH + dims, mask=inside, other=0.0)
        lse = tl.load(lse_ptr + at, mask=part < splits, other=float("-inf")) * 1.4426950408889634
        peak = tl.maximum(top, tl.max(lse, 0))
        safe = tl.where(peak == float("-inf"), 0.0, peak)
        decay, gain = tl.exp2(top - safe), tl.exp2(lse - safe)
        acc = acc * decay[:, None] + tl.sum(others * gain[:, None], 0)[None, :]
        total = total * decay + tl.sum(gain, 0)
        top = peak
    empty = total == 0.0
    out = acc / tl.where(empty, 1.0, total)[:, None]
    tl.store(out_ptr + row * WIDTH + dims, out, mask=dims < WIDTH)
    lse = tl.where(empty, float("-inf"), (top + tl.log2(total)) * 0.6931471805599453)
    tl.store(lse_ptr + row + tl.zeros([1], tl.int32), lse)


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
def member_of_table(base, rows, blocks, DRAWS: tl.constexpr):
    """Whether each key block is among the draws of its query block, from a table (query blocks, DRAWS)."""
    found = tl.load(base + rows * DRAWS) == blocks
    for i in range(1, DRAWS):
        found = found | (tl.load(base + rows * DRAWS + i) == blocks)
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


def launch_options(rows, wide, itemsize, generation):
    """Warps and pipeline stages that keep accumulators in registers and tiles in shared memory.

    ``wide`` is the padded head dim, ``generation`` the GPU's major compute capability, or 0 for AMD.
    """
    heavy = MASK_SIZE > (24 if wide <= 64 else 16) and 0 < generation < 9
    roomy = rows <= 64 and rows * wide * itemsize <= 16384 and not heavy
    return {"num_warps": 4 if roomy else 8, "num_stages": 2 if generation == 0 or wide * itemsize > 256 else 3}


def gradient_options(rows, wide, itemsize, generation):
    """The same for gradients, which keep one or two accumulators and two products of a tile."""
    small = rows <= 64 and rows * wide * itemsize <= 16384 and generation != 8
    return {"num_warps": 4 if small else 8, "num_stages": 1 if generation == 0 or wide * itemsize > 512 else 2}


def described(t, stride, rows, block, generation):
    """A `by_residue` view from which the copy engine loads tiles (rows, block); None where there is no such engine or view."""
    layout = _layout(t.shape, t.stride(), t.dtype, stride, rows, block) if generation >= 9 else None
    if layout is None:
        return None
    view = object.__new__(TensorDescriptor)  # its checks were made on the layout
    vars(view).update(layout, base=t)
    return view


@lru_cache(maxsize=512)
def _layout(shape, steps, dtype, stride, rows, block):
    """What `described` views have in common."""
    found = by_residue(shape, steps, stride)
    return found and vars(TensorDescriptor(torch.empty(0, dtype=dtype), *found, [1, 1, 1, rows, block]))


def by_residue(shape, steps, stride):
    """Shape and steps of (b, h, n, d) as (b, h, stride, n // stride, d) for the copy engine; None where it cannot be.

    A residue must not end before another, and every row must lie in memory for itself.
    """
    copied = any(size > 1 and step == 0 for size, step in zip(shape, steps))  # noqa: B905
    if shape[2] % stride or 0 in shape or copied:
        return None
    steps = [step if size > 1 else 16 for size, step in zip(shape, steps)]  # noqa: B905 - an axis of one may have any step
    b, h, n, d = shape
    return [b, h, stride, n // stride, d], [*steps[:2], steps[2], steps[2] * stride, 1]


def splits_of(programs, tiles, most, least):
    """How many programs split the work on each of some long rows: to ``most`` in all, with two tiles each or more.

    Rows that are not alike are split in ``least`` parts if that many times ``most`` programs are not reached otherwise.
    """
    programs = max(1, programs)
    return max(1, min(max(most // programs, min(least, least * most // programs)), tiles // 2))


def merged(out, lse):
    """Partial outputs (splits, ..., rows, d_v) and log-sum-exps (splits, ..., rows) as one of each."""
    splits, rows, wide = lse.shape[0], lse[0].numel(), out.shape[-1]
    if splits > 1 and rows:
        given = (out, lse, rows, splits, wide, triton.next_power_of_2(wide), 16)
        launch(merge_kernel, (rows, 1, 1), ((out.device,), wide), given, {"num_warps": 1})
    return out[0], lse[0]


def summed(parts):
    """Partial sums (splits, ...) as one."""
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)


def sets_of(lists, heads, members):
    """Lists (b or 1, h, n_q, slots) of all heads, of groups or of one for all: one for every ``members`` heads, or for all."""
    sets, of = heads // members, lists.shape[1]
    return lists if of == 1 else lists[:, :: of // sets] if of >= sets else lists.repeat_interleave(sets // of, 1)


def by_block(lists, blocks, members, rows):
    """Lists (b, h, n_q, 1) as `turned`; then, of tiles of ``rows`` of the heads that share a list, of queries of one block:

    the block of each tile (b, h, tiles), ``blocks`` for those past the last, and how many tiles there are before each block.
    """
    order, begin, count = turned(lists, blocks)
    tiles = (count * members + rows - 1) // rows
    end = tiles.cumsum(-1, dtype=torch.int32)
    most = -(-lists.shape[2] * members // rows) + blocks
    each = torch.arange(most, dtype=torch.int32, device=lists.device).expand(*count.shape[:2], most).contiguous()
    return order, begin, count, torch.searchsorted(end, each, right=True, out_int32=True), end - tiles


def is_same(k, v, blocks):
    """Whether values are the first dims of the keys themselves, so that a tile of keys is one of values too."""
    head_dim, value_dim, padded, wide = blocks
    alike = k.data_ptr() == v.data_ptr() and k.stride() == v.stride()
    return alike and value_dim == wide and wide == (padded if head_dim == padded else padded // 2)


@lru_cache(maxsize=64)
def picked_setting(size, itemsize, blocks, kind, generation, same=False):
    """The head dims padded in two parts, the second of them, a tile's rows and columns, and what launches are told.

    ``size`` heads share a list, or for the gradients of keys so many are in a block. Measured on an H200, but for the kinds
    that take queries by block: with those sizes they spill little or nothing.
    """
    head_dim, value_dim, padded, wide = blocks
    main, rest = padded // 2, max(16, triton.next_power_of_2(max(1, head_dim - padded // 2)))
    main, rest = (main, rest) if main >= 16 and main < head_dim and rest <= main // 2 else (padded, 0)
    widest = max(main, wide) * itemsize
    narrow = widest > (512 if kind != "picked" else 1024) or (kind == "picked_keys" and generation == 0)
    rows = min(32 if narrow else 64, max(16, triton.next_power_of_2(size)))
    columns = 64 if widest <= 256 else 32 if widest <= 1024 else 16
    if same and kind == "picked" and columns == 32 and generation == 9:
        columns = 64
    elif kind.startswith("blocks") and generation == 8:
        columns = min(columns, 32)
    stages = 2 if widest <= 512 or kind == "picked" else 1
    warps = 8 if rows * max(main, wide) > 8192 else 4
    return (head_dim, value_dim, main, wide), rest, rows, columns, {"num_warps": warps, "num_stages": stages}


def generation_of(device):
    """The major compute capability of an NVIDIA GPU, and 0 for everything else."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" and not torch.version.hip else 0


@lru_cache(maxsize=64)
def setting(head_dim, value_dim, itemsize, device, rows, options):
    """The head dims as they are and padded, the GPU's generation, and what ``options`` says of launches."""
    generation = generation_of(device)
    padded = max(16, triton.next_power_of_2(head_dim)), max(16, triton.next_power_of_2(value_dim))
    return (head_dim, value_dim, *padded), generation, options(rows, max(padded), itemsize, generation)


def aligned(t):
    """The tensor, or a copy of it, with unit stride in the last axis and rows that start at multiples of 16 elements.

    Loads are wide only then. It is also a matter of right and wrong: with unaligned rows and different dims of q and v,
    Triton 3.6 compiles the two matrix products into wrong results.
    """
    if t.is_contiguous() and t.shape[-1] % 16 == 0 and t.data_ptr() % 16 == 0:
        return t
    spread = all(stride % 16 == 0 or size == 1 for stride, size in zip(t.stride()[:-1], t.shape[:-1]))  # noqa: B905
    if spread and t.stride(-1) == 1 and t.data_ptr() % 16 == 0:
        return t
    wide = torch.empty(*t.shape[:-1], -(-t.shape[-1] // 16) * 16, dtype=t.dtype, device=t.device)
    return wide[..., : t.shape[-1]].copy_(t)


def strides(t):
    """Strides of a runtime input's leading axes, 0 where an axis is shared."""
    return tuple(0 if t.shape[i] == 1 else t.stride(i) for i in range(t.dim()))


def kept(make, n, n_q, heads, device):
    """``make(scope, n_q)``, whose result depends on nothing else: the last few are kept."""
    if device.type != "cuda":
        return _made(make, n, n_q, heads, device, 0)
    if torch.cuda.is_current_stream_capturing():  # what is made there belongs to the graph
        return _made.__wrapped__(make, n, n_q, heads, device, 0)
    return _made(make, n, n_q, heads, device, torch.cuda.current_stream(device).cuda_stream)


@lru_cache(maxsize=16)
def _made(make, n, n_q, heads, device, stream):
    batch, head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device), torch.arange(heads, device=device)
    return make(Scope(n, batch, head.view(-1, 1, 1), {}), n_q)


def tiles_of_table(table, first, tiles, rows, columns, block, n):
    """The column tiles that a block table may hold for each row tile: (b, h, tiles, width)."""
    width = -(-n // columns)
    device = table.device
    total = torch.nn.functional.pad(table.to(torch.int32).cumsum(-1).cumsum(-2), (1, 0, 1, 0))

    def edges(begin, count, size):
        start = torch.arange(begin, begin + count, device=device) * size
        return start // block, (start + size).clamp(max=n).sub(1) // block + 1

    (top, bottom), (left, right) = edges(first, tiles, rows), edges(0, width, columns)
    corner = lambda r, c: total[:, :, r[:, None], c[None, :]]  # noqa: E731
    some = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left) > 0
    return torch.where(some, torch.arange(width, device=device, dtype=torch.int32), torch.iinfo(torch.int32).max)


def tiles_of_draws(scope, keys, first, tiles, rows, columns, block):
    """The key tiles that hold the drawn key blocks of each row tile: (1, h, tiles, width)."""
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
    return torch.where(valid, tile, torch.iinfo(torch.int32).max).flatten(2)[None].to(torch.int32)


def once(tiles, keep):
    """The tiles (b, h, rows, width) to ``keep``, each of a row once, ascending, others at the end."""
    nothing = torch.iinfo(tiles.dtype).max
    tiles = tiles.masked_fill(~keep, nothing).sort(-1).values
    again = torch.zeros_like(tiles, dtype=torch.bool)
    again[..., 1:] = tiles[..., 1:] == tiles[..., :-1]
    return tiles.masked_fill(again, nothing).sort(-1).values


def lists(tiles, keep):
    """The tiles of each row (b, h, rows, width) to ``keep``; where each list begins, and its length."""
    tiles = once(tiles, keep).contiguous()
    count = (tiles < torch.iinfo(tiles.dtype).max).sum(-1, dtype=torch.int32)
    begin = torch.arange(count.numel(), device=tiles.device).view(count.shape) * tiles.shape[-1]
    return tiles, begin, count


def turned(values, number):
    """For each value 0 to number - 1, the rows (ascending) that hold it in (b, h, rows, slots); begins and lengths."""
    b, h, _, slots = values.shape
    flat = torch.where((values < 0) | (values >= number), number, values).flatten(2)
    flat, order = flat.sort(dim=-1, stable=True)
    each = torch.arange(number, device=values.device, dtype=flat.dtype).expand(b, h, number).contiguous()
    begin = torch.searchsorted(flat, each)
    count = (torch.searchsorted(flat, each, right=True) - begin).to(torch.int32)
    offset = torch.arange(b * h, device=values.device).view(b, h, 1) * flat.shape[-1]
    return (order // max(1, slots)).to(torch.int32), begin + offset, count
