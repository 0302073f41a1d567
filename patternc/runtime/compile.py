"""The whole pipeline in one place: text -> pattern -> plan -> source -> module."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

from patternc.backend import Request, backend_named
from patternc.lower.phases import lower
from patternc.lower.plan import Plan, Tile
from patternc.pattern import Pattern, parse
from patternc.runtime.loader import load

DEFAULT_REQUEST = Request("cuda", "bfloat16", 128, 128, 4096)


@lru_cache(maxsize=512)
def plan_at(pattern: Pattern, layer: int | None, tile: Tile) -> Plan:
    """The plan of one layer of a pattern for a tile shape."""
    return lower(pattern, tile, layer)


def plan_for(pattern: Pattern, layer: int | None = None, backend: str = "triton", request: Request = DEFAULT_REQUEST) -> Plan:
    """The plan that a backend would run for a request (by default bf16, head_dim 128 on a GPU)."""
    return plan_at(pattern, layer, backend_named(backend).tile(request))


@lru_cache(maxsize=512)
def source_at(pattern: Pattern, layer: int | None, backend: str, tile: Tile) -> str:
    """The source that a backend emits for a tile shape."""
    return backend_named(backend).emit(plan_at(pattern, layer, tile))


def emit_source(pattern: Pattern, backend: str = "triton", layer: int | None = None, request: Request = DEFAULT_REQUEST) -> str:
    """A standalone source file for a pattern. Needs no torch, and no GPU."""
    return source_at(pattern, layer, backend, backend_named(backend).tile(request))


@lru_cache(maxsize=1024)
def kernel(program: str, layer: int, backend: str, rows: int, columns: int) -> ModuleType:
    """The loaded kernel of a pattern's text."""
    return load(source_at(parse(program), layer, backend, Tile(rows, columns)))
