"""The torch backend: a file that runs anywhere torch does, with work and memory in proportion to the tiles."""

from __future__ import annotations

from patternc.backend import Request
from patternc.lower.cost import TileCost
from patternc.lower.plan import Draws, Gather, HeadPlan, Listed, Phase, Picked, Plan, Tile, Walk
from patternc.scalar import TRUE, variables
from patternc.terms import Document, Layout

from .assemble import PythonNames, header, inputs, phase_names, sampler, selecting, selections, verbatim
from .printer import python

DTYPES = ("float16", "bfloat16", "float32", "float64")


class TorchBackend:
    """CPU and every other device that torch has; forward and backward."""

    name = "torch"
    rank = 10
    differentiable = True
    views = True
    splits = False

    def unsupported(self, request: Request) -> list[str]:
        return [] if request.dtype in DTYPES else [f"dtype {request.dtype} is not one of {', '.join(DTYPES)}"]

    def query_tile(self, request: Request) -> Tile | None:  # noqa: ARG002
        return None

    def key_tile(self, request: Request) -> Tile | None:  # noqa: ARG002
        return None

    def refused(self, plan: Plan, request: Request) -> list[str]:  # noqa: ARG002
        return []

    def tiles(self, request: Request) -> tuple[TileCost, ...]:  # noqa: ARG002
        # Measured on a CPU: long rows without masks are fastest many at a time; masked parts are cut to size in the kernel.
        return TileCost(Tile(128, 128), 1, 1, 0), TileCost(Tile(1024, 128), 6.4, 4.5, 1)

    def joint_tile(self, request: Request) -> Tile | None:  # noqa: ARG002
        return None

    def emit(self, plan: Plan) -> str:
        return "\n\n\n".join([*preamble(plan, self.name), *groups(plan)]) + "\n"


def preamble(plan: Plan, backend: str) -> list[str]:
    """Header, imports and the verbatim code."""
    return [
        f"{header(plan, backend)}\n\nfrom collections.abc import Callable\n"
        "from dataclasses import dataclass, replace\nfrom typing import Any\n\nimport torch\n\n"
        f"ROWS, COLUMNS = {plan.tile.rows}, {plan.tile.columns}\n{inputs(plan)}",
        verbatim("patternc.runtime", "support.py"),
        *selecting(plan),
        *sampler(plan),
        verbatim("patternc.backends", "torch_kernel.py"),
        verbatim("patternc.backends", "autograd_kernel.py"),
    ]


_NO_PASS = "here the lists of selections are no passes of their own"


def groups(plan: Plan) -> list[str]:
    """The generated functions of every group of heads, and the tables GROUPS and SELECTIONS."""
    functions: list[str] = []
    rows: list[str] = []
    names = [PythonNames(index, group) for index, group in enumerate(plan.heads)]
    for index, group in enumerate(plan.heads):
        functions += names[index].atoms() + names[index].selections()
        phases = ""
        for suffix, phase in phase_names(index, group.phases):
            functions += _functions(suffix, phase, names[index])
            phases += _row(suffix, phase, _varies(phase, group)) + ", "
        made = f"{group.runs!r}, {group.period}, {len(group.selections)}, ({phases}), {group.stride}, {group.chained}"
        rows.append(f"    Heads({made}),\n")
    return [*functions, f"GROUPS = (\n{''.join(rows)})", selections(plan, names)]


def _functions(suffix: str, phase: Phase, names: PythonNames) -> list[str]:
    mask = names.condition(f"mask_{suffix}", phase.mask)
    match phase:
        case Walk():
            return [_tiles(f"tiles_{suffix}", phase), mask]
        case Listed(sources, active, _):
            listing = "\n".join([f"def blocks_{suffix}(s, q):", "    return [", *_blocks(sources, names), "    ]"])
            check = f"def active_{suffix}(I, J, n):  # noqa: E741\n    return {python(active)}"
            return [listing, check, mask]
        case Gather(int(selection), _, _):
            keys = f"def keys_{suffix}(s, q):\n    return selected_rows(s, {selection}, q)"
            return [keys, mask]
        case Gather(source, _, _):
            return [f"def keys_{suffix}(s, q):\n    return {names.atom(str(source))}_keys(s, q)[None]", mask]
        case Picked():
            raise AssertionError(_NO_PASS)


def _tiles(name: str, phase: Walk) -> str:
    """A function (I, n, r) -> [(J, masked)]."""
    lines = [f"def {name}(I, n, r=0):  # noqa: E741", "    found = []"]
    for loops, masked in ((phase.full, False), (phase.partial, True)):
        for loop in loops:
            start, count = python(loop.start), python(loop.count)
            walk = f"range({start}, ({start}) + {loop.step} * ({count}), {loop.step})"
            guard = "" if loop.guard == TRUE else f" if {python(loop.guard)}"
            lines.append(f"    found += [(x, {masked}) for x in {walk}{guard}]")
    return "\n".join([*lines, "    return found"])


def _varies(phase: Phase, group: HeadPlan) -> str:
    """What the pairs of a phase depend on besides the length: "b" the batch, by a runtime input, and "h" the head."""
    uses = variables(phase.mask) | set(phase.sources if isinstance(phase, Listed) else ())
    used = [atom for name, atom in group.atoms if name in uses]
    batch = any(isinstance(atom, Layout | Document) for atom in used) or bool(isinstance(phase, Walk) and phase.documents)
    return "b" * batch + "h" * any(isinstance(atom, Layout | Draws) for atom in used)


def _blocks(sources: tuple[str, ...], names: PythonNames) -> list[str]:
    rows = []
    for source in sources:
        match names.atom_named(source):
            case Layout(name, block):
                rows.append(f"        ({block}, table_blocks(s, {name!r}, q // {block})),")
            case _:
                block = names.draws_of(source).choice.block
                rows.append(f"        ({block}, {names.atom(source)}_keys(s, q[:, None] // {block})),")
    return rows


def _row(suffix: str, phase: Phase, varies: str) -> str:
    match phase:
        case Walk(documents=documents, view=view):
            packing = (view.offset, view.period, view.width, view.first)
            return f"Walk(tiles_{suffix}, mask_{suffix}, {packing!r}, {documents!r}, {varies!r})"
        case Listed():
            return f"Listed(blocks_{suffix}, active_{suffix}, mask_{suffix}, {varies!r})"
        case Gather():
            return f"Gather(keys_{suffix}, mask_{suffix})"
        case Picked():
            raise AssertionError(_NO_PASS)


BACKEND = TorchBackend()
