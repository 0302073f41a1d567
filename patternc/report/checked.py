"""What was checked about patterns: as a table, as plain values, and as diagnostics of the asserts that are not proved."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from patternc.analysis.verdict import Verdict
from patternc.diagnostics import Diagnostic
from patternc.language.asserts import Claim
from patternc.language.printer import show
from patternc.language.syntax import Expression
from patternc.report.explain import STATUS
from patternc.report.guarantees import shown


@dataclass(frozen=True)
class Checked:
    """A pattern, what was claimed of it, and the verdict on each claim."""

    name: str | None
    expression: Expression
    results: tuple[tuple[Claim, Verdict], ...]

    def __bool__(self) -> bool:
        return all(verdict for _, verdict in self.results)

    @property
    def failures(self) -> tuple[Diagnostic, ...]:
        """A diagnostic for each assert that is not proved, at its line."""
        return tuple(
            Diagnostic(verdict.status, f"{verdict.claim}: {_reason(verdict)}", claim.line.span)
            for claim, verdict in self.results
            if claim.line is not None and not verdict
        )

    def to_json(self) -> dict[str, Any]:
        """The pattern, and each verdict with what it was asked for, as plain values."""
        verdicts = [{**_asked(claim), **verdict.to_json()} for claim, verdict in self.results]
        return {"name": self.name, "expression": show(self.expression), "proved": bool(self), "verdicts": verdicts}

    def render(self) -> RenderableType:
        """For a rich console: the status, the claim with its reason, and the number, where one was asked for."""
        expression = show(self.expression)
        measured = any(claim.operator for claim, _ in self.results)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        if measured:
            table.add_column(overflow="fold", justify="right")
        for claim, verdict in self.results:
            words = Text(verdict.claim).append(f"\n{_reason(verdict)}", "dim" if verdict else "")
            numbers = [Text(_number(verdict) if claim.operator else "")] if measured else []
            table.add_row(Text(verdict.status, STATUS[verdict.status]), words, *numbers)
        return Group(Text(f"{self.name} = {expression}" if self.name else expression, "bold"), table)


def checked(results: Iterable[tuple[Claim, Verdict]]) -> tuple[Checked, ...]:
    """Results by the pattern that they are about, in order of first appearance."""
    groups: dict[tuple[str | None, Expression], list[tuple[Claim, Verdict]]] = {}
    for claim, verdict in results:
        groups.setdefault((claim.name, claim.subject), []).append((claim, verdict))
    return tuple(Checked(name, expression, tuple(found)) for (name, expression), found in groups.items())


def _reason(verdict: Verdict) -> str:
    return f"{verdict.where}: {verdict.reason}" if verdict.where else verdict.reason


def _number(verdict: Verdict) -> str:
    """The number that was asked for, or the bounds that are known of it."""
    if verdict.value is not None:
        return shown(verdict.value)
    if verdict.lower is None and verdict.upper is None:
        return ""
    return f"{shown(verdict.lower or 0)} to {shown(math.inf if verdict.upper is None else verdict.upper)}"


def _asked(claim: Claim) -> dict[str, Any]:
    asked: dict[str, Any] = {"guarantee": claim.guarantee, "n": claim.n}
    if claim.operator:
        asked |= {"operator": claim.operator, "limit": claim.limit}
    if claim.other is not None:
        asked["other"] = show(claim.other)
    if claim.line is not None:
        line, column = claim.line.span.position
        asked |= {"assert": show(claim.line), "line": line, "column": column}
    return asked
