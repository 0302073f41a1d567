"""The Triton backend: one kernel per group of heads, every phase of the plan in it, one online softmax."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec

from patternc.backend import Request
from patternc.lower.cost import TileCost
from patternc.lower.plan import Draws, Gather, HeadPlan, Listed, Picked, Plan, Tile
from patternc.scalar import size

from .assemble import PythonNames, header, inputs, sampler, selecting, selections, verbatim
from .picked_program import PickedForward, PickedKeys, PickedQueries
from .triton_host import backward, forward, listings, packings
from .triton_program import Forward, Keys, Program, Queries, RetiledQueries, device_draws

MAX_HEAD_DIM, MAX_LISTED_DIM = 256, 1024
"""The widest heads, and those of patterns that only walk lists of keys."""


IMPORTS = """\
from collections.abc import Callable
from copy import copy
from functools import lru_cache
from inspect import getclosurevars
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor
"""


class TritonBackend:
    """NVIDIA and AMD GPUs, and CPU tensors in Triton's interpreter."""

    name = "triton"
    rank = 20
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32")
    differentiable = True
    views = True
    splits = True

    def unsupported(self, request: Request) -> list[str]:
        reasons = []
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if find_spec("triton") is None:
            reasons.append("triton is not installed")
        if request.device != "cuda" and not (interpreted and request.device == "cpu"):
            reasons.append(f"it runs on cuda devices, not {request.device}")
        if request.dtype not in self.dtypes:
            reasons.append(f"dtype {request.dtype} is not one of {', '.join(self.dtypes)}")
        if interpreted and request.dtype == "bfloat16":
            reasons.append("Triton's interpreter computes bfloat16 wrongly")
        return reasons + _wider(request, MAX_LISTED_DIM)

    def refused(self, plan: Plan, request: Request) -> list[str]:
        return [] if all(group.picked for group in plan.heads) else _wider(request, MAX_HEAD_DIM)

    def tiles(self, request: Request) -> tuple[TileCost, ...]:
        wide = max(request.head_dim, request.value_dim)
        if request.dtype == "float32":
            return (TileCost(Tile(64 if wide <= 128 else 32, 32), 1, 2, 1),)
        if wide > 128:
            return (TileCost(Tile(64, 32 if request.generation >= 9 else 16), 1, 2, 1),)
        if request.generation < 9:
            return (TileCost(Tile(64, 32), 1, 2, 1),)
        # Measured on an H200: with four warps, 64 x 64 is the fastest of all that fit, for long rows too.
        return (TileCost(Tile(64, 64), 1, 2, 1),)

    def query_tile(self, request: Request) -> Tile | None:  # noqa: ARG002
        return None

    def key_tile(self, request: Request) -> Tile | None:
        wide = max(request.head_dim, request.value_dim)
        if request.dtype == "float32":
            return Tile(32, 32) if wide <= 128 else Tile(32, 16)
        if request.generation < 9:
            return Tile(64, 32) if wide <= 128 else Tile(32, 16)
        return Tile(64, 64) if wide <= 128 else Tile(64, 32)

    def joint_tile(self, request: Request) -> Tile | None:  # noqa: ARG002
        return None

    def forward(self, index: int, group: HeadPlan, plan: Plan) -> Forward:
        """The kernel of a pass for the output."""
        kind = PickedForward if group.picked else Forward
        return kind(index, group, plan.tile, shares(plan.heads, index), index)

    def queries(self, kind: type[Queries], index: int, passes: tuple[HeadPlan, ...], tile: Tile, source: int) -> Queries:
        """The kernel of one of the passes for the gradient of q, of a kind unless it walks lists."""
        kind = PickedQueries if passes[index].picked else kind
        return kind(index, passes[index], tile, shares(passes, index), source)

    def keys(self, index: int, group: HeadPlan, plan: Plan, source: int) -> Keys:
        """The kernel of a pass for the gradients of keys and values."""
        assert plan.key_tile is not None
        kind = PickedKeys if group.picked else Keys
        return kind(index, group, plan.key_tile, shares(plan.keys, index), source)

    def imports(self, plan: Plan) -> str:  # noqa: ARG002
        """What the fixed parts import, beyond torch and Triton."""
        return ""

    def joint(self, plan: Plan) -> Keys | None:  # noqa: ARG002
        """The kernel for all gradients at once."""
        return None

    def modules(self, kernels: Sequence[Program]) -> tuple[str, ...]:  # noqa: ARG002
        """The fixed parts of the kernels."""
        return "launch_kernel.py", "triton_kernel.py"

    def emit(self, plan: Plan) -> str:
        assert plan.key_tile is not None
        names = [PythonNames(index, group) for index, group in enumerate(plan.heads)]
        forwards = [self.forward(i, group, plan) for i, group in enumerate(plan.heads)]
        kind, walks, tile = Queries, plan.heads, plan.tile
        if plan.query_tile:
            kind, walks, tile = RetiledQueries, plan.queries, plan.query_tile
        queries = [self.queries(kind, i, walks, tile, _source(plan, group)) for i, group in enumerate(walks)]
        keys = [self.keys(i, group, plan, _source(plan, group)) for i, group in enumerate(plan.keys)]
        joint = self.joint(plan)
        draws = [
            device_draws(index, name, atom)
            for index, group in enumerate(plan.heads)
            for name, atom in group.atoms
            if isinstance(atom, Draws) and not group.picked
        ]
        constants = [
            f"ROWS, COLUMNS = {plan.tile.rows}, {plan.tile.columns}",
            f"QUERY_ROWS, QUERY_COLUMNS = {tile.rows}, {tile.columns}  # of the gradient of q",
            f"KEY_ROWS, KEY_COLUMNS = {plan.key_tile.rows}, {plan.key_tile.columns}  # of the gradients of k and v",
            *([f"JOINT_ROWS, JOINT_COLUMNS = {plan.joint_tile.rows}, {plan.joint_tile.columns}"] if plan.joint_tile else []),
            f"MASK_SIZE = {_mask_size(plan)}  # long masks compete with the accumulator for registers",
            inputs(plan),
        ]
        others = [*keys, *([joint] if joint else [])]
        parts = [
            f"{header(plan, self.name)}\n\n{IMPORTS}{self.imports(plan)}\n" + "\n".join(constants),
            verbatim("patternc.runtime", "support.py"),
            *selecting(plan, ("triton_picks.py", "triton_indexer.py", "triton_importance.py")),
            *sampler(plan),
            *(_device_sampler(part) for part in sampler(plan)),
            *(verbatim("patternc.backends", name) for name in self.modules((*forwards, *queries, *others))),
            verbatim("patternc.backends", "autograd_kernel.py"),
            *(part for name in names for part in (*name.atoms(), *name.selections())),
            selections(plan, names),
            *(part for program in (*forwards, *(queries if plan.query_tile else ()), *others) for part in listings(program)),
            *packings([one for program in (*forwards, *queries, *keys) for one in program.variants()]),
            *draws,
            *(one.source() for program in (*forwards, *queries, *others) for one in program.variants()),
            forward(forwards),
            backward(queries, keys, joint),
        ]
        return "\n\n\n".join(parts) + "\n"


