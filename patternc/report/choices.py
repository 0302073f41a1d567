"""The plans that a backend chooses from and the views that were considered for them, as text and as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from patternc.analysis.members import spans
from patternc.backend import Request, backend_named
from patternc.lower.cost import LANES, REFERENCE_LENGTH
from patternc.lower.plan import Gather, HeadPlan, Listed, Plan, Tile, Walk
from patternc.lower.views import Choice
from patternc.pattern import Pattern
from patternc.relation import IDENTITY, View
from patternc.report.bars import milliseconds
from patternc.runtime.compile import Candidate, HeadChoices, candidates, complete, plan_for, serving
from patternc.runtime.loader import load

_NUMBERS = ("cost", "ratio", "ms", "apart", "together")
_SPLIT = "split among programs"
_VIEWS = (
    "A view sorts or picks queries and keys so that pairs fall into fewer tiles. Costs, in full tiles of the plan's shape, are "
    "those of its pairs and of the pairs in the rows as they are: apart, with what another pass adds, and all together; never "
    f"less than {LANES} times the longest row tile that is not split."
)
_LEFT = "left in the rows as they are"


@dataclass(frozen=True)
class Time:
    """The median time of a forward pass in milliseconds; None where it did not run, and then the note says why."""

    ms: float | None
    note: str = ""


@dataclass(frozen=True)
class Times:
    """The times of all candidates in their order, for tensors of one shape on one device."""

    device: str
    batch: int
    heads: int
    n: int
    each: tuple[Time, ...]


@dataclass(frozen=True)
class Choices:
    """What there was to choose from for one layer, the chosen candidate first; with times where they were measured.

    ``plan`` is what runs: the chosen candidate's, with its gradients.
    """

    pattern: str
    backend: str
    request: Request
    candidates: tuple[Candidate, ...]
    plan: Plan
    times: Times | None = None

    @property
    def chosen(self) -> Candidate:
        return self.candidates[0]

    @property
    def unit(self) -> Tile | None:
        """The tile shape whose full tiles cost 1."""
        return next((one.unit.tile for one in self.candidates if one.unit.full == 1), None)

    def ratio(self, candidate: Candidate) -> float | None:
        """How many times the chosen one's cost it costs; None where that is nothing."""
        best = self.chosen.cost
        return candidate.cost / best if best else 1.0 if candidate.cost == best else None

    def to_json(self) -> dict[str, Any]:
        """The choices as plain values, for machines."""
        request, times = self.request, self.times
        shape = None if times is None else {"batch": times.batch, "heads": times.heads, "n": times.n, "device": times.device}
        return {
            "expression": self.pattern,
            "backend": self.backend,
            "device": request.device,
            "generation": request.generation,
            "dtype": request.dtype,
            "head_dim": request.head_dim,
            "n": REFERENCE_LENGTH,
            "unit": None if self.unit is None else str(self.unit),
            "measured": shape,
            "candidates": [self._candidate_json(i, one) for i, one in enumerate(self.candidates)],
        }

    def _candidate_json(self, i: int, one: Candidate) -> dict[str, Any]:
        time = {} if self.times is None else {"forward_ms": self.times.each[i].ms, "note": self.times.each[i].note}
        return {
            "chosen": i == 0,
            "tile": str(one.unit.tile),
            "cost": one.cost,
            "ratio": self.ratio(one),
            **time,
            "passes": [_pass_json(group) for group in one.plan.heads],
            "views": [_choice_json(heads, choice) for heads in one.choices for choice in heads.views],
            "plan": str(one.plan),
        }

    def render(self, where: str = "") -> RenderableType:
        """The choices for a rich console, but for the chosen plan itself; ``where`` says which layers they are of."""
        request, where = self.request, f" of {where}" if where else ""
        device = request.device + (f" {request.generation}.x" if request.device == "cuda" and request.generation else "")
        title = f"plans{where}: {self.backend} backend, {device}, {request.dtype}, head_dim {request.head_dim}"
        below = [*self._candidates(), Text(), Text("views considered", "bold dim"), *self._views()]
        return Group(Text(title, "bold dim"), Padding(Group(*below), (0, 0, 0, 2)))

    def _candidates(self) -> Iterator[RenderableType]:
        full = "of the backend's own" if self.unit is None else f"what a full tile of {self.unit} costs"
        yield Text(f"Predicted cost of one head at n = {REFERENCE_LENGTH:,}; 1 is {full}.{self._left_out()}", "dim")
        if self.times is not None:
            times = self.times
            shape = f"batch {times.batch}, {times.heads} heads, n = {times.n:,}"
            yield Text(f"Measured: the forward kernels on {times.device}, {shape}; medians.", "dim")
        table = _table("", "tile", "passes", "cost", "ratio", *(["ms"] if self.times else []))
        for i, one in enumerate(self.candidates):
            ratio = self.ratio(one)
            verdict = Text("rejected", "dim") if i else Text("chosen", "bold green")
            cells = [str(one.unit.tile), _passes(one), _cost(one.cost), "-" if ratio is None else f"{ratio:.2f}"]
            table.add_row(verdict, *cells, *self._ms(i))
        yield table
        if len(self.candidates) == 1:
            yield Text("The backend has one tile shape for such calls.", "dim")
        for one, time in zip(self.candidates, self.times.each if self.times else (), strict=False):
            if time.note:
                yield Text(f"{one.unit.tile}: {time.note}", "dim")

    def _left_out(self) -> str:
        """What costs do not count."""
        phases = [phase for group in self.chosen.plan.heads for phase in group.phases]
        if all(isinstance(phase, Walk) for phase in phases):
            return ""
        return " Keys that are listed or gathered at run time are left out: they are the same for all."

    def _ms(self, i: int) -> list[str]:
        if self.times is None:
            return []
        ms = self.times.each[i].ms
        return ["-" if ms is None else milliseconds(ms)]

    def _views(self) -> Iterator[RenderableType]:
        if not backend_named(self.backend).views:
            yield Text(f"none: the {self.backend} backend walks rows and keys as they are")
            return
        if not any(heads.views for one in self.candidates for heads in one.choices):
            yield Text("none: rows and keys are walked as they are")
            return
        yield Text(_VIEWS, "dim")
        grouped = any(len(one.choices) > 1 for one in self.candidates)
        table = _table("tile", *(["heads"] if grouped else []), "view", "apart", "together", "")
        for one in self.candidates:
            for heads in one.choices:
                for choice in heads.views:
                    head = [_heads(heads)] if grouped else []
                    costs = (_cost(choice.alone), _cost(choice.merged))
                    table.add_row(str(one.unit.tile), *head, _view(choice.view), *costs, _verdict(choice))
        yield table


