"""A small interpreter of what emitted Gluon kernels do: warpgroups are threads, tiles numpy arrays.

Triton's own interpreter knows nothing of Gluon. Here a kernel's functions run as they stand, in Python, with stand-ins for the
names they use. Barriers count arrivals and bytes as those of the hardware do, and a wait that nobody ends is an error, so
that the protocol between the warpgroups is tested with the arithmetic. Layouts, registers and timing are not.
"""

from __future__ import annotations

import ast
import random
import re
import threading
import time
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from triton.runtime.jit import JITFunction

PATIENCE = 20.0
"""Seconds after which a wait counts as a deadlock."""

PRODUCT = 0.0
"""Seconds that a product takes: with more, nobody who overwrites what it reads is too late for that."""

STORE = 0.0
"""Seconds that a store may take until it is seen: with more, some who do not wait for it look too early."""

ENGINE = 0.0
"""Seconds that copies may take: with more, they overtake each other."""


class Stuck(AssertionError):
    """A warpgroup waits for something that does not come."""


class Tile:
    """Numbers, or one number, as a kernel sees them."""

    def __init__(self, data):
        self.data = np.asarray(data)

    dtype = property(lambda self: self.data.dtype)
    shape = property(lambda self: self.data.shape)

    def to(self, dtype):
        return Tile(self.data.astype(dtype) if isinstance(dtype, (str, type, np.dtype)) else self.data)

    def permute(self, axes):
        return Tile(self.data.transpose(axes))

    def reshape(self, shape):
        return Tile(self.data.reshape(shape))

    def __getitem__(self, key):
        return Tile(self.data[key])

    def __index__(self):
        return int(self.data)

    def __bool__(self):
        return bool(self.data)


def plain(x):
    return x.data if isinstance(x, Tile) else x


def _operator(name):
    def apply(self, other):
        if isinstance(other, Pointer):
            return other + self
        with np.errstate(all="ignore"):
            return Tile(getattr(np, name)(self.data, plain(other)))

    def reflected(self, other):
        with np.errstate(all="ignore"):
            return Tile(getattr(np, name)(plain(other), self.data))

    return apply, reflected


def _toward_zero(a, b):
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(np.result_type(a, b))


for _symbol, _name in {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "rshift": "right_shift",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
}.items():
    _forward, _reflected = _operator(_name)
    setattr(Tile, f"__{_symbol}__", _forward)
    setattr(Tile, f"__r{_symbol}__", _reflected)
Tile.__hash__ = None
Tile.__floordiv__ = lambda self, other: Tile(_toward_zero(self.data, plain(other)))
Tile.__mod__ = lambda self, other: Tile(self.data - _toward_zero(self.data, plain(other)) * plain(other))
Tile.__neg__ = lambda self: Tile(-self.data)


class Pointer:
    """Addresses in the memory of a tensor, which may be read and written from its first element on."""

    def __init__(self, memory, at=0):
        self.memory, self.at = memory, np.asarray(at)
        self.dtype = SimpleNamespace(element_ty=memory.dtype)

    @classmethod
    def to_tensor(cls, t):
        rest = t.untyped_storage().nbytes() // t.element_size() - t.storage_offset()
        return cls(t.as_strided((rest,), (1,)).numpy())

    def __add__(self, offset):
        return Pointer(self.memory, self.at + plain(offset))

    def __sub__(self, offset):
        return Pointer(self.memory, self.at - plain(offset))


def load(pointer, mask=True, other=0):
    at, mask = np.broadcast_arrays(pointer.at, plain(mask))
    assert not mask.any() or (at[mask].min() >= 0 and at[mask].max() < len(pointer.memory)), "a load out of bounds"
    return Tile(np.where(mask, pointer.memory[np.where(mask, at, 0)] if len(pointer.memory) else 0, plain(other)))


def store(pointer, value, mask=True):
    at, value, mask = np.broadcast_arrays(pointer.at, plain(value), plain(mask))
    pointer.memory[at[mask]] = value[mask]