def _wider(request: Request, most: int) -> list[str]:
    """Which heads are wider than a limit."""
    dims = (("head_dim", request.head_dim), ("value head_dim", request.value_dim))
    return [f"{what} {wide} is over {most}" for what, wide in dims if wide > most]


def shares(groups: tuple[HeadPlan, ...], index: int) -> tuple[HeadPlan, ...]:
    """The shares whose rows a pass takes up."""
    return tuple(group for group in groups[:index] if group.share and group.heads == groups[index].heads)


def _source(plan: Plan, group: HeadPlan) -> int:
    """The pass over queries whose functions know the atoms of a pass over keys."""
    same = (i for i, other in enumerate(plan.heads) if other.heads == group.heads and other.atoms)
    return next(same, 0)


def _device_sampler(source: str) -> str:
    """`mix` and `below` once more, as device functions: the same text, compiled by Triton."""
    text = re.sub(r"\b(mix|below)\b", r"device_\1", source[: source.index("def draw_ranks")].strip())
    return text.replace(": Any", "").replace(" -> Any", "").replace("def device_", "@triton.jit\ndef device_")


def _mask_size(plan: Plan) -> int:
    """Operators and operands of the longest mask of a key tile; a table look-up or a draw counts as 30."""
    tiles = [phase for group in plan.heads for phase in group.phases if not isinstance(phase, Gather | Picked)]
    return max((size(phase.mask) + 30 * isinstance(phase, Listed) for phase in tiles), default=0)


BACKEND = TritonBackend()
