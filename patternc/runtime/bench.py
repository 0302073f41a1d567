"""Times of a pattern and of its peers on one device, side by side in one process: what `patternc bench` measures."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from patternc.diagnostics import suggest
from patternc.pattern import Pattern
from patternc.runtime.compile import plan_for
from patternc.runtime.demo import random_inputs
from patternc.runtime.entry import compile as compile_pattern
from patternc.runtime.peers import PEERS, Case, Missing, Ready, patternc_itself

Call: TypeAlias = Callable[[], object]
Timer: TypeAlias = Callable[[Call], float]

SELF = "patternc"
DTYPES = ("bfloat16", "float16", "float32", "float64")
FORWARD_FLOPS, BACKWARD_FLOPS = 4, 10
"""Useful flops for each pair and element of the head dimension."""
FORWARD_TENSORS, BACKWARD_TENSORS = 2, 4
"""Tensors that must move once, half of them of q's size and half of k's: q, o, k, v; and q, o, do, dq, k, v, dk, dv."""
TOLERANCE = {"bfloat16": 0.05, "float16": 0.01, "float32": 0.01, "float64": 1e-6}
"""Outputs that are further apart than this are noted: they are not of one mask."""

_ROUNDS = 3
_SLOW_MS = 1_000.0
_CPU_MS = 200.0  # of one turn on a CPU, at least three calls
_SEED = 0


@dataclass(frozen=True)
class Setting:
    """What is measured, but for the pattern and n; by default in 16-bit floats on a GPU and in float32 on a CPU."""

    device: str = ""
    dtype: str = ""
    batch: int = 1
    heads: int = 16
    kv_heads: int = 0
    head_dim: int = 128
    backward: bool = False
    peers: tuple[str, ...] = tuple(PEERS)

    def __post_init__(self) -> None:
        device = _device(self.device)
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "dtype", self.dtype or ("float32" if device == "cpu" else "bfloat16"))
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype '{self.dtype}'; {suggest(self.dtype, DTYPES) or 'there are ' + ', '.join(DTYPES)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"the {self.heads} query heads must be a multiple of the {self.kv_heads} key heads")
        for name in self.peers:
            if name not in PEERS:
                raise ValueError(f"unknown peer '{name}'; {suggest(name, PEERS) or 'there are ' + ', '.join(PEERS)}")

    def flops(self, pairs: float, *, backward: bool = False) -> float:
        """Useful flops of a call, for ``pairs`` in each head."""
        return (BACKWARD_FLOPS if backward else FORWARD_FLOPS) * pairs * self.head_dim * self.batch * self.heads

    def bytes_moved(self, n: int, *, backward: bool = False) -> int:
        """Bytes of all inputs and outputs."""
        tensors = BACKWARD_TENSORS if backward else FORWARD_TENSORS
        itemsize = getattr(torch, self.dtype).itemsize
        return int(tensors * self.batch * (self.heads + self.kv_heads) * n * self.head_dim * itemsize)


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best, measured: flops a second of a matrix product, bytes read plus written a second."""

    flops: float
    bytes: float

    def floor_ms(self, setting: Setting, n: int, pairs: float | None, *, backward: bool = False) -> float | None:
        """Milliseconds below which no kernel can be; None where the pairs were not counted."""
        if pairs is None:
            return None
        flops, moved = setting.flops(pairs, backward=backward), setting.bytes_moved(n, backward=backward)
        return 1e3 * max(flops / self.flops, moved / self.bytes)

    def to_json(self) -> dict[str, float]:
        return {"matmul_tflops": self.flops / 1e12, "copy_tb_per_s": self.bytes / 1e12}


