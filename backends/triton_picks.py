"""Which keys score best, in Triton: copied verbatim into files that select keys on a GPU.

A row of scores is read once. What is over a bound goes to a list, behind what went there before; when the list is full, its
best ``most`` entries stay, and later ones must be over the worst of these. The first bound is a guess from a sample of the row.
Where it proves too high, the row is read again without. The guess decides how long it takes, never what is picked.
"""

import torch
import triton
import triton.language as tl

from patternc.runtime.picking import best, compacted

NO_RANK = tl.constexpr(-(1 << 63))
WORST_RANK = tl.constexpr(-0x7F800001 << 32)  # of a score of -inf
FORCED_RANK = tl.constexpr(0x7FC00000 << 32)  # where those of NaN begin


@triton.jit
def indices_from(start, BLOCK: tl.constexpr):
    """BLOCK indices as a tile (BLOCK // 4, 4): a thread loads a row at once, and has it for itself."""
    return (start + 4 * tl.arange(0, BLOCK // 4))[:, None] + tl.arange(0, 4)[None, :]


@triton.jit
def columns_of(tile):
    """The four columns of a tile."""
    even, odd = tl.split(tl.reshape(tile, (tile.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def appended(to, count, values, keep, limit):
    """Writes those of a tile's values to keep behind ``count`` others, none from ``limit`` (or None) on; how many are there."""
    keeps, values = columns_of(keep.to(tl.int32)), columns_of(values)
    rows = keeps[0] + keeps[1] + keeps[2] + keeps[3]
    place = count + tl.cumsum(rows, 0) - rows
    for i in tl.static_range(4):
        mask = keeps[i] > 0
        if limit is not None:
            mask = mask & (place < limit)
        tl.store(to + place, values[i], mask=mask)
        place += keeps[i]
    return count + tl.sum(rows, 0)


@triton.jit
def marks_at(marks, index, limit, STEP: tl.constexpr):
    """The marks of a row (one for all where STEP is 0), false from ``limit`` on."""
    return tl.load(marks + index * STEP, mask=index < limit, other=0) != 0


@triton.jit
def scores_at(scores, may, forced, index, limit, bound, MAY: tl.constexpr, FORCED: tl.constexpr):
    """The scores of a row, NaN for forced ones, and which of them are forced or over a bound, and candidates."""
    found = tl.load(scores + index, mask=index < limit, other=0.0, eviction_policy="evict_first")
    enters = (index < limit) & (found > bound)
    if forced is not None:
        must = marks_at(forced, index, limit, FORCED)
        found = tl.where(must, float("nan"), found)
        enters = enters | must
    if may is not None:
        enters = enters & marks_at(may, index, limit, MAY)
    return found, enters


@triton.jit
def entries_of(scores, index):
    """Scores and indices as int64, for the list."""
    return (scores.to(tl.int32, bitcast=True).to(tl.int64) << 32) | index.to(tl.uint32).to(tl.int64)


@triton.jit
def ranks_of(entries):
    """Entries as int64 that sort like picks, the best on top: by score (NaN over all, -0.0 as 0.0), then by index."""
    bits = (entries >> 32).to(tl.int32)
    bits = tl.where(bits == -0x80000000, 0, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (bits.to(tl.int64) << 32) | (~entries & 0x7FFFFFFF)


@triton.jit
def score_of(rank):
    """The score of a rank."""
    bits = (rank >> 32).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def ranks_at(entries, start, count, BLOCK: tl.constexpr):
    """The ranks of a list's entries from ``start`` on."""
    index = indices_from(start, BLOCK)
    return tl.where(index < count, ranks_of(tl.load(entries + index, mask=index < count, other=0)), NO_RANK)


@triton.jit
def bound_of(first, entries, count, most, BLOCK: tl.constexpr):
    """A bound that just ``most`` of more ranks reach: those in ``first``, and those of a list from BLOCK to ``count``."""
    high = tl.max(first)
    low = tl.min(tl.where(first == NO_RANK, high, first))
    for start in range(BLOCK, count, BLOCK):
        ranks = ranks_at(entries, start, count, BLOCK)
        high = tl.maximum(high, tl.max(ranks))
        low = tl.minimum(low, tl.min(tl.where(ranks == NO_RANK, high, ranks)))
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # their mean rounded up, without a sum that could overflow
        reach = tl.sum((first >= middle).to(tl.int32))
        for start in range(BLOCK, count, BLOCK):
            reach += tl.sum((ranks_at(entries, start, count, BLOCK) >= middle).to(tl.int32))
        high = tl.where(reach > most, high, tl.where(reach < most, middle - 1, middle))
        low = tl.where(reach < most, low, middle)
    return low


@triton.jit
def shortened(entries, count, most, BLOCK: tl.constexpr):
    """Leaves the best ``most`` entries of a list and all forced ones, in order; how many, and the rank that they reach."""
    tl.debug_barrier()
    bound = bound_of(ranks_at(entries, 0, count, BLOCK), entries, count, most, BLOCK)
    bound = tl.minimum(bound, FORCED_RANK)
    kept = 0
    for start in range(0, count, BLOCK):
        index = indices_from(start, BLOCK)
        found = tl.load(entries + index, mask=index < count, other=0)
        tl.debug_barrier()  # what is written lies at or before what is read
        kept = appended(entries, kept, found, (index < count) & (ranks_of(found) >= bound), None)
    tl.debug_barrier()
    return kept, bound


@triton.jit
def guess_of(scores, may, forced, entries, m, rank, MAY: tl.constexpr, FORCED: tl.constexpr, BLOCK: tl.constexpr):
    """A score just under one of some rank in a sample of a row, or -inf: 8 neighbours from each of BLOCK // 8 equal parts."""
    slot = indices_from(0, BLOCK)
    part, width = slot // 8, m // (BLOCK // 8)
    shift = ((part * 40503) % 65536).to(tl.int64) * (width - 7) >> 16
    index = part * width + shift.to(tl.int32) + slot % 8
    found, enters = scores_at(scores, may, forced, index, m, float("-inf"), MAY, FORCED)
    sample = tl.where(enters, ranks_of(entries_of(found, index)), NO_RANK)
    sample = tl.where(tl.sum(enters.to(tl.int32)) < rank, WORST_RANK, sample)
    bound = bound_of(sample, entries, 0, rank, BLOCK)
    return score_of(tl.maximum(bound - (2 << 32), WORST_RANK))  # one less could be -0.0, which 0.0 is not over


@triton.jit(
    do_not_specialize=[
        *("scores_b", "scores_h", "scores_r", "may_b", "may_h", "may_r", "forced_b", "forced_h", "forced_r"),
        *("held_b", "held_h", "held_r", "jobs", "heads", "rows", "m", "most", "width", "room", "rank"),
    ]
)
def picks_kernel(
    out_ptr,
    entries_ptr,
    scores_ptr,
    may_ptr,
    forced_ptr,
    held_ptr,
    scores_b,
    scores_h,
    scores_r,
    may_b,
    may_h,
    may_r,
    forced_b,
    forced_h,
    forced_r,
    held_b,
    held_h,
    held_r,
    jobs,
    heads,
    rows,
    m,
    most,
    width,
    room,
    rank,
    UNIT: tl.constexpr,
    MAY: tl.constexpr,
    FORCED: tl.constexpr,
    HELD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The lists of `ranked`, (jobs, width); each program has a list of entries of its own, (programs, room), int64.

    Steps of batches, heads and rows, and m, are counted in UNITs, so that Triton sees how scores are aligned.
    """
    m = m * UNIT
    entries = entries_ptr + tl.program_id(0).to(tl.int64) * room
    job = tl.program_id(0)
    while job < jobs:
        row, head, batch = (job % rows).to(tl.int64), (job // rows % heads).to(tl.int64), (job // rows // heads).to(tl.int64)
        out = out_ptr + job.to(tl.int64) * width
        scores = scores_ptr + (batch * scores_b + head * scores_h + row * scores_r) * UNIT
        may = None if may_ptr is None else may_ptr + (batch * may_b + head * may_h + row * may_r) * UNIT
        forced = None if forced_ptr is None else forced_ptr + (batch * forced_b + head * forced_h + row * forced_r) * UNIT
        held = None if held_ptr is None else held_ptr + (batch * held_b + head * held_h + row * held_r) * UNIT

        bound = tl.full([], float("-inf"), tl.float32)
        if rank > 0:
            bound = guess_of(scores, may, forced, entries, m, rank, MAY, FORCED, BLOCK)
        if most == 0:
            bound = tl.full([], float("inf"), tl.float32)
        start, count, only_forced = 0, 0, False
        while start < m:
            index = indices_from(start, BLOCK)
            found, enters = scores_at(scores, may, forced, index, m, bound, MAY, FORCED)
            count = appended(entries, count, entries_of(found, index), enters, None)
            start += BLOCK
            if (start >= m) & (count < most) & (bound != float("-inf")):
                bound = tl.full([], float("-inf"), tl.float32)
                start, count = 0, 0
            if (count > room - BLOCK) | ((start >= m) & (count > most)):
                count, worst = shortened(entries, count, most, BLOCK)
                bound = score_of(worst)  # of equal scores the first wins, and later ones are not over it
                if worst == FORCED_RANK:
                    only_forced, start = True, m

        tl.debug_barrier()
        written = 0
        if only_forced:  # and they may be more than the list holds
            if forced is not None:
                for start in range(0, m, BLOCK):
                    index = indices_from(start, BLOCK)
                    keep = marks_at(forced, index, m, FORCED)
                    if may is not None:
                        keep = keep & marks_at(may, index, m, MAY)
                    if held is not None:
                        keep = keep & ~marks_at(held, index, m, HELD)
                    written = appended(out, written, index, keep, width)
        else:
            for start in range(0, count, BLOCK):
                place = indices_from(start, BLOCK)
                keep = place < count
                index = tl.load(entries + place, mask=keep, other=0).to(tl.int32)
                if held is not None:
                    keep = keep & ~marks_at(held, index, m, HELD)
                written = appended(out, written, index, keep, width)
        for start in range(written, width, BLOCK):
            place = indices_from(start, BLOCK)
            tl.store(out + place, -1, mask=place < width)
        tl.debug_barrier()
        job += tl.num_programs(0)


def picks(scores, may, forced, held, most, width):
    """`ranked` on a GPU; in Triton's interpreter a program for each row would take long."""
    if scores.device.type == "cuda":
        return ranked(scores, may, forced, held, most, width)
    return compacted(best(scores, may, most, forced) & ~held, width)


def ranked(scores, may, forced, held, most, width, block=2048, programs=1024):
    """The ``most`` best-scoring candidates of each row as ascending int32 lists (b, h, rows, width), -1 where there are fewer.

    scores: (b, h, rows, m), compared in float32; -inf and NaN are never picked, and of equal scores the first one is.
    The others are bool tensors that broadcast with the scores, or None. ``may`` are the candidates (None: all); of them
    ``forced`` ones are picked first, whatever their scores and however many. Of what is picked, what is ``held`` is left out
    then. The width must be enough for what is left.
    """
    rows, m = scores.shape[2:]
    scores = scores.float()
    scores = scores if m == 1 or scores.stride(3) == 1 else scores.contiguous()
    axes = torch.broadcast_shapes(*(t.shape for t in (scores, may, forced, held) if t is not None))[:2]
    given = (scores, *(None if mask is None else marks_of(mask) for mask in (may, forced, held)))
    out = torch.empty((*axes, rows, width), dtype=torch.int32, device=scores.device)
    jobs, most = axes[0] * axes[1] * rows, min(most, m)
    if out.numel() == 0 or m == 0 or (most == 0 and forced is None):
        return out.fill_(-1)
    room = min(most + 3 * block, m + block)
    # A bound that about 1.5 times as many are over; four more ranks make up for small numbers.
    rank = 3 * most * block // (2 * m) + 4
    rank = rank if room < m and rank < block else 0
    programs = min(jobs, programs)
    entries = torch.empty((programs, room), dtype=torch.int64, device=scores.device)
    steps = [0 if t is None or t.shape[i] == 1 else t.stride(i) for t in given for i in range(3)]
    last = [0 if t is None or t.shape[3] == 1 else t.stride(3) for t in given[1:]]
    unit = 16 if all(size % 16 == 0 for size in (m, *steps)) else 1
    steps = [step // unit for step in steps]
    sizes = (jobs, axes[1], rows, m // unit, most, width, room, rank)
    # Registers for four programs on a processor, so that some read while others count.
    options = {"maxnreg": 128} if scores.is_cuda and torch.version.hip is None else {}
    with torch.cuda.device_of(scores):
        picks_kernel[(programs,)](out, entries, *given, *steps, *sizes, unit, *last, block, num_warps=4, **options)
    return out


def marks_of(mask):
    """A mask as bytes (b, h, rows, m) with step 1 or 0 in the last axis; nothing is repeated."""
    mask = mask[(None,) * (4 - mask.dim())].view(torch.uint8)
    if mask.shape[3] == 1 or mask.stride(3) in (0, 1):
        return mask
    return mask[tuple(slice(0, 1) if step == 0 else slice(None) for step in mask.stride())].contiguous()
