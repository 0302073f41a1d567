"""What the emitters share: the file's header, the verbatim support code, and masks, atoms and tiles as Python source."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterable, Sequence
from importlib.resources import files
from textwrap import indent, wrap

from patternc.lower.plan import Atom, Draws, HeadPlan, Phase, Plan, Selection
from patternc.relation import Loop
from patternc.scalar import FALSE, Scalar, text, variables
from patternc.scorers import ScoreInput
from patternc.terms import Document, Layout

from .printer import python


def header(plan: Plan, backend: str) -> str:
    """The docstring of an emitted file: the expression, the equations and the plan."""
    equations = []
    for group in plan.heads:
        heads = "" if group.period == 1 else f" (heads {', '.join(map(str, group.heads))} of every {group.period})"
        masks = [text(phase.mask) for phase in group.phases] or ["false"]
        equations.append(f"A query q may read a key k{heads} where\n" + indent("\nor ".join(masks), "    "))
    body = "\n\n".join(
        [
            f"Sparse attention, {backend} backend: {plan.pattern}",
            *equations,
            "of n keys; queries are the last positions. O = softmax(Q K^T * scale + mask) V, one softmax over all phases.",
            str(plan),
            "Written by patternc; needs nothing of it.",
        ]
    )
    lines = [
        piece
        for line in body.split("\n")
        for piece in (wrap(line, 118, subsequent_indent="      ", drop_whitespace=False) or [""])
    ]
    safe = "\n".join(line.rstrip() for line in lines).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{safe}\n"""'


def verbatim(package: str, name: str, only: Iterable[str] | None = None, without: Container[str] = ()) -> str:
    """A module's source without its docstring and imports, or only the named functions of it, or without some."""
    source = files(package).joinpath(name).read_text("utf-8")
    lines = source.split("\n")
    chosen = None if only is None else set(only)
    kept: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if chosen is not None and not (isinstance(node, ast.FunctionDef) and node.name in chosen):
            continue
        if isinstance(node, ast.FunctionDef) and node.name in without:
            continue
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)]) - 1
        assert node.end_lineno is not None
        gap = "\n\n" if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
        kept.append(gap + "\n".join(lines[first : node.end_lineno]))
    return "\n".join(kept).strip("\n")


SCORING_IMPORTS = """\
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeAlias"""
_SELECTING = ("patternc", "scorers.py"), ("patternc.runtime", "selecting.py"), ("patternc.runtime", "picking.py")
SCORERS = (SCORING_IMPORTS, verbatim(*_SELECTING[0]))
"""The source of the scorers, with what it imports."""


def selecting(plan: Plan, kernels: Sequence[str] = ()) -> list[str]:
    """The source of what selects keys; without selections, what says so.

    ``kernels`` are modules of this package with faster functions, which stand for those of the same names.
    """
    if any(group.selections for group in plan.heads):
        faster = [verbatim("patternc.backends", name) for name in kernels]
        named = {node.name for part in faster for node in ast.parse(part).body if isinstance(node, ast.FunctionDef)}
        parts = [verbatim(package, name, without=named) for package, name in _SELECTING]
        return [SCORING_IMPORTS, *parts, *faster]
    return ["def selections(q, k, inputs, scale=None):\n    return []"]


SAMPLER = ("mix", "below", "draw_ranks")


def sampler(plan: Plan) -> list[str]:
    """The sampler's source, where the plan draws."""
    draws = any(isinstance(atom, Draws) for group in plan.heads for _, atom in group.atoms)
    return [verbatim("patternc", "random_edges.py", SAMPLER)] if draws else []


def inputs(plan: Plan) -> str:
    """The runtime inputs as (name, kind, block)."""
    kinds = {Layout: "layout", Document: "document", ScoreInput: "scores"}
    rows = [(name, kinds[type(use)], getattr(use, "block", 1)) for name, use in plan.inputs]
    return f"INPUTS = {tuple(rows)!r}"


_OF_BLOCKS = "some", "least", "beyond"
"""Key blocks that are candidates, that are forced, and that have a key which is not held."""