def choices(pattern: Pattern, backend: str, request: Request) -> Choices:
    """What a backend chooses from for a request, for a pattern whose layers are alike."""
    found, plan = candidates(pattern, None, backend, request), plan_for(pattern, None, backend, request)
    return Choices(str(pattern), backend, request, found, plan)


def measured(
    pattern: Pattern, backend: str, *, n: int = REFERENCE_LENGTH, head_dim: int = 128, device: str = "cuda"
) -> Choices:
    """The same for this machine's device, with the times of all candidates. Imports torch.

    Raises:
        ValueError: there is no such device here, the backend cannot run there, or the tensors do not fit.
    """
    import torch

    from patternc.runtime import bench
    from patternc.runtime.operator import request_of

    setting = bench.Setting(device, head_dim=head_dim)
    timer = bench.timer_for(setting.device)
    with bench._on(setting.device), torch.no_grad():
        case = bench._case(pattern, n, setting)
        request = request_of(case.q, case.v)
        serving(pattern, None, request, backend)
        found = choices(pattern, backend, request)

        def time(one: Candidate) -> Time:
            try:
                module = load(backend_named(backend).emit(complete(one.plan, pattern, None, backend, request)))
                kept = {name: case.inputs[name] for name, kind, _ in module.INPUTS if kind != "scores"}
                picked = module.selections(case.q, case.k, case.inputs)
                call = partial(module.forward, case.q, case.k, case.v, kept, picked, head_dim**-0.5)
                call()
                return Time(timer(call))
            except Exception as error:  # whatever stops a plan is a result
                return Time(None, bench._short(error))

        each = tuple(time(one) for one in found.candidates)
    times = Times(bench.machine(setting.device)["device"], setting.batch, setting.heads, n, each)
    return replace(found, times=times)


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for head in heads:
        number = head in _NUMBERS
        table.add_column(head, justify="right" if number else "left", overflow="fold", no_wrap=number or head == "tile")
    return table


