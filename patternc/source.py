"""Source text and spans in it: what every syntax node and every error points at."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Source:
    """A piece of pattern text with a name to show in errors (a file name, or ``<pattern>``)."""

    text: str
    name: str = "<pattern>"

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(i + 1 for i, char in enumerate(self.text) if char == "\n")]

    def position(self, offset: int) -> tuple[int, int]:
        """The 1-based (line, column) of a character offset."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of a 1-based line, without its line end."""
        return self.text.split("\n")[number - 1].rstrip("\r")


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``end`` (exclusive) of a source."""

    source: Source
    start: int
    end: int

    @property
    def position(self) -> tuple[int, int]:
        return self.source.position(self.start)

    def to(self, other: Span) -> Span:
        """The smallest span of this source that holds both."""
        return Span(self.source, min(self.start, other.start), max(self.end, other.end))
