"""One pattern compiled, run on random numbers and held against the dense reference: what `patternc demo` shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from patternc.pattern import Pattern
from patternc.runtime.compile import serving
from patternc.runtime.entry import compile as compile_pattern
from patternc.runtime.operator import request_of
from patternc.scorers import ScoreInput
from patternc.terms import Document, Filter, Layout

_MAX_N = 8_192
_HEAD_DIM = 64
_RUNS = 5


@dataclass(frozen=True)
class Demo:
    """The outcome of a run: times are medians in milliseconds, the error is the largest over all outputs."""

    pattern: Pattern
    n: int
    heads: int
    head_dim: int
    device: str
    backend: str
    plan: str
    error: float
    forward_ms: float
    reference_ms: float

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain values, for machines."""
        return {
            "expression": str(self.pattern),
            "n": self.n,
            "heads": self.heads,
            "head_dim": self.head_dim,
            "device": self.device,
            "backend": self.backend,
            "plan": self.plan,
            "max_error": self.error,
            "forward_ms": self.forward_ms,
            "reference_ms": self.reference_ms,
        }


def run_demo(pattern: Pattern, n: int = 256) -> Demo:
    """Compile a pattern (its first layer, where they differ) and run it.

    Raises:
        PatternError: the pattern is not one attention.
        ValueError: n is too large to be held against a dense reference.
    """
    if n > _MAX_N:
        raise ValueError(f"n = {n:,} is too large for a dense reference; the limit is {_MAX_N:,}")
    pattern = pattern.layer(0) if pattern.layers > 1 else pattern
    device = "cuda" if torch.cuda.is_available() else "cpu"
    heads = max(2, pattern.heads)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, n, _HEAD_DIM, generator=generator).to(device) for _ in range(3))
    inputs: dict[str, Any] = {name: t.to(device) for name, t in random_inputs(pattern, n, generator).items()}
    fast, reference = compile_pattern(pattern), compile_pattern(pattern, backend="reference")
    plan = str(fast.plan)
    out, forward_ms = _timed(lambda: fast(q, k, v, **inputs))
    expected, reference_ms = _timed(lambda: reference(q, k, v, **inputs))
    error = float((out - expected).abs().max())
    chosen = serving(pattern, None, request_of(q, v))
    return Demo(pattern, n, heads, _HEAD_DIM, device, chosen, plan, error, forward_ms, reference_ms)


def random_inputs(pattern: Pattern, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Runtime inputs for a pattern whose layers are alike, by name, for every batch and head; on the CPU."""
    uses = {use.name: use for head in range(pattern.heads) for use in pattern.meaning(head=head).arguments}
    return {name: _input(use, n, generator) for name, use in uses.items()}


def _input(use: Filter | ScoreInput, n: int, generator: torch.Generator) -> Tensor:
    """A runtime input of random numbers; block tables keep their diagonal."""
    match use:
        case Layout(_, block):
            side = -(-n // block)
            return (torch.rand(side, side, generator=generator) < 0.3) | torch.eye(side, dtype=torch.bool)
        case Document():
            return torch.randint(0, 4, (n,), generator=generator).sort().values
        case ScoreInput(sizes=sizes):
            return torch.randn(sizes(1, 1, 1, n, n, _HEAD_DIM), generator=generator)


def _timed(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """A call's result, and the median time of a few more calls in milliseconds."""
    out = call()
    times = []
    for _ in range(_RUNS):
        start = perf_counter()
        call()
        if out.is_cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (perf_counter() - start))
    return out, median(times)
