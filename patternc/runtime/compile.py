"""The whole pipeline in one place: text -> pattern -> plan -> source -> module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType

from patternc.backend import Backend, Request, backend_named, choose, ranked
from patternc.language.resolve import map_children
from patternc.language.syntax import Call, Expression, Name
from patternc.lower.cost import TileCost, work
from patternc.lower.phases import lower, with_joint, with_keys, with_queries
from patternc.lower.plan import Plan
from patternc.lower.views import Choice, search
from patternc.pattern import Pattern, parse
from patternc.runtime.loader import load
from patternc.terms import TopK

DEFAULT_REQUEST = Request("cuda", "bfloat16", 128, 128, 4096)


@dataclass(frozen=True)
class HeadChoices:
    """The views that were considered for the static part of the heads ``h`` with ``h % period`` in ``heads``."""

    heads: tuple[int, ...]
    period: int
    views: tuple[Choice, ...]


@dataclass(frozen=True)
class Candidate:
    """A plan (without `Plan.keys`) in one of a backend's tile shapes, with its cost and the choices that led to it.

    The cost is that of one head at the reference length, in what one full tile of a shape with ``unit.full == 1`` costs.
    """

    unit: TileCost
    plan: Plan
    cost: float
    choices: tuple[HeadChoices, ...]


@lru_cache(maxsize=512)
def candidates(
    pattern: Pattern, layer: int | None = None, backend: str = "triton", request: Request = DEFAULT_REQUEST
) -> tuple[Candidate, ...]:
    """The plans that a backend chooses from for a request, the cheapest (which `plan_for` completes) first."""
    chosen = backend_named(backend)
    units = chosen.tiles(replace(request, length=0))
    return tuple(sorted((_candidate(pattern, layer, chosen, unit) for unit in units), key=lambda one: one.cost))


def _candidate(pattern: Pattern, layer: int | None, backend: Backend, unit: TileCost) -> Candidate:
    plan = lower(pattern, unit.tile, layer, views=backend.views, splits=backend.splits)
    groups = dict.fromkeys((group.heads, group.period) for group in plan.heads)
    choices = []
    for heads, period in groups:
        static = pattern.meaning(head=heads[0], layer=layer).static
        views = search(static, unit.tile, splits=backend.splits)[1] if backend.views and not static.is_empty() else ()
        choices.append(HeadChoices(heads, period, views))
    return Candidate(unit, plan, work(plan).cost(unit), tuple(choices))


@lru_cache(maxsize=512)
def plan_for(pattern: Pattern, layer: int | None = None, backend: str = "triton", request: Request = DEFAULT_REQUEST) -> Plan:
    """The plan that a backend would run for a request (by default bf16, head_dim 128 on a GPU): its cheapest tile shape.

    The choice does not depend on the length, so that one kernel serves every n.
    """
    request = replace(request, length=0)
    return complete(candidates(pattern, layer, backend, request)[0].plan, pattern, layer, backend, request)


def complete(plan: Plan, pattern: Pattern, layer: int | None, backend: str, request: Request) -> Plan:
    """The plan of a candidate as a backend emits it: with `Plan.keys`, `Plan.queries` and `Plan.joint`, where it wants them."""
    chosen, request = backend_named(backend), replace(request, length=0)
    if (tile := chosen.query_tile(request)) not in (None, plan.tile):
        plan = with_queries(plan, pattern, tile, layer)
    if (tile := chosen.key_tile(request)) is not None:
        plan = with_keys(plan, pattern, tile, layer)
    if (tile := chosen.joint_tile(request)) is not None:
        plan = with_joint(plan, pattern, tile, layer)
    return plan


@lru_cache(maxsize=1024)
def failures(pattern: Pattern, layer: int, backend: str, request: Request) -> list[str]:  # noqa: ARG001
    """Why a backend's kernels could not be compiled for a request (of length 0): a list to add to, which `serving` heeds."""
    return []


def serving(pattern: Pattern, layer: int | None, request: Request, backend: str = "") -> str:
    """The name of the backend that runs a pattern for a request: the one of that name, or the preferred one that can.

    Raises:
        ValueError: it (or none) can; the message lists the reasons.
    """

    any_length = replace(request, length=0)

    def refused(one: Backend) -> list[str]:
        known = [] if backend else failures(pattern, layer or 0, one.name, any_length)
        return known or one.refused(plan_for(pattern, layer, one.name, any_length), any_length)

    return choose(request, backend, refused).name


def usual(pattern: Pattern, layer: int | None = None, request: Request = DEFAULT_REQUEST) -> str:
    """The name of the preferred backend for a request, whatever this machine lacks to run it."""

    def reasons(one: Backend) -> list[str]:
        lacking = one.unsupported(DEFAULT_REQUEST)
        found = [reason for reason in one.unsupported(request) if reason not in lacking]
        return found or one.refused(plan_for(pattern, layer, one.name, request), request)

    return next(one.name for one in ranked() if not reasons(one))


@lru_cache(maxsize=512)
def emit_source(pattern: Pattern, backend: str = "triton", layer: int | None = None, request: Request = DEFAULT_REQUEST) -> str:
    """A standalone source file for a pattern. Needs no torch, and no GPU.

    Raises:
        ValueError: the backend refuses the plan; the message lists the reasons.
    """
    chosen, plan = backend_named(backend), plan_for(pattern, layer, backend, request)
    if reasons := chosen.refused(plan, request):
        raise ValueError(f"the {backend} backend cannot run this pattern: {', '.join(reasons)}")
    return chosen.emit(plan)


@lru_cache(maxsize=1024)
def without_selections(pattern: Pattern) -> tuple[int, str, tuple[str, ...]]:
    """Up to which length all selections take every candidate; the text of the pattern without them, and its runtime inputs.

    The length is -1 where there is none: scores that are given may be -inf, and draws depend on what they are joined with.
    """
    choices = [c for head in range(pattern.heads) for term in pattern.meaning(head=head).picks for c in term.choices]
    if not all(isinstance(c, TopK) and c.scorer.finite for c in choices):
        return -1, "", ()
    rest = Pattern(_without_selections(pattern.expression))
    return min(c.k * c.block for c in choices if isinstance(c, TopK)), str(rest), rest.arguments


def _without_selections(node: Expression) -> Expression:
    if isinstance(node, Call) and node.function == "topk":
        return Name("full", node.span)
    return map_children(node, _without_selections)


@lru_cache(maxsize=1024)
def kernel(program: str, layer: int, backend: str, request: Request) -> ModuleType:
    """The loaded kernel of a pattern's text for a request (of length 0, so that every n finds the same entry)."""
    return load(emit_source(parse(program), backend, layer, request))
