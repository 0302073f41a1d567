"""The whole pipeline in one place: text -> pattern -> plan -> source -> module."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from types import ModuleType

from patternc.backend import Request, backend_named
from patternc.lower.cost import work
from patternc.lower.phases import lower, with_keys
from patternc.lower.plan import Plan
from patternc.pattern import Pattern, parse
from patternc.runtime.loader import load

DEFAULT_REQUEST = Request("cuda", "bfloat16", 128, 128, 4096)


@lru_cache(maxsize=512)
def plan_for(pattern: Pattern, layer: int | None = None, backend: str = "triton", request: Request = DEFAULT_REQUEST) -> Plan:
    """The plan that a backend would run for a request (by default bf16, head_dim 128 on a GPU): its cheapest tile shape.

    The choice does not depend on the length, so that one kernel serves every n.
    """
    chosen = backend_named(backend)
    request = replace(request, length=0)
    candidates = chosen.tiles(request)
    plans = {lower(pattern, u.tile, layer, views=chosen.views, splits=chosen.splits): u for u in candidates}
    plan = min(plans, key=lambda plan: work(plan).cost(plans[plan])) if len(plans) > 1 else next(iter(plans))
    key_tile = chosen.key_tile(request)
    return plan if key_tile is None else with_keys(plan, pattern, key_tile, layer)


@lru_cache(maxsize=512)
def emit_source(pattern: Pattern, backend: str = "triton", layer: int | None = None, request: Request = DEFAULT_REQUEST) -> str:
    """A standalone source file for a pattern. Needs no torch, and no GPU."""
    return backend_named(backend).emit(plan_for(pattern, layer, backend, request))


@lru_cache(maxsize=1024)
def kernel(program: str, layer: int, backend: str, request: Request) -> ModuleType:
    """The loaded kernel of a pattern's text for a request (of length 0, so that every n finds the same entry)."""
    return load(emit_source(parse(program), backend, layer, request))