class Barrier:
    """An mbarrier: a phase ends when all arrivals and all announced bytes have come."""

    def __init__(self, failed):
        self._bytes, self._phase = 0, 0
        self._changed, self._failed = threading.Condition(), failed

    def start(self, count):
        self._count = self._pending = count

    def arrive(self, count=1, size=0):
        with self._changed:
            self._bytes += size
            self._pending -= count
            assert self._pending >= 0, "more arrivals than a barrier counts"
            self._turn()

    def came(self, size):
        with self._changed:
            self._bytes -= size
            self._turn()

    def _turn(self):
        if self._pending == 0 and self._bytes == 0:
            self._phase, self._pending = self._phase ^ 1, self._count
            self._changed.notify_all()

    def wait(self, phase):
        with self._changed:
            done = self._changed.wait_for(lambda: self._phase != int(phase) or self._failed.is_set(), PATIENCE)
        if not done or self._failed.is_set():
            raise Stuck("a barrier that nobody completes")

    def give_up(self):
        with self._changed:
            self._changed.notify_all()


class Shared:
    """Tiles in shared memory, which hold NaN until something is written."""

    def __init__(self, memory):
        self.memory = memory

    dtype = property(lambda self: self.memory.dtype)

    def index(self, i):
        assert 0 <= int(i) < len(self.memory), "a tile that is not there"
        return Shared(self.memory[int(i)])

    def slice(self, start, size, dim):
        return Shared(self.memory[(slice(None),) * dim + (slice(start, start + size),)])

    def permute(self, axes):
        return Shared(self.memory.transpose(axes))

    def reshape(self, shape):
        return Shared(self.memory.reshape([int(size) for size in shape]))

    def store(self, value):
        time.sleep(random.uniform(0, STORE))
        self.memory[...] = plain(value)

    def load(self, _layout):
        return Tile(self.memory.copy())


class Warpgroup(threading.local):
    """What one warpgroup has begun: copies, which arrive when they must, and products, which read until they are waited for."""

    def __init__(self):
        self.copies, self.products, self.sums = [], [], []

    def copy(self, place, pointer, mask=True):
        place.store(np.nan)
        self.copies.append((place, load(pointer, mask)))

    def copied(self, barrier, increment_count):
        assert not increment_count
        copies, self.copies = self.copies, []

        def deliver():
            for place, tile in copies:
                place.store(tile)
            barrier.arrive(128)

        delivered(deliver)

    def multiply(self, a, b, acc, *, use_acc=True, is_async=False):
        read = [(x.memory, x.memory.copy()) for x in (a, b) if isinstance(x, Shared)]
        if is_async:
            self.products.append(read)
        a, b = (x.memory if isinstance(x, Shared) else x.data for x in (a, b))
        return Tile(a @ b + (acc.data if use_acc else 0))

    def waited(self, left, deps):
        while len(self.products) > left:
            time.sleep(PRODUCT)
            for memory, then in self.products.pop(0):
                assert np.array_equal(memory, then, equal_nan=True), "a tile is overwritten that a product reads"
        return deps[0] if len(deps) == 1 else tuple(deps)

    def add(self, view, at, place):
        """What the copy engine adds to memory, some time before it is waited for."""
        self.sums.append((_rows(view, at), place.memory, place.memory.copy()))

    def added(self, left):
        assert left == 0
        for (source, first), memory, then in self.sums:
            assert np.array_equal(memory, then, equal_nan=True), "a tile is overwritten that is to be added"
            rows, wide = source.shape
            with ADDING:
                source += memory.reshape(-1, memory.shape[-1])[first : first + rows, :wide]
        self.sums.clear()


ADDING = threading.Lock()


