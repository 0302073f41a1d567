"""What a pattern means, in words, in equations and in numbers."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from patternc.analysis.members import Member, members
from patternc.language.elaborate import _primitive, condition
from patternc.language.primitives import PRIMITIVES
from patternc.language.printer import show
from patternc.language.resolve import walk
from patternc.language.syntax import Call, Expression, Name
from patternc.pattern import Pattern
from patternc.report.colours import colour
from patternc.report.facts import Keys, RuntimeInput, keys_per_query, runtime_inputs
from patternc.report.parts import parts
from patternc.scalar import text

_FLOPS_FORWARD, _FLOPS_BACKWARD = 4, 10
_LONG = 600


@dataclass(frozen=True)
class Word:
    """One primitive as it is used: its text, what it is, and when it holds a pair."""

    text: str
    summary: str
    equation: str


@dataclass(frozen=True)
class Cost:
    """What one head costs at n, against dense attention over all pairs."""

    head_dim: int
    keys: Keys | None
    dense_pairs: int

    @property
    def forward_flops(self) -> int | None:
        return None if self.keys is None else _FLOPS_FORWARD * self.head_dim * self.keys.pairs

    @property
    def backward_flops(self) -> int | None:
        return None if self.keys is None else _FLOPS_BACKWARD * self.head_dim * self.keys.pairs

    @property
    def speedup(self) -> float | None:
        """How many times fewer pairs than dense; None where there are none."""
        return None if self.keys is None or not self.keys.pairs else self.dense_pairs / self.keys.pairs


@dataclass(frozen=True)
class Section:
    """The explanation of one distinct layer and head."""

    where: str
    expression: str
    parts: tuple[tuple[str, str], ...]
    words: tuple[Word, ...]
    held: str
    possible: str | None
    cost: Cost
    inputs: tuple[RuntimeInput, ...]


@dataclass(frozen=True)
class Explanation:
    """All there is to say about a pattern without running it."""

    name: str | None
    expression: str
    layers: int
    heads: int
    sections: tuple[Section, ...]

    def to_json(self) -> dict[str, Any]:
        """The explanation as plain values, for machines."""
        return {
            "name": self.name,
            "expression": self.expression,
            "layers": self.layers,
            "heads": self.heads,
            "sections": [_section_json(section) for section in self.sections],
        }

    def render(self) -> RenderableType:
        """The explanation for a rich console."""
        title = Text(self.expression, style="bold")
        if self.name:
            title = Text.assemble((f"{self.name} = ", "dim"), title)
        lines: list[RenderableType] = [title]
        if self.layers > 1 or self.heads > 1:
            words = [f"{word}s repeat after {count}" for word, count in (("layer", self.layers), ("head", self.heads)) if count > 1]
            lines.append(Text("; ".join(words), style="dim"))
        for section in self.sections:
            lines += _render_section(section, alone=len(self.sections) == 1)
        return Group(*lines)


def explain(pattern: Pattern, *, n: int = 4096, head_dim: int = 128) -> Explanation:
    """Explain every distinct layer and head of a pattern, with its keys and cost at ``n``."""
    sections = tuple(_section(member, n, head_dim) for member in members(pattern))
    return Explanation(pattern.name, str(pattern), pattern.layers, pattern.heads, sections)


def _section(member: Member, n: int, head_dim: int) -> Section:
    meaning = member.meaning
    dynamic = None if meaning.is_static else text(meaning.possible.predicate)
    return Section(
        member.label,
        show(member.expression),
        tuple((part.label, part.text) for part in parts(member.expression)),
        words(member.expression),
        text(meaning.static.predicate),
        dynamic,
        Cost(head_dim, keys_per_query(meaning, n, member.head), n * n),
        runtime_inputs(meaning),
    )


def words(expression: Expression) -> tuple[Word, ...]:
    """Every primitive of a closed expression, in order of appearance."""
    found: dict[str, Word] = {}
    for node in _patterns(expression):
        shown = show(node)
        if shown in found:
            continue
        match node:
            case Call("where", (test,)):
                found[shown] = Word(shown, "The pairs that satisfy a condition.", text(condition(test)))
            case Call(name, arguments, keywords, span):
                found[shown] = _word(shown, name, _primitive(name, list(arguments), keywords, span)[0])
            case Name(name, span):
                found[shown] = _word(shown, name, _primitive(name, [], (), span)[0])
    return tuple(found.values())


def _patterns(expression: Expression) -> list[Expression]:
    """The primitives in an expression, but not the names inside their arguments."""
    match expression:
        case Name():
            return [expression]
        case Call():
            return [expression]
    below: list[Expression] = []
    for child in _children(expression):
        below += _patterns(child)
    return below


def _children(expression: Expression) -> list[Expression]:
    from patternc.language.resolve import map_children

    found: list[Expression] = []

    def keep(child: Expression) -> Expression:
        found.append(child)
        return child

    map_children(expression, keep)
    return found


def _word(shown: str, name: str, result: Any) -> Word:
    primitive = PRIMITIVES[name]
    equation = text(condition_of(result)) if isinstance(result, str) else _edge(result)
    return Word(shown, primitive.summary, equation)
