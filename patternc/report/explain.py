"""What a pattern means, in words, in equations and in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from patternc.analysis.held import certain
from patternc.analysis.members import Member, by_branch, members
from patternc.analysis.verdict import Verdict
from patternc.language.elaborate import _primitive, condition
from patternc.language.primitives import PRIMITIVES, Result
from patternc.language.printer import show
from patternc.language.resolve import map_children
from patternc.language.syntax import Call, Expression, Name
from patternc.pattern import Pattern
from patternc.report.colours import colour
from patternc.report.facts import Keys, RuntimeInput, keys_per_query, runtime_inputs
from patternc.report.parts import parts
from patternc.scalar import FALSE, text
from patternc.terms import Choice, Document, Filter, Layout, Random, TopK

_FLOPS_FORWARD, _FLOPS_BACKWARD = 4, 10
_LONG = 600
STATUS = {
    "proved": "bold green",
    "refuted": "bold red",
    "bounded": "bold yellow",
    "estimated": "bold yellow",
    "unknown": "bold yellow",
}
_CANDIDATES = "; candidates: the {} that the conjuncts allow"


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
    branches: tuple[str, ...]
    sections: tuple[Section, ...]
    verdicts: tuple[Verdict, ...]

    def to_json(self) -> dict[str, Any]:
        """The explanation as plain values, for machines."""
        return {
            "name": self.name,
            "expression": self.expression,
            "layers": self.layers,
            "heads": self.heads,
            "branches": list(self.branches),
            "sections": [_section_json(section) for section in self.sections],
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
        }

    def render(self) -> RenderableType:
        """The explanation for a rich console."""
        title = Text(self.expression, style="bold")
        if self.name:
            title = Text.assemble((f"{self.name} = ", "dim"), title)
        lines: list[RenderableType] = [title]
        if self.layers > 1 or self.heads > 1:
            periods = (("layers", self.layers), ("heads", self.heads))
            words = [f"{word} repeat after {count}" for word, count in periods if count > 1]
            lines.append(Text("; ".join(words), style="dim"))
        if self.branches:
            lines.append(Text("every branch is an attention of its own; their outputs are summed with gates", style="dim"))
        for section in self.sections:
            lines += _render_section(section, alone=len(self.sections) == 1)
        return Group(*lines, Text(), _heading("guarantees, for every n"), Padding(verdict_table(self.verdicts), (0, 0, 0, 2)))


def explain(pattern: Pattern, *, n: int = 4096, head_dim: int = 128) -> Explanation:
    """Explain every distinct layer, head and branch of a pattern, with its keys and cost at ``n``."""
    sections = tuple(_section(member, n, head_dim) for member in _members(pattern))
    verdicts = (pattern.prove_causal(), pattern.prove_nonempty(), pattern.prove_self_loops())
    return Explanation(pattern.name, str(pattern), pattern.layers, pattern.heads, pattern.branches, sections, verdicts)


def _members(pattern: Pattern) -> Iterator[Member]:
    """The members of every branch, or of a pattern that is one attention."""
    for one, branch in by_branch(pattern):
        for member in members(one):
            yield replace(member, label=", ".join(word for word in (branch, member.label) if word))


def _section(member: Member, n: int, head_dim: int) -> Section:
    meaning = member.meaning
    dynamic = None if meaning.is_static else text(meaning.possible.predicate)
    return Section(
        member.label,
        show(member.expression),
        tuple((part.label, part.text) for part in parts(member.expression)),
        words(member.expression),
        text(certain(meaning.conditions).predicate),
        dynamic,
        Cost(head_dim, keys_per_query(meaning, n, member.head), n * n),
        runtime_inputs(meaning),
    )


def words(expression: Expression) -> tuple[Word, ...]:
    """Every primitive of a closed expression, in order of appearance."""
    found: dict[str, Word] = {}
    for node in _primitives(expression):
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


def _primitives(expression: Expression) -> list[Expression]:
    """The primitives that an expression joins; the names inside their arguments are not among them."""
    if isinstance(expression, Name | Call):
        return [expression]
    found: list[Expression] = []

    def below(child: Expression) -> Expression:
        found.extend(_primitives(child))
        return child

    map_children(expression, below)
    return found


def _word(shown: str, name: str, result: Result) -> Word:
    return Word(shown, PRIMITIVES[name].summary, result if isinstance(result, str) else _edge(result))


def _edge(result: Filter | Choice) -> str:
    """The equation of what is known at run time only, and of draws."""
    match result:
        case Layout(name, block):
            return f"{name}[q // {block}, k // {block}]" if block > 1 else f"{name}[q, k]"
        case Document(name):
            return f"{name}[q] == {name}[k]"
        case Random(draws, block, seed, pool):
            row, key, space = ("q", "k", "keys") if block == 1 else (f"q // {block}", f"k // {block}", "key blocks")
            first = "the candidates" if pool is None else f"the first {pool} candidates"
            return f"{key} in draw({draws} of {first}, seed={seed}, head, {row}){_CANDIDATES.format(space)}"
        case TopK(k=k, block=block):
            key, space = ("k", "keys") if block == 1 else (f"k // {block}", "key blocks")
            scores = {"head": f"{result.name}[q]", "group": f"sum of {result.name}[q] over the heads of a group"}
            of = scores.get(result.share, f"sum of {result.name}[q] over the heads")
            first = f"; first those of {result.forced_text}" if result.forced != FALSE else ""
            return f"{key} in argtop({of}, {k}){_CANDIDATES.format(space)}{first}"


def _render_section(section: Section, *, alone: bool) -> list[RenderableType]:
    lines: list[RenderableType] = [Text()]
    if not alone:
        lines.append(Text.assemble((section.where, "bold"), ": ", section.expression))
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold cyan", overflow="fold")
    table.add_column(overflow="fold")
    for word in section.words:
        table.add_row(Text(word.text), Text.assemble(word.summary, ("\n" + word.equation, "dim")))
    lines += [_heading("words"), Padding(table, (0, 0, 0, 2))]
    if len(section.parts) > 1:
        lines.append(_heading("parts"))
        for i, (_, expression) in enumerate(section.parts):
            lines.append(Padding(Text.assemble(("\u25a0 ", colour(i)), expression), (0, 0, 0, 2)))
    lines.append(_heading("condition" if section.possible is None else "always held"))
    lines.append(_formula(section.held))
    if section.possible is not None:
        lines += [_heading("possible, for some inputs, draws or scores"), _formula(section.possible)]
    return [*lines, *_render_cost(section.cost), *_render_inputs(section.inputs)]


def verdict_table(verdicts: Sequence[Verdict], *, certificates: bool = False) -> Table:
    """Verdicts as a table: the status, the claim, and why it does not hold (or, on request, why it does)."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for verdict in verdicts:
        words = Text(verdict.claim)
        if certificates or not verdict:
            place = f"{verdict.where}: " if verdict.where else ""
            words.append(f"\n{place}{verdict.reason}", "dim" if verdict else "")
        table.add_row(Text(verdict.status, STATUS[verdict.status]), words)
    return table