class PythonNames:
    """Names of the generated functions of one group of heads."""

    def __init__(self, index: int, group: HeadPlan):
        self._index, self._group = index, group
        self._calls = {name: f"{self.atom(name)}(s, q, k)" for name, _ in group.atoms}

    def atom(self, name: str) -> str:
        return f"{name}_g{self._index}"

    def condition(self, name: str, mask: Scalar) -> str:
        """A function (scope, q, k) -> bool tensor."""
        body = python(mask, self._calls, tensors=True)
        if variables(mask) <= {"n"}:  # a plain bool, and callers want a tensor
            body = f"(q == q) & (k == k) & ({body})"
        return f"def {name}(s, q, k):\n    n = s.n  # noqa: F841\n    return {body}"

    def atoms(self) -> list[str]:
        return [part for name, atom in self._group.atoms for part in self._atom(name, atom)]

    def _atom(self, name: str, atom: Atom) -> list[str]:
        function = self.atom(name)
        match atom:
            case Layout(table, block):
                return [f"def {function}(s, q, k):\n    return in_table(s, {table!r}, {block}, q, k)"]
            case Document(ids):
                return [f"def {function}(s, q, k):\n    return same_document(s, {ids!r}, q, k)"]
            case Draws(choice, loops):
                keys = _draws(f"{function}_keys", choice.draws, choice.seed, choice.pool, loops)
                member = (
                    f"def {function}(s, q, k):\n"
                    f'    """Whether the key block of k is among the draws of the query block of q."""\n'
                    f"    drawn = {function}_keys(s, q // {choice.block})\n"
                    f"    found = drawn[..., :1] == k // {choice.block}\n"
                    f"    for i in range(1, {choice.draws}):\n"
                    f"        found = found | (drawn[..., i : i + 1] == k // {choice.block})\n"
                    f"    return found"
                )
                return [keys, member]

    def atom_named(self, name: str) -> Atom:
        return dict(self._group.atoms)[name]

    def draws_of(self, name: str) -> Draws:
        atom = self.atom_named(name)
        assert isinstance(atom, Draws)
        return atom

    def selections(self) -> list[str]:
        parts = []
        for i, selection in enumerate(self._group.selections):
            parts += [
                self.condition(f"allowed_{i}_g{self._index}", selection.allowed),
                self.condition(f"held_{i}_g{self._index}", selection.held),
            ]
            parts += [
                self.condition(f"forced_{i}_{j}_g{self._index}", choice.force.predicate)
                for j, choice in enumerate(selection.choices)
                if choice.forced != FALSE
            ]
            parts += [self._of_blocks(name, mask) for name, mask in self._blocks(i, selection) if name]
        return parts

    def _blocks(self, i: int, selection: Selection) -> list[tuple[str | None, Scalar]]:
        """The names of the functions of key blocks, None for what holds of none, and what they say."""
        said = zip(_OF_BLOCKS, selection.blocks or (), strict=False)
        return [(None if mask == FALSE else f"{what}_{i}_g{self._index}", mask) for what, mask in said]

    def _of_blocks(self, name: str, mask: Scalar) -> str:
        shown = python(mask, {}, tensors=True)
        return f"def {name}(s, I, J):  # noqa: E741\n    n = s.n  # noqa: F841\n    return (I == I) & (J == J) & ({shown})"

    def selection_row(self, i: int, selection: Selection) -> str:
        rows = ""
        for j, one in enumerate(selection.choices):
            forced = None if one.forced == FALSE else f"forced_{i}_{j}_g{self._index}"
            rows += f"({one.scorer!r}, {one.k}, {one.block}, {one.share!r}, {forced}), "
        per_head = any(isinstance(atom, Draws) for _, atom in self._group.atoms)
        blocks = ", ".join(str(name) for name, _ in self._blocks(i, selection))
        asked = f"allowed_{i}_g{self._index}, held_{i}_g{self._index}, {per_head}"
        shown = f"({blocks})" if blocks else None
        return f"(({rows}), {asked}, {selection.width}, {selection.unit}, {shown}, {selection.causal})"


def _draws(name: str, draws: int, seed: int, pool: int | None, loops: tuple[Loop, ...]) -> str:
    """A function (scope, row) -> drawn key blocks (h, rows, draws), of query blocks ``row`` (rows, 1)."""
    lines = [
        f"def {name}(s, q):",
        f'    """The {draws} key blocks that each query block q draws, -1 where it has fewer candidates."""',
        "    n = s.n  # noqa: F841",
        "    counts = []",
        "    starts = []",
    ]
    for loop in loops:
        lines.append(f"    counts.append(({python(loop.count, tensors=True)} + 0 * q).clamp(min=0))")
        lines.append(f"    starts.append({python(loop.start, tensors=True)} + 0 * q)")
    steps = tuple(loop.step for loop in loops)
    values = f"values_at(ranks, counts, starts, {steps!r})"
    if any(loop.interleaved for loop in loops):
        values = f"merged_values_at(ranks, counts, starts, {steps!r}, n)"
    lines += [
        "    total = sum(counts, 0 * q)",
        *([f"    total = total.clamp(max={pool})"] if pool is not None else []),
        f"    ranks = torch.cat(draw_ranks({draws}, total, {seed}, s.head, q, torch.where), -1)",
        f"    return {values}",
    ]
    return "\n".join(lines)


def selections(plan: Plan, names: list[PythonNames]) -> str:
    """The table SELECTIONS: for each group of heads, its selections."""
    rows = [
        "".join(n.selection_row(i, s) + ", " for i, s in enumerate(g.selections))
        for n, g in zip(names, plan.heads, strict=True)
    ]
    return "SELECTIONS = (\n" + "".join(f"    ({row}),\n" for row in rows if row) + ")"


def phase_names(index: int, phases: tuple[Phase, ...]) -> list[tuple[str, Phase]]:
    """Each phase with the suffix of its generated functions."""
    return [(f"{i}_g{index}", phase) for i, phase in enumerate(phases)]