class Block:
    """A program: its barriers, and its warpgroups."""

    def __init__(self):
        self._barriers, self._failed = [], threading.Event()

    def allocate(self, element, shape, _layout):
        shape = [int(size) for size in shape]
        if element is not np.int64:
            return Shared(np.full(shape, np.nan, element))
        barriers = [Barrier(self._failed) for _ in range(shape[0])]
        self._barriers += barriers
        return SimpleNamespace(index=lambda i: barriers[int(i)])

    def specialise(self, functions, _warps, _registers):
        errors: list[BaseException] = []

        def start(function, given):
            try:
                function(*given)
            except BaseException as error:
                errors.append(error)
                self._failed.set()
                for barrier in self._barriers:
                    barrier.give_up()

        threads = [threading.Thread(target=start, args=one) for one in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((error for error in errors if not isinstance(error, Stuck)), errors[0])


def _rows(view, at):
    """The part of a tile that is within a tensor, in memory, and which row of the tile it begins with."""
    source = torch.as_strided(view.base, view.shape, view.strides, view.base.storage_offset())
    batch, head, residue, first, dim = (int(x) for x in at)
    *_, rows, wide = view.block_shape
    low, high = max(first, 0), max(min(first + rows, view.shape[3]), max(first, 0))
    if residue >= view.shape[2]:
        residue, high = 0, low
    return source[batch, head, residue, low:high, dim : dim + wide].numpy(), low - first


def copy_by_engine(view, at, barrier, place):
    """What the copy engine does, at once or later: rows out of bounds are zeros."""
    found, first = _rows(view, at)
    tile = np.zeros(view.block_shape[-2:], found.dtype)
    tile[first : first + found.shape[0], : found.shape[1]] = found

    def deliver():
        place.store(tile)
        barrier.came(2 * tile.size)  # kernels count 16-bit elements

    delivered(deliver)


def delivered(deliver):
    """Has something delivered, at once or later."""
    if ENGINE:
        threading.Timer(random.uniform(0, ENGINE), deliver).start()
    else:
        deliver()


def _reduced(function):
    return lambda x, axis: Tile(function(x.data, axis))


def _elementwise(function):
    def apply(*args):
        with np.errstate(all="ignore"):
            return Tile(function(*map(plain, args)))

    return apply


def names(program, grid):
    """The stand-ins for Triton's and Gluon's names, for one program of a grid."""
    block, group = Block(), Warpgroup()
    arange = lambda start, end, layout=None: Tile(np.arange(start, end, dtype=np.int32))  # noqa: E731
    filled = lambda shape, value, dtype, layout=None: Tile(np.full(shape, value, dtype))  # noqa: E731
    zeros = lambda shape, dtype, layout=None: Tile(np.zeros(shape, dtype))  # noqa: E731
    common = {
        "arange": arange,
        "full": filled,
        "zeros": zeros,
        "int32": np.int32,
        "int64": np.int64,
        "float32": np.float32,
        "program_id": lambda axis: Tile(np.int32(program[axis])),
        "num_programs": lambda axis: Tile(np.int32(grid[axis])),
        "maximum": _elementwise(np.maximum),
        "minimum": _elementwise(np.minimum),
        "where": _elementwise(np.where),
        "exp2": _elementwise(np.exp2),
        "log2": _elementwise(np.log2),
        "max": _reduced(np.max),
        "sum": _reduced(np.sum),
        "load": load,
        "store": store,
    }
    layouts = ("NVMMADistributedLayout", "SliceLayout", "BlockedLayout", "DotOperandLayout", "SwizzledSharedLayout")
    gl = {name: lambda *_: None for name in layouts} | {
        "convert_layout": lambda x, _: x,
        "broadcast": lambda *tiles: [Tile(x) for x in np.broadcast_arrays(*map(plain, tiles))],
        "split": lambda x: (Tile(x.data[..., 0]), Tile(x.data[..., 1])),
        "multiple_of": lambda x, _: x,
        "static_range": range,
        "allocate_shared_memory": block.allocate,
        "warp_specialize": block.specialise,
    }
    return {
        "tl": SimpleNamespace(**common),
        "gl": SimpleNamespace(**common, **gl),
        "rows_layout": lambda *_: None,
        "meet": lambda: None,
        "fence_async_shared": lambda: None,
        "warpgroup_mma": group.multiply,
        "warpgroup_mma_wait": group.waited,
        "tma": SimpleNamespace(async_copy_global_to_shared=copy_by_engine, store_wait=group.added),
        "add_tile": group.add,
        "async_copy": SimpleNamespace(
            async_copy_global_to_shared=group.copy,
            mbarrier_arrive=group.copied,
        ),
        "mbarrier": SimpleNamespace(
            MBarrierLayout=lambda: None,
            init=lambda barrier, count: barrier.start(count),
            wait=lambda barrier, phase: barrier.wait(phase),
            expect=lambda barrier, size: barrier.arrive(1, int(size)),
            arrive=lambda barrier: barrier.arrive(),
        ),
    }


class _Numbers(ast.NodeTransformer):
    """Whole numbers become tiles where they are given a name, as Triton has it."""

    def visit_Assign(self, node):
        if isinstance(node.targets[0], ast.Name):
            node.value = ast.Call(ast.Name("number", ast.Load()), [node.value], [])
        return node


def number(x):
    return Tile(np.int32(x)) if type(x) is int else x


def counted(*bounds):
    return map(number, range(*map(int, bounds)))


@lru_cache(maxsize=512)
def compiled(function):
    """The code of a kernel's function."""
    tree = ast.fix_missing_locations(_Numbers().visit(ast.parse(function.src)))
    return compile(tree, function.fn.__code__.co_filename, "exec")


def functions(module, program, grid):
    """The kernels' functions of a module, in Python."""
    stand_ins = names(program, grid)
    found = dict(vars(module)) | stand_ins | {"range": counted, "number": number}
    for value in vars(module).values():
        if isinstance(value, JITFunction):
            exec(compiled(value), found)
    for name, place in {"begin_scores": 4, "begin_row_scores": 4, "first_scores": 1}.items():
        if begin := found.get(name):
            found[name] = _forgotten(begin, place, stand_ins["warpgroup_mma"].__self__)
    return found


def _forgotten(begin, place, group):
    """A function whose product nobody looks at where the argument at a place says so: what it reads may be overwritten."""

    def begin_scores(*given):
        begun = begin(*given)
        if not given[place]:
            group.products[-1] = []
        return begun

    return begin_scores


@contextmanager
def launched(module, done=lambda name, given: False, **stand_ins):
    """Launches of a module run here; their kernels' names are in the list that this gives.

    Memory that nothing has written holds NaN. ``stand_ins`` are other functions of the module, by their names; a kernel does
    not run if ``done(name, arguments)``.
    """
    names = []

    def launch(kernel, grid, case, given, options):
        names.append(kernel.__name__)
        if not done(kernel.__name__, dict(zip(kernel.arg_names, given, strict=True))):
            run(module, kernel, grid, given)

    filled = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        for name, function in {"launch": launch, "processors": lambda device: 3, **stand_ins}.items():
            patch.setattr(module, name, function)
        torch.use_deterministic_algorithms(True)
        try:
            yield names
        finally:
            torch.use_deterministic_algorithms(filled)


def every(times, check, change):
    for _ in range(times):
        check(change)


def assert_noticed(mistake, check, chances=1, **late):
    """``check(change)`` fails for a source with a mistake: what ``mistake`` finds, replaced.

    ``late`` are seconds, by name; what is early or late is left to chance, so that a check may have several ``chances``.
    """
    old, new = mistake

    def change(source):
        changed = re.sub(old, new, source)
        if changed == source:
            pytest.fail(f"nothing in the source is {old}")
        return changed

    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in {"PATIENCE": 2.0, **late}.items():
            patch.setitem(globals(), name, seconds)
        with pytest.raises(AssertionError):
            every(chances, check, change)


def run(module, kernel, grid, given):
    """Runs a kernel of an emitted module: every program in turn, its warpgroups together."""
    arguments = dict(zip(kernel.arg_names, given, strict=True))
    values = {name: _argument(name, value, kernel) for name, value in arguments.items()}
    for x in range(grid[0]):
        for y in range(grid[1]):
            functions(module, (x, y), grid)[kernel.__name__](**values)


def _argument(name, value, kernel):
    if isinstance(value, torch.Tensor):
        return Pointer.to_tensor(value)
    if hasattr(value, "block_shape"):
        return SimpleNamespace(**vars(value), dtype=value.base.numpy().dtype)
    if isinstance(value, int) and not isinstance(value, bool) and not kernel.params[kernel.arg_names.index(name)].is_constexpr:
        return Tile(np.int64(value) if name.startswith("stride") else np.int32(value))
    return value