@dataclass(frozen=True)
class Row:
    """One peer.

    Attributes:
        forward_ms, backward_ms: median times of a call in milliseconds; None where it was not measured.
        note: why it was not, and what else there is to know.
        difference: the largest to patternc's output, over the queries that have keys.
        mask_ms: the time that building its mask took, in milliseconds; no part of its calls.
    """

    name: str
    forward_ms: float | None = None
    backward_ms: float | None = None
    note: str = ""
    difference: float | None = None
    mask_ms: float | None = None


@dataclass(frozen=True)
class Measured:
    """All rows at one n; ``pairs`` are those of a head, on average over the heads."""

    setting: Setting
    n: int
    pairs: float | None
    floor_forward_ms: float | None
    floor_backward_ms: float | None
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    def ratio(self, row: Row, *, backward: bool = False) -> float | None:
        """How many times as long as patternc it takes."""
        mine, its = (_time(self.row(SELF), backward), _time(row, backward))
        return its / mine if mine and its is not None else None

    def tflops(self, row: Row, *, backward: bool = False) -> float | None:
        """Useful TFLOP a second."""
        time = _time(row, backward)
        return self.setting.flops(self.pairs, backward=backward) / time / 1e9 if time and self.pairs is not None else None

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "pairs": self.pairs,
            "floor_forward_ms": self.floor_forward_ms,
            "floor_backward_ms": self.floor_backward_ms,
            "peers": [self._row_json(row) for row in self.rows],
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        found: dict[str, Any] = {"name": row.name}
        for way, time, backward in (("forward", row.forward_ms, False), ("backward", row.backward_ms, True)):
            if self.setting.backward or not backward:
                found[f"{way}_ms"] = time
                found[f"{way}_ratio"] = self.ratio(row, backward=backward)
                found[f"{way}_tflops"] = self.tflops(row, backward=backward)
        return {**found, "difference": _finite(row.difference), "mask_ms": row.mask_ms, "note": row.note}


@dataclass(frozen=True)
class Report:
    """A pattern at several n on one device."""

    pattern: Pattern
    setting: Setting
    machine: Mapping[str, str]
    ceilings: Ceilings
    results: tuple[Measured, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "expression": str(self.pattern),
            **self.machine,
            **shape_json(self.setting),
            "ceilings": self.ceilings.to_json(),
            "results": [result.to_json() for result in self.results],
        }


def shape_json(setting: Setting) -> dict[str, Any]:
    """The shapes as plain values, for machines."""
    keys = ("dtype", "batch", "heads", "kv_heads", "head_dim")
    return {key: getattr(setting, key) for key in keys}


