"""Errors as part of the product: a code, a place, a caret, what was wanted, and a hint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from patternc.source import Span


@dataclass(frozen=True)
class Diagnostic:
    """One finding about a pattern's text."""

    code: str
    message: str
    span: Span | None = None
    hint: str | None = None

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.message}"]
        if self.span is not None:
            line, column = self.span.position
            text = self.span.source.line(line)
            start, width = column - 1, max(1, min(self.span.end - self.span.start, len(text) - column + 1))
            if start > 60:  # keep the caret in view on very long lines
                cut = start - 40
                text, start = "..." + text[cut:], start - cut + 3
            text = text[:117] + "..." if len(text) > 120 else text
            pad = "".join("\t" if char == "\t" else " " for char in text[:start])
            gutter = " " * len(str(line))
            lines += [
                f"{gutter}--> {self.span.source.name}:{line}:{column}",
                f"{gutter} |",
                f"{line} | {text}",
                f"{gutter} | {pad}{'^' * min(width, max(1, len(text) - start))}",
            ]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        line, column = self.span.position if self.span else (None, None)
        return {"code": self.code, "message": self.message, "line": line, "column": column, "hint": self.hint}


class PatternError(ValueError):
    """A pattern that cannot be read, or that asks for what cannot be done.

    Attributes: ``code`` (stable, for programs), ``message``, ``span`` (where, or None), ``hint`` (or None).
    """

    def __init__(self, code: str, message: str, span: Span | None = None, hint: str | None = None):
        self.diagnostic = Diagnostic(code, _clipped(message), span, hint and _clipped(hint))
        super().__init__(str(self.diagnostic))

    @property
    def code(self) -> str:
        return self.diagnostic.code

    @property
    def message(self) -> str:
        return self.diagnostic.message

    @property
    def span(self) -> Span | None:
        return self.diagnostic.span

    @property
    def hint(self) -> str | None:
        return self.diagnostic.hint


def _clipped(text: str) -> str:
    return text if len(text) <= 300 else text[:297] + "..."


def suggest(name: str, known: Iterable[str]) -> str | None:
    """A "did you mean" hint for a misspelt name, or None where nothing is close."""
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else None