def _heads(group: HeadPlan | HeadChoices) -> str:
    plural = "s" if len(group.heads) > 1 else ""
    return f"head{plural} {spans(group.heads)} of every {group.period}" if group.period > 1 else "all heads"


def _passes(candidate: Candidate) -> str:
    """The passes of a plan in words, a line for each group of heads."""
    groups: dict[str, list[str]] = {}
    for group in candidate.plan.heads:
        groups.setdefault(_heads(group), []).append(_pass(group))
    lines = ["; ".join(passes) for passes in groups.values()]
    return "\n".join(f"{heads}: {line}" if len(groups) > 1 else line for heads, line in zip(groups, lines, strict=True))


def _pass(group: HeadPlan) -> str:
    """A pass in words: its rows, and what it does besides walking their keys."""
    rows = "keys listed for each query" if group.picked else _rows(group.rows)
    found = [f"keys {_places(p.view)}" for p in group.phases if isinstance(p, Walk) and _packs_keys(p.view)]
    found += ["listed tiles" for p in group.phases if isinstance(p, Listed)]
    found += ["gathered keys" for p in group.phases if isinstance(p, Gather)]
    if not group.phases:
        rows += ", no keys"
    elif found:
        rows += f" (with {', '.join(dict.fromkeys(found))})"
    return f"{rows}, {_SPLIT}" if group.share else f"{rows}, chained" if group.chained else rows


def _rows(rows: View) -> str:
    if rows.stride > 1:
        return f"rows {rows.stride} apart"
    if rows.few:
        return "a few rows"
    return f"rows {_places(rows)}" if rows.packs_rows else "all rows"


def _packs_keys(view: View) -> bool:
    return view.period > 1 and not view.packs_rows


def _places(view: View) -> str:
    """The positions that a packed view keeps."""
    return f"{spans(range(view.first, view.first + view.width))} of every {view.period}"


def _view(view: View) -> str:
    """A view in words, for those who know queries and keys."""
    if view.stride > 1:
        return f"queries and keys {f'{view.offset} plus ' if view.offset else ''}a multiple of {view.stride} apart"
    if view.few:
        return "a few queries near the ends"
    if view.period > 1:
        return f"{'queries' if view.packs_rows else 'keys'} {_places(view)}"
    return "rows and keys as they are"


def _verdict(choice: Choice) -> str:
    if not choice.taken:
        return _LEFT if isfinite(choice.alone) else f"{_LEFT}: its row tiles are not a plain list"
    if choice.view.rows == IDENTITY:
        return "taken: a phase of the pass over all rows"
    return f"taken: a pass of its own{'' if choice.view.stride > 1 else f', {_SPLIT}'}"


def _cost(cost: float) -> str:
    return f"{cost:,.0f}" if isfinite(cost) else "-"


def _pass_json(group: HeadPlan) -> dict[str, Any]:
    return {
        "heads": list(group.heads),
        "period": group.period,
        "rows": _rows(group.rows),
        "phases": len(group.phases),
        "chained": group.chained,
        "split": group.share,
        "words": _pass(group),
    }


def _choice_json(group: HeadChoices, choice: Choice) -> dict[str, Any]:
    return {
        "heads": list(group.heads),
        "period": group.period,
        "view": _view(choice.view),
        "formula": str(choice.view),
        "apart": choice.alone if isfinite(choice.alone) else None,
        "together": choice.merged,
        "taken": choice.taken,
        "verdict": _verdict(choice),
    }
