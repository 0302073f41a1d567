"""The distinct patterns that the layers, heads and branches of one pattern use, and which of them use each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from patternc.language.resolve import joined, period, select
from patternc.language.syntax import Expression
from patternc.pattern import Pattern
from patternc.terms import Meaning


@dataclass(frozen=True)
class Member:
    """One layer-and-head's pattern; ``layer`` and ``head`` are the first that use it."""

    expression: Expression
    layer: int
    head: int
    label: str

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.expression)

    @property
    def meaning(self) -> Meaning:
        return self.pattern.meaning()


def members(pattern: Pattern) -> Iterator[Member]:
    """Every distinct pattern among the layers and heads, in order of first use."""
    seen: set[Expression] = set()
    for layer_expression, layers in _groups(joined(pattern.expression), "layers"):
        for expression, heads in _groups(layer_expression, "heads"):
            if expression in seen:
                continue
            seen.add(expression)
            labels = (_label("layer", layers, pattern.layers), _label("head", heads, period(layer_expression, "heads")))
            yield Member(expression, layers[0], heads[0], ", ".join(label for label in labels if label))


def distinct_layers(pattern: Pattern) -> list[tuple[Pattern, str]]:
    """Every distinct layer, and in words which ones it is ("" where all are alike)."""
    groups = _groups(pattern.expression, "layers")
    return [
        (Pattern(one, pattern.name), _label("layer", layers, pattern.layers) if len(groups) > 1 else "")
        for one, layers in groups
    ]


def attentions(pattern: Pattern) -> list[tuple[Pattern, str]]:
    """Every attention that is a kernel of its own: a distinct layer, or a branch of it; and in words which one."""
    return [
        (one, ", ".join(word for word in (where, branch) if word))
        for layer, where in distinct_layers(pattern)
        for one, branch in by_branch(layer)
    ]


def by_branch(pattern: Pattern) -> list[tuple[Pattern, str]]:
    """Every branch, and in words which one ("" where the pattern is one attention)."""
    return [(pattern.branch(name), f"branch {name}") for name in pattern.branches] or [(pattern, "")]


def _groups(expression: Expression, mixture: str) -> list[tuple[Expression, list[int]]]:
    groups: dict[Expression, list[int]] = {}
    for index in range(period(expression, mixture)):
        groups.setdefault(select(expression, {mixture: index}), []).append(index)
    return list(groups.items())


def _label(word: str, indices: Sequence[int], repeat: int) -> str:
    if repeat == 1:
        return ""
    plural = "s" if len(indices) > 1 else ""
    return f"{word}{plural} {spans(indices)} of every {repeat}"


def spans(indices: Sequence[int]) -> str:
    """Ascending numbers as ranges: 0-4, 6, 8-9."""
    found: list[list[int]] = []
    for index in indices:
        if found and found[-1][1] == index - 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
