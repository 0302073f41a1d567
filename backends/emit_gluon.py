"""The Gluon backend: `emit_triton` with warp-specialised kernels, on NVIDIA GPUs of the Hopper generation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from patternc.backend import Request
from patternc.lower.cost import TileCost
from patternc.lower.plan import Gather, HeadPlan, Picked, Plan, Tile
from patternc.scalar import TRUE

from .emit_triton import TritonBackend, shares
from .gluon_program import Latent, Specialised
from .joint_program import Joint
from .keys_program import ByKey, SpecialisedKeys, regular
from .queries_program import SpecialisedQueries
from .triton_host import several
from .triton_program import Forward, Keys, Program, Queries

GENERATION = 9

_IMPORTS = (
    "from triton.experimental import gluon\n"
    "from triton.experimental.gluon import language as gl\n"
    "from triton.experimental.gluon.language.nvidia.hopper import (\n    async_copy,\n"
    "    fence_async_shared,\n    mbarrier,\n    tma,\n    warpgroup_mma,\n    warpgroup_mma_wait,\n)\n"
    "from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as SharedDescriptor\n"
)
_ADDING = "from triton._C.libtriton import ir\nfrom triton.experimental.gluon.language._core import builtin\n"
"""What `gluon_gradients.py` needs to have the copy engine add."""


@cache
def _has_gluon() -> bool:
    """Whether the triton that is installed has Gluon; older ones do not have its package either."""
    return find_spec("triton.experimental") is not None and find_spec("triton.experimental.gluon") is not None


@cache
def _can_add() -> bool:
    """Whether the triton that is installed, if any, can have the copy engine add: no part of what Gluon promises."""
    if find_spec("triton") is None:
        return True
    try:
        builder = import_module("triton._C.libtriton").gluon_ir.GluonOpBuilder
    except (ImportError, AttributeError):
        return False
    return hasattr(builder, "create_async_tma_reduce")


class GluonBackend(TritonBackend):
    """Hopper GPUs: the output and most gradients by warp-specialised kernels; all else as in `TritonBackend`."""

    name = "gluon"
    rank = 30
    dtypes = ("float16", "bfloat16")

    def unsupported(self, request: Request) -> list[str]:
        reasons = super().unsupported(request)
        if find_spec("triton") is not None and not _has_gluon():
            reasons.append("this version of triton has no Gluon")
        if request.generation != GENERATION:
            reasons.append(f"it is for NVIDIA GPUs of compute capability {GENERATION}.x")
        for what, wide in (("head_dim", request.head_dim), ("value head_dim", request.value_dim)):
            if wide % 8:
                reasons.append(f"{what} {wide} is not a multiple of 8")
        return reasons

    def refused(self, plan: Plan, request: Request) -> list[str]:
        if reasons := super().refused(plan, request):
            return reasons
        pairs = any(isinstance(phase, Gather) for group in plan.heads for phase in group.phases)
        return ["it copies tiles of keys, and this pattern picks keys one by one"] if pairs else []

    def tiles(self, request: Request) -> tuple[TileCost, ...]:
        if max(request.head_dim, request.value_dim) > 128:
            return (TileCost(Tile(128, 64), 1, 1.3, 2),)
        # Measured on an H200: two programs at a time on one processor hide the ends of short rows, one has the faster loop.
        return (TileCost(Tile(64, 64), 1, 1.3, 2), TileCost(Tile(128, 128), 3.2, 5.9, 2.8))

    def query_tile(self, request: Request) -> Tile | None:
        return super().tiles(request)[0].tile

    def joint_tile(self, request: Request) -> Tile | None:
        wide = max(request.head_dim, request.value_dim)
        return Tile(128, 64 if wide > 64 else 128) if 32 < wide <= 128 and _can_add() else None

    def forward(self, index: int, group: HeadPlan, plan: Plan) -> Forward:
        given = index, group, plan.tile, shares(plan.heads, index), index
        if group.phases and not group.picked:
            own = Specialised(*given)
            own.in_order = _hands_on(group) and _all_walk(plan.heads)
            return own
        kernel = super().forward(index, group, plan)
        match group.phases:
            case (Picked(unit=1, mask=mask),) if mask == TRUE:
                kernel.instead = Latent(*given)
        return kernel

    def queries(self, kind: type[Queries], index: int, passes: tuple[HeadPlan, ...], tile: Tile, source: int) -> Queries:
        kernel, group = super().queries(kind, index, passes, tile, source), passes[index]
        if tile == Tile(64, 64) and group.phases and not group.picked:
            kernel.instead = own = SpecialisedQueries(index, group, tile, shares(passes, index), source)
            own.lists, own.tile = kernel.lists, kernel.tile
            own.in_order = _hands_on(group) and _all_walk(passes)
        return kernel

    def keys(self, index: int, group: HeadPlan, plan: Plan, source: int) -> Keys:
        kernel = super().keys(index, group, plan, source)
        if plan.key_tile == Tile(64, 64) and regular(group):
            kernel.instead = own = SpecialisedKeys(index, group, plan.key_tile, shares(plan.keys, index), source)
            alike = not several(plan.keys) and all(regular(one) for one in plan.keys if not one.share)
            own.in_order = _hands_on(group) and alike
        return kernel

    def joint(self, plan: Plan) -> Keys | None:
        return Joint(0, plan.joint, plan.joint_tile, (), 0) if plan.joint and plan.joint_tile else None

    def imports(self, plan: Plan) -> str:
        return _IMPORTS + (_ADDING if plan.joint else "")

    def modules(self, kernels: Sequence[Program]) -> tuple[str, ...]:
        parts = (
            *((SpecialisedQueries, "gluon_queries.py"), (ByKey, "gluon_keys.py")),
            *((Latent, "gluon_latent.py"), (Joint, "gluon_gradients.py")),
        )
        every = [one for kernel in kernels for one in kernel.variants()]
        needed = (name for kind, name in parts if any(isinstance(one, kind) for one in every))
        return (*super().modules(kernels), "gluon_kernel.py", *needed)


def _hands_on(group: HeadPlan) -> bool:
    """Whether a pass over all rows leaves sums for another, or goes on from some."""
    return not group.share and (group.chained or not group.last)


def _all_walk(passes: tuple[HeadPlan, ...]) -> bool:
    """Whether all passes over all rows are specialised."""
    return all(group.phases and not group.picked for group in passes if not group.share)


BACKEND = GluonBackend()