def run(pattern: Pattern, lengths: Sequence[int], setting: Setting, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Measure a pattern whose layers are alike at every length.

    Raises:
        PatternError: the pattern is not one attention.
        ValueError: the tensors do not fit into memory.
    """
    plan_for(pattern)
    progress("measuring what the device does at best")
    ceilings = measure_ceilings(setting)

    def at(n: int) -> Measured:
        return measure(pattern, n, setting, ceilings, lambda step: progress(f"n = {n:,}: {step}"))

    results = [at(n) for n in lengths]
    return Report(pattern, setting, machine(setting.device), ceilings, tuple(results))


def measure(
    pattern: Pattern, n: int, setting: Setting, ceilings: Ceilings, progress: Callable[[str], None] = lambda _: None
) -> Measured:
    """Time patternc and the peers on the same random numbers, in turns.

    Raises:
        ValueError: the tensors do not fit into memory.
    """
    timer = timer_for(setting.device)
    with _on(setting.device), _compiling():
        case = _case(pattern, n, setting)
        with torch.no_grad():
            expected, held = _expected(case)
        ready: dict[str, Ready] = {}
        found: dict[str, _Found] = {name: _Found() for name in (SELF, *setting.peers)}
        for name, one in found.items():
            progress(name)
            prepare = patternc_itself if name == SELF else PEERS[name]
            with torch.no_grad(), one.noting(""):
                its = prepare(case)
                out = its.attend(*_given(case, its))
                ready[name] = its
                one.difference = _difference(out, expected, held)
                one.comment(its, TOLERANCE[setting.dtype])
        del expected, held
        progress("forward")
        calls: dict[str, Call] = {name: partial(its.attend, *_given(case, its)) for name, its in ready.items()}
        with torch.no_grad():
            times = in_turns(calls, timer, found, "")
        grads: dict[str, float] = {}
        if setting.backward:
            progress("backward")
            grads = in_turns(_backward_calls(case, {name: ready[name] for name in times}, found), timer, found, "backward: ")
        progress("pairs")
        pairs = case.pairs()
    rows = tuple(
        Row(name, times.get(name), grads.get(name), "; ".join(one.notes), one.difference, one.mask_ms)
        for name, one in found.items()
    )
    floors = [ceilings.floor_ms(setting, n, pairs, backward=backward) for backward in (False, True)]
    return Measured(setting, n, pairs, floors[0], floors[1] if setting.backward else None, rows)


class _Found:
    """What is known of a peer so far, besides its times."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.difference: float | None = None
        self.mask_ms: float | None = None

    @contextmanager
    def noting(self, prefix: str) -> Iterator[None]:
        """An error becomes a note."""
        try:
            yield
        except Missing as reason:
            self.notes.append(f"{prefix}{reason}")
        except Exception as error:  # whatever stops a peer is a result
            self.notes.append(f"{prefix}{_short(error)}")

    def comment(self, ready: Ready, tolerance: float) -> None:
        self.mask_ms = ready.mask_ms
        if ready.note:
            self.notes.append(ready.note)
        if self.difference is not None and not self.difference <= tolerance:
            self.notes.append(f"its output differs from patternc's by {self.difference:.2g}")


def in_turns(calls: Mapping[str, Call], timer: Timer, found: Mapping[str, _Found], prefix: str) -> dict[str, float]:
    """The median time of each call in milliseconds, over rounds in which each has its turn, every other one backwards.

    Calls that take longer than a second have one turn only.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    failed: set[str] = set()
    for i in range(_ROUNDS):
        for name in reversed(list(calls)) if i % 2 else calls:
            if name in failed or (times[name] and times[name][0] > _SLOW_MS):
                continue
            before = len(found[name].notes)
            with found[name].noting(prefix):
                times[name].append(timer(calls[name]))
            if len(found[name].notes) > before:
                failed.add(name)
    return {name: median(mine) for name, mine in times.items() if mine and name not in failed}


def _backward_calls(case: Case, ready: Mapping[str, Ready], found: Mapping[str, _Found]) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    grad = torch.randn(case.q.shape, generator=_generator(case.q.device, 1), device=case.q.device, dtype=case.q.dtype)
    for name, its in ready.items():
        with found[name].noting("backward: "):
            leaves = tuple(t.detach().requires_grad_() for t in _given(case, its))
            out = its.attend(*leaves)
            call = partial(torch.autograd.grad, out, leaves, grad, retain_graph=True)
            call()
            calls[name] = call
    return calls


def _given(case: Case, ready: Ready) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as a peer takes them."""
    times = case.heads // (int(case.k.shape[1]) * ready.repeats)
    if times == 1:
        return case.q, case.k, case.v
    return case.q, case.k.repeat_interleave(times, 1), case.v.repeat_interleave(times, 1)


def _case(pattern: Pattern, n: int, setting: Setting) -> Case:
    device, dtype = torch.device(setting.device), getattr(torch, setting.dtype)
    generator = _generator(device, _SEED)
    shapes = [(setting.batch, heads, n, setting.head_dim) for heads in (setting.heads, setting.kv_heads, setting.kv_heads)]
    try:
        q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for shape in shapes)
        inputs = random_inputs(pattern, n, torch.Generator().manual_seed(_SEED))
        return Case(pattern, q, k, v, {name: t.to(device) for name, t in inputs.items()})
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"the tensors for n = {n:,} do not fit into the memory of {setting.device}: {_short(error)}") from None


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _expected(case: Case) -> tuple[Tensor | None, Tensor | None]:
    """patternc's output, and which queries have keys; nothing where it cannot run (its row will say why)."""
    attention: Any = compile_pattern(case.pattern)
    try:
        out, lse = attention(case.q, case.k, case.v, return_lse=True, **case.inputs)
    except Exception:
        return None, None
    return out, lse > -torch.inf


