"""Words of the language that take arguments: what kinds of arguments there are, and how a word says what is wrong with one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NewType, TypeAlias

from patternc.relation import Relation
from patternc.scorers import Scorer

Size = NewType("Size", int)
"""A positive integer."""
Count = NewType("Count", int)
"""A non-negative integer."""
Input = NewType("Input", str)
"""The name of a runtime input."""
Positions: TypeAlias = tuple[tuple[int, int], ...]
"""Inclusive ranges of positions; negative ones count from the end."""
Scores: TypeAlias = Scorer
"""A scorer, or the name of a runtime input that holds scores."""


@dataclass(frozen=True)
class Static:
    """A pattern without choices and runtime inputs."""

    relation: Relation
    text: str


class BadArgument(Exception):
    """An argument of the right kind with a value that the word cannot take."""

    def __init__(self, argument: str, message: str, hint: str | None = None):
        super().__init__(message)
        self.argument, self.hint = argument, hint


@dataclass(frozen=True)
class Word:
    """A word of the language that stands for what a function builds."""

    name: str
    build: Callable[..., Any]
    example: str

    @property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.build)

    @property
    def summary(self) -> str:
        return (self.build.__doc__ or "").strip().split("\n")[0]


def word(example: str) -> Callable[[Callable[..., Any]], Word]:
    """Make a function a word."""
    return lambda build: Word(build.__name__, build, example)
