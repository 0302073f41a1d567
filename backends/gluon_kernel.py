"""The fixed part of Gluon kernels: copied verbatim into every file that `emit_gluon` writes."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, fence_async_shared, mbarrier, tma, warpgroup_mma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as SharedDescriptor

meet = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
"""Where the threads of a warpgroup wait for each other; the name changed in Triton 3.7."""


@gluon.constexpr_function
def rows_layout(rows, block, element):
    """The layout in shared memory of a tile of rows that a product reads."""
    return gl.NVMMASharedLayout.get_default_for([rows, block], element)


@gluon.jit
def barriers(SIZE: gl.constexpr, COUNT: gl.constexpr):
    """Barriers in shared memory that wait for COUNT arrivals each."""
    made = gl.allocate_shared_memory(gl.int64, [SIZE, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SIZE):
        mbarrier.init(made.index(i), count=COUNT)
    return made


@triton.jit
def turn_of(lap, SHIFT: tl.constexpr):
    """Which work of a lap this program takes up: to and fro, or shifted from lap to lap by so many thousandths of all."""
    programs, own = tl.num_programs(0), tl.program_id(0)
    to_and_fro = tl.where(lap % 2 == 0, own, programs - 1 - own)
    return (own + lap * (programs * SHIFT // 1000)) % programs if SHIFT else to_and_fro


@triton.jit
def laps_of(works, SHIFT: tl.constexpr):
    """How often this program takes up work."""
    programs = tl.num_programs(0)
    whole = works // programs
    return whole + (turn_of(whole, SHIFT) < works % programs).to(tl.int32)


@triton.jit
def work_of(lap, SHIFT: tl.constexpr):
    """The work of a lap."""
    return lap * tl.num_programs(0) + turn_of(lap, SHIFT)


@gluon.jit
def copy_tile(view, batch, head, residue, first, tiles, full, empty, step, SIZE: gl.constexpr, STAGES: gl.constexpr):
    """Copies a tile of keys or values into the ring ``tiles``, as soon as its place is empty."""
    place = step % STAGES
    mbarrier.wait(empty.index(place), (step // STAGES & 1) ^ 1)
    mbarrier.expect(full.index(place), SIZE)
    tma.async_copy_global_to_shared(view, [batch, head, residue, first, 0], full.index(place), tiles.index(place))


@gluon.jit
def skip_tile(full, empty, step, STAGES: gl.constexpr):
    """A step without a copy."""
    mbarrier.wait(empty.index(step % STAGES), (step // STAGES & 1) ^ 1)
    mbarrier.arrive(full.index(step % STAGES))


@gluon.jit
def first_scores(
    lap,
    more,
    q_s,
    k_s,
    q_full,
    k_full,
    step,
    zero,
    SLOT: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    BLOCK_D: gl.constexpr,
    PLACES: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Begins the product of the queries of a lap with their first keys; if there are no ``more`` laps, with what is left."""
    if more:
        mbarrier.wait(q_full.index(lap % PLACES), lap // PLACES & 1)
        mbarrier.wait(k_full.index(step % STAGES), step // STAGES & 1)
    fence_async_shared()
    query = q_s.index(lap % PLACES * (ROWS // 64) + SLOT)
    keys = tile_of(k_s, step, COLUMNS, BLOCK_D, STAGES)
    return warpgroup_mma(query, keys.permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def tile_of(tiles, step, ROWS: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr):
    """The tile (ROWS, BLOCK) of a step in its ring."""
    return tiles.index(step % STAGES).reshape([ROWS, BLOCK])


@gluon.jit
def through(place, tile, WIDE: gl.constexpr):
    """A tile as the layout WIDE has it, in the dtype of the place in shared memory that it goes through."""
    meet()
    place.store(tile.to(place.dtype))
    meet()
    return place.load(WIDE)


@gluon.constexpr_function
def sums_layout(block, dim, held):
    """How threads store and load the sums (64, block) that one pass leaves the next: `in_fours`, four of a row each.

    As matrix instructions hold them, if the dims in memory are no multiple of 16.
    """
    if dim % 16:
        return held
    columns = [[0, 1], [0, 2], *([0, 1 << bit] for bit in range(4, block.bit_length() - 1))]
    lanes = [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout([*columns, [8, 0]], lanes, [[16, 0], [32, 0]], [], [64, block])


@gluon.jit
def in_fours(tile, SUMS: gl.constexpr, DIM: gl.constexpr):
    """Sums as passes leave them: the two columns of 16 that a thread holds, and the two 8 further on, side by side."""
    if DIM % 16 == 0:
        tile = tile.reshape([64, tile.shape[1] // 16, 2, 4, 2]).permute((0, 1, 3, 2, 4)).reshape([64, tile.shape[1]])
    return gl.convert_layout(tile, SUMS)


@gluon.jit
def in_pairs(tile, HELD: gl.constexpr, DIM: gl.constexpr):
    """What `in_fours` has put together, as it was."""
    if DIM % 16 == 0:
        tile = tile.reshape([64, tile.shape[1] // 16, 4, 2, 2]).permute((0, 1, 3, 2, 4)).reshape([64, tile.shape[1]])
    return gl.convert_layout(tile, HELD)


@triton.jit
def peak_of(top, peak):
    """The highest score so far, the same or 0 where there is none, and what that leaves of older weights."""
    new = tl.maximum(top, peak)
    safe = tl.where(new == float("-inf"), 0.0, new)
    return new, safe, tl.exp2(top - safe)


def specialised(rows):
    """Warps of the first consumer (the kernel says the others'); registers such that two programs of 64 rows fit."""
    return {"num_warps": 4} if rows > 64 else {"num_warps": 4, "maxnreg": 128}


def places(blocks, rows, columns):
    """How many tiles of queries fit into shared memory, and how many of keys and of values next to them."""
    room, row, column = 226_000 if rows > 64 else 112_000, 2 * rows * blocks[2], 2 * columns * (blocks[2] + blocks[3])
    ahead = 2 if 2 * (row + column) <= room else 1
    return ahead, max(2, min(4, (room - ahead * row) // column))


def programs(works, rows, device):
    """How many programs to start for some tiles of work: as many as run at a time."""
    return min(works, processors(device) * (1 if rows > 64 else 2))


@lru_cache(maxsize=64)
def processors(device):
    """The streaming multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def shared_view(t, stride, rows, block, generation):
    """A `by_residue` view, of a copy where it must be, from which the copy engine loads tiles (rows, block)."""
    layout = _shared_layout(t.shape, t.stride(), t.dtype, stride, rows, block)
    if layout is None:
        t = torch.nn.functional.pad(t, (0, 0, 0, -t.shape[2] % stride if t.shape[2] else 1)).contiguous()
        layout = _shared_layout(t.shape, t.stride(), t.dtype, stride, rows, block)
    view = object.__new__(SharedDescriptor)  # its checks were made on the layout
    vars(view).update(layout, base=t)
    return view


@lru_cache(maxsize=512)
def _shared_layout(shape, steps, dtype, stride, rows, block):
    """What `shared_view` views have in common; None for tensors that have none."""
    found = by_residue(shape, steps, stride)
    if found is None:
        return None
    tile = [1, 1, 1, rows, block]
    element = getattr(gl, str(dtype).removeprefix("torch."))
    layout = gl.NVMMASharedLayout.get_default_for(tile, element)
    return vars(SharedDescriptor(torch.empty(0, dtype=dtype), *found, tile, layout))
