"""The scores of the lightning indexer as a Triton kernel: copied verbatim into every file whose pattern selects by them."""

import torch
import triton
import triton.language as tl

from .triton_kernel import aligned, generation_of, strides

PROGRAMS = 1024
"""How many programs there are before one is given more than a tile of keys: some for each processor."""


@triton.jit
def vectors(places, given, dims, DIM: tl.constexpr):
    """Some dims (1, dims) of the vectors at places (vectors, 1), zero where none is given."""
    return tl.load(places + dims, mask=given & (dims < DIM), other=0.0)


@triton.jit(do_not_specialize=["weights_b", "rows", "n", "last", "span"])
def indexed_kernel(
    queries_ptr,
    keys_ptr,
    weights_ptr,
    out_ptr,
    queries_b,
    queries_h,
    queries_n,
    keys_b,
    keys_n,
    weights_b,
    rows,
    n,
    last,
    span,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDE: tl.constexpr,
    SLICE: tl.constexpr,
):
    """The scores of QUERIES rows and ``span`` keys. HEADS are padded to WIDE, and SLICE dims of vectors are read at a time.

    The heads of all the rows are the columns of one product: they stay in shared memory and their weights in registers, while
    tiles of KEYS keys go by. Four threads of a warp hold a row of a product, so that the sum over heads hardly leaves a thread.
    """
    batch = tl.program_id(2).to(tl.int64)
    first, start = tl.program_id(0) * QUERIES, tl.program_id(1) * span
    columns, dims = tl.arange(0, QUERIES * WIDE)[:, None], tl.arange(0, SLICE)[None, :]
    row, head = (first + columns // WIDE).to(tl.int64), columns % WIDE
    given = (row < rows) & (head < HEADS)
    queries_ptr += batch * queries_b + row * queries_n + head * queries_h
    if SLICE >= DIM:
        queries = vectors(queries_ptr, given, dims, DIM).T
    weights = tl.load(weights_ptr + batch * weights_b + row * HEADS + head, mask=given, other=0.0).T

    stop = tl.minimum(start + span, n)
    whole = start + tl.maximum(tl.minimum(stop, last + first + 1) - start, 0) // KEYS * KEYS
    seen = tl.maximum(tl.minimum(stop, last + first + QUERIES), start)
    mine, near = first + tl.arange(0, QUERIES)[None, :], tl.arange(0, KEYS)[:, None]
    keys_n = keys_n.to(tl.int64)
    keys_ptr += batch * keys_b + near * keys_n
    out_ptr += (batch * rows + mine) * n + near
    for ragged in tl.static_range(2):  # tiles that all rows see all of need no masks
        for at in tl.range(whole if ragged else start, seen if ragged else whole, KEYS):
            there = near < (n - at if ragged else KEYS)
            here = keys_ptr + at * keys_n
            if SLICE >= DIM:
                alike = tl.dot(vectors(here, there, dims, DIM), queries, input_precision="ieee")
            else:
                alike = tl.zeros([KEYS, QUERIES * WIDE], tl.float32)
                for d in range(0, DIM, SLICE):
                    queries = vectors(queries_ptr, given, d + dims, DIM).T
                    alike = tl.dot(vectors(here, there, d + dims, DIM), queries, alike, input_precision="ieee")
            alike = tl.maximum(alike, 0.0, propagate_nan=tl.PropagateNan.ALL) * weights
            scores = tl.sum(tl.reshape(alike, [KEYS, QUERIES, WIDE]), 2)
            if ragged:
                scores = tl.where(near <= last + mine - at, scores, float("-inf"))
            tl.store(out_ptr + at, scores, mask=(near < (stop - at if ragged else KEYS)) & (mine < rows))
    for at in tl.range(start + tl.cdiv(seen - start, KEYS) * KEYS, stop, KEYS):
        tl.store(out_ptr + at, float("-inf"), mask=(near < stop - at) & (mine < rows))


def indexed_blocks(heads, dim, itemsize, generation):
    """Queries and keys of a tile, heads as they are padded and dims at a time; and what to launch with.

    On Hopper GPUs two programs fill a processor's shared memory and registers: one sums while the other multiplies.
    """
    wide, block, keys, stages = triton.next_power_of_2(heads), max(16, triton.next_power_of_2(dim)), 64, 3
    if itemsize > 2:  # no matrix unit, so that operands are in registers too
        columns, block = 64, min(block, 32)
    elif generation == 9:
        columns = 256 if block <= 128 else 128
    else:
        columns, block = 128, block if block <= 128 else 64
    queries = max(1, min(32, columns // wide))
    shared = (113 if block <= 128 else 226) << 10  # for two programs on a processor, or for one
    while (queries * wide + stages * keys) * block * itemsize + 4 * queries * keys > shared:
        queries //= 2
    return (queries, keys, wide, block), {"num_warps": 4, "num_stages": stages}


def indexed(queries, keys, weights, last=None):
    """sum over heads j of w_j relu(q_j . k): the scores I[t, s] of the lightning indexer (DeepSeek-V3.2, DeepSeek-AI 2025).

    queries: (b or 1, heads, rows, dim), and keys: (b or 1, 1, n, dim), in float32 unless both are bfloat16 or both float16.
    weights: (b or 1, heads, rows), of any floating dtype.
    last: the position of the first row, where a row looks at no key after its own position; None where it looks at all.

    Returns float32 (b, 1, rows, n), summed in float32, -inf for keys that a row does not look at. No gradient.
    """
    if queries.dtype != keys.dtype or queries.dtype == torch.float64:
        queries, keys = queries.float(), keys.float()
    queries, keys, weights = aligned(queries), aligned(keys[:, 0]), weights.float().transpose(1, 2).contiguous()
    (_, heads, rows, dim), n, device = queries.shape, keys.shape[1], queries.device
    (batch,) = torch.broadcast_shapes(*(t.shape[:1] for t in (queries, keys, weights)))
    out = torch.empty(batch, 1, rows, n, dtype=torch.float32, device=device)
    if 0 in out.shape:
        return out
    blocks, options = indexed_blocks(heads, dim, queries.element_size(), generation_of(device))
    rows_of, keys_of = triton.cdiv(rows, blocks[0]), triton.cdiv(n, blocks[1])
    tiles = max(1, min(64, batch * rows_of * keys_of // PROGRAMS))  # of keys, to each program
    steps = *strides(queries)[:3], *strides(keys)[:2], strides(weights)[0]
    sizes = rows, n, n if last is None else min(last, n), tiles * blocks[1]
    with torch.cuda.device_of(out):
        grid = rows_of, triton.cdiv(keys_of, tiles), batch
        indexed_kernel[grid](queries, keys, weights, out, *steps, *sizes, heads, dim, *blocks, **options)
    return out