def _heading(words: str) -> Text:
    return Text(words, style="bold dim")


def _formula(shown: str) -> RenderableType:
    if len(shown) > _LONG:
        shown = f"{shown[:_LONG].rsplit(' ', 1)[0]} ... ({len(shown):,} characters; --json has all of them)"
    return Padding(Text(shown), (0, 0, 0, 2))


def _render_cost(cost: Cost) -> list[RenderableType]:
    keys = cost.keys
    if keys is None:
        return [_heading("cost"), Padding(Text("not counted: the keys of a query have no closed form"), (0, 0, 0, 2))]
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    most = "" if keys.exact else "at most "
    about = "about " if keys.sampled else ""
    least = f"{keys.least:,} to {most}{keys.most:,}" if keys.least != keys.most else f"{keys.most:,}"
    table.add_row("keys per query", f"{about}{least}, {most}{keys.mean:,.1f} on average")
    table.add_row("pairs", f"{about}{most}{keys.pairs:,} of {cost.dense_pairs:,} ({most}{percent(keys.density)})")
    if cost.speedup is not None:
        table.add_row("against dense", f"{'at least ' if not keys.exact else ''}{cost.speedup:,.1f} times fewer pairs")
    forward, backward = cost.forward_flops, cost.backward_flops
    if forward is not None and backward is not None:
        both = f"{most}{engineering(forward)} forward, {most}{engineering(backward)} backward"
        table.add_row("flops", f"{both}, for a head of {cost.head_dim}")
    return [_heading(f"cost at n = {keys.n:,}"), Padding(table, (0, 0, 0, 2))]


def _render_inputs(inputs: tuple[RuntimeInput, ...]) -> list[RenderableType]:
    if not inputs:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for one in inputs:
        table.add_row(Text(one.name, style="cyan"), Text(one.shape), Text(one.what))
    return [_heading("runtime inputs"), Padding(table, (0, 0, 0, 2))]


def percent(share: float) -> str:
    """A share as a percentage with three significant digits."""
    return f"{100 * share:.3g}%"


def engineering(number: int) -> str:
    """A number of operations with a unit."""
    value = float(number)
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {unit}flop"
        value /= 1000
    return f"{value:.3g} Eflop"


def _section_json(section: Section) -> dict[str, Any]:
    cost = section.cost
    keys = None if cost.keys is None else {**asdict(cost.keys), "pairs": cost.keys.pairs, "density": cost.keys.density}
    return {
        "where": section.where,
        "expression": section.expression,
        "parts": [{"label": label, "expression": expression} for label, expression in section.parts],
        "words": [asdict(word) for word in section.words],
        "held": section.held,
        "possible": section.possible,
        "keys": keys,
        "cost": {
            "head_dim": cost.head_dim,
            "dense_pairs": cost.dense_pairs,
            "forward_flops": cost.forward_flops,
            "backward_flops": cost.backward_flops,
            "times_fewer_pairs": cost.speedup,
        },
        "inputs": [asdict(one) for one in section.inputs],
    }