def _difference(out: Tensor, expected: Tensor | None, held: Tensor | None) -> float | None:
    if expected is None or held is None:
        return None
    apart = ((out - expected).abs().amax(-1) * held).masked_fill(~held, 0)
    return float(apart.max())


def _time(row: Row | None, backward: bool) -> float | None:
    return None if row is None else row.backward_ms if backward else row.forward_ms


def _finite(value: float | None) -> float | str | None:
    return value if value is None or isfinite(value) else str(value)


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)}"[:240] if lines else type(error).__name__


def timer_for(device: str) -> Timer:
    """What times a call that has run before, in milliseconds: GPU events with a cold L2 cache, or the processor's clock."""
    return _cpu_ms if device == "cpu" else _cuda_ms


def _cuda_ms(call: Call) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, warmup=25, rep=100, return_mode="median"))


def _cpu_ms(call: Call) -> float:
    times: list[float] = []
    while len(times) < 3 or (sum(times) < _CPU_MS and len(times) < 100):
        start = perf_counter()
        call()
        times.append(1e3 * (perf_counter() - start))
    return median(times)


def measure_ceilings(setting: Setting) -> Ceilings:
    """A square matrix product in the setting's dtype, and a copy that no cache holds."""
    on_cpu = setting.device == "cpu"
    side, size = (1_024, 1 << 27) if on_cpu else (8_192, 1 << 30)
    device, timer = torch.device(setting.device), timer_for(setting.device)
    with _on(setting.device), torch.no_grad():
        dtype = getattr(torch, setting.dtype)
        a, b = (torch.randn(side, side, generator=_generator(device, i), device=device, dtype=dtype) for i in range(2))
        source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
        calls: list[Call] = [partial(torch.matmul, a, b), partial(target.copy_, source)]
        for call in calls:
            call()
        product, copy = (1e-3 * timer(call) for call in calls)
    return Ceilings(2 * side**3 / product, 2 * size / copy)


def machine(device: str) -> dict[str, str]:
    """The device's name and the versions that a time depends on."""
    if device == "cpu":
        found = {"device": f"{_cpu_name()}, {torch.get_num_threads()} threads"}
    else:
        found = {"device": torch.cuda.get_device_name(device)}
    found |= {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "flash-attn-4"):
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _device(name: str) -> str:
    """The device's full name, such as "cuda:0".

    Raises:
        ValueError: there is no such device here.
    """
    here = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if here else "cpu"))
    except RuntimeError:
        raise ValueError(f"unknown device '{name}'; write cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"times are measured on cpu and cuda, not on '{name}'")
    if device.type == "cpu":
        return "cpu"
    if not here:
        raise ValueError(f"device '{name}' is not here: torch {torch.__version__} sees no GPU")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device '{name}' is not here: torch sees {torch.cuda.device_count()} GPU(s)")
    return f"cuda:{index}"


def _on(device: str) -> Any:
    return nullcontext() if device == "cpu" else torch.cuda.device(device)


@contextmanager
def _compiling() -> Iterator[None]:
    """torch.compile from a clean slate, with room for all peers, and with graphs whose backward may run repeatedly."""
    dynamo, functorch = (import_module(name) for name in ("torch._dynamo.config", "torch._functorch.config"))
    import_module("torch.compiler").reset()
    with (
        dynamo.patch(recompile_limit=1_000, accumulated_recompile_limit=10_000),
        functorch.patch(donated_buffer=False),
    ):
        yield
