"""The thing a user holds: a pattern, immutable, printable as its expression, comparable by what it means."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from patternc.dense import Evaluator, check_dense, true_runs
from patternc.diagnostics import PatternError, suggest
from patternc.language.asserts import Claim, claims
from patternc.language.elaborate import meaning
from patternc.language.parser import parse_program
from patternc.language.printer import show
from patternc.language.resolve import (
    GATED,
    branches,
    joined,
    joint_variants,
    named_patterns,
    period,
    preset_definitions,
    resolve,
    select,
    variants,
)
from patternc.language.syntax import Expression
from patternc.relation import ELABORATION_BUDGET, ROW_BUDGET, BudgetExceeded, Pair, Relation, budget, nothing
from patternc.terms import Condition, Meaning, Term

if TYPE_CHECKING:
    from patternc.analysis.degrees import Degrees
    from patternc.analysis.graph import Graph
    from patternc.analysis.redundancy import Redundancy
    from patternc.analysis.universality import Criterion
    from patternc.analysis.verdict import Verdict

MAX_N = 2**31 - 1
MAX_WALK = 1 << 24


@dataclass(frozen=True)
class Inclusion:
    """The answer to "is a a subset of b": True, False with a witness, or unknown (None) with a reason."""

    holds: bool | None
    witness: Pair | None = None
    reason: str = ""

    def __bool__(self) -> bool:
        return self.holds is True


@dataclass(frozen=True)
class Pattern:
    """Which keys each query may read, for every sequence length n, head and layer.

    Two patterns are equal (`==`) when their expressions are; `equivalent` compares what they mean. Where `gated(...)` joins
    several attentions, a query may read what any of them lets it read.
    """

    expression: Expression
    name: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        with budget(ELABORATION_BUDGET):
            for one in self._distinct:
                _meaning(one)

    @cached_property
    def _distinct(self) -> list[Expression]:
        return [one for _, _, one in variants(self.expression)]

    def __str__(self) -> str:
        return show(self.expression)

    def __repr__(self) -> str:
        return f"parse({str(self)!r})"

    def _repr_html_(self) -> str:
        from patternc.report.html import pattern_card

        return pattern_card(self)

    @cached_property
    def heads(self) -> int:
        """After how many heads the pattern repeats (1: all heads alike)."""
        return period(self.expression, "heads")

    @cached_property
    def layers(self) -> int:
        """After how many layers the pattern repeats (1: all layers alike)."""
        return period(self.expression, "layers")

    @cached_property
    def branches(self) -> tuple[str, ...]:
        """The names of the attentions that `gated(...)` joins; none where the pattern is one attention."""
        return branches(self.expression)

    def branch(self, name: str) -> Pattern:
        """The pattern of one of the attentions that `gated(...)` joins.

        Raises:
            PatternError: there is no such branch.
        """
        if name not in self.branches:
            known = f"the branches are {', '.join(self.branches)}" if self.branches else "gated(...) makes branches"
            raise PatternError("unknown-branch", f"there is no branch '{name}'", None, suggest(name, self.branches) or known)
        return Pattern(select(self.expression, {GATED: self.branches.index(name)}))

    def layer(self, index: int) -> Pattern:
        """The pattern of one layer, counted from 0 at the bottom; a schedule starts again after its last layer.

        Raises:
            ValueError: a negative index.
        """
        if index < 0:
            raise ValueError(f"layer must be at least 0, the bottom layer, got {index}")
        return Pattern(select(self.expression, {"layers": index}), self.name)

    def head(self, index: int) -> Pattern:
        """The pattern of one query head.

        Raises:
            ValueError: a negative index.
        """
        if index < 0:
            raise ValueError(f"head must be at least 0, got {index}")
        return Pattern(select(self.expression, {"heads": index}), self.name)

    def meaning(self, *, head: int = 0, layer: int | None = None) -> Meaning:
        """The union of terms of one head; of `gated(...)`, what its branches read together.

        Raises:
            PatternError: the layers differ and ``layer`` is not given.
            ValueError: a negative head or layer.
        """
        for word, index in (("layer", layer or 0), ("head", head)):
            if index < 0:
                raise ValueError(f"{word} must be at least 0, got {index}")
        if layer is None and self.layers > 1:
            message = f"the layers differ (they repeat after {self.layers}), and no layer was chosen"
            raise PatternError("which-layer", message, None, "take one with pattern.layer(0), or pass layer=0")
        return _meaning(joined(select(self.expression, {"layers": layer or 0, "heads": head})))

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the runtime inputs that a call must be given, in order of appearance."""
        return tuple(dict.fromkeys(use.name for one in self._distinct for use in _meaning(one).arguments))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what decides the pairs besides n, in order of appearance: the runtime inputs, and scores.

        Scores go by the text of their scorer: given ones by the name of their runtime input, q . k as "exact".
        """
        return tuple(dict.fromkeys(use.name for one in self._distinct for use in _meaning(one).inputs))

    def mask(self, n: int, head: int = 0, *, layer: int | None = None, **inputs: Any) -> npt.NDArray[np.bool_]:
        """The dense mask of one head: an (n, n) boolean array, true where query (row) may read key (column).

        Args:
            inputs: the runtime inputs by name: block tables, document ids or cu_seqlens, scores. Where the pattern scores
                queries and keys itself: ``queries`` (heads, n, d), ``keys`` (key heads, n, d) and, unless it is d ** -0.5,
                ``scale``; or the scores, by the text of their scorer (then ``kv_heads`` too, where a group shares them).

        Raises:
            ValueError: n < 1, n over 32,768, or a runtime input is missing or of the wrong shape.
        """
        check_length(n)
        check_dense(n)
        evaluator = Evaluator(self.meaning(head=head, layer=layer), n, head, inputs)
        k = np.arange(n)[None, :]
        return np.concatenate([evaluator.holds(q[:, None], k) for q in evaluator.row_blocks()])

    def row(self, q: int, n: int, head: int = 0, *, layer: int | None = None, **inputs: Any) -> list[tuple[int, int, int]]:
        """The keys of one query as ascending runs (first, last, step); the other rows are not touched."""
        check_length(n)
        if not 0 <= q < n:
            raise ValueError(f"q = {q} is not a position of a sequence of n = {n}")
        one = self.meaning(head=head, layer=layer)
        if one.is_static:
            try:
                with budget(ROW_BUDGET):
                    return one.static.row(q, n)
            except BudgetExceeded:
                _check_walkable(n)
        evaluator = Evaluator(one, n, head, inputs)
        return list(true_runs(evaluator.holds(np.array([[q]]), np.arange(n)[None, :])[0]))

    def nnz(self, n: int, head: int = 0, *, layer: int | None = None, **inputs: Any) -> int:
        """The exact number of pairs of one head at n, each counted once."""
        check_length(n)
        return Evaluator(self.meaning(head=head, layer=layer), n, head, inputs).count()

    def is_subset(self, other: Pattern | str) -> Inclusion:
        """Whether every pair of this pattern is in ``other``, for every n, head and layer; a witness pair where not."""
        other = parse(other) if isinstance(other, str) else other
        unknown: Inclusion | None = None
        for _, _, one, its in joint_variants(self.expression, other.expression):
            a, b = _meaning(one), _meaning(its)
            answer = _included(a, b)
            if answer.holds is False:
                return answer
            if answer.holds is None and unknown is None:
                unknown = answer
        return Inclusion(True) if unknown is None else unknown

    def equivalent(self, other: Pattern | str) -> Inclusion:
        """Whether both patterns hold the same pairs, for every n, head and layer; a witness pair where not."""
        other = parse(other) if isinstance(other, str) else other
        forth, back = self.is_subset(other), other.is_subset(self)
        return min((forth, back), key=lambda a: {False: 0, None: 1, True: 2}[a.holds])

    def prove_causal(self) -> Verdict:
        """Whether no query ever reads a key after it: for every n, layer, head, runtime input, draw and score."""
        from patternc.analysis.causal import prove_causal

        return prove_causal(self)

    def prove_nonempty(self) -> Verdict:
        """Whether every query reads some key: for every n, layer, head and runtime input, and for finite scores."""
        from patternc.analysis.nonempty import prove_nonempty

        return prove_nonempty(self)

    def prove_self_loops(self) -> Verdict:
        """Whether every query reads its own position: for every n, layer, head, runtime input, draw and score."""
        from patternc.analysis.self_loops import prove_self_loops

        return prove_self_loops(self)

    def reachable(self, q: int, k: int, layers: int, n: int | None = None, **options: Any) -> Verdict:
        """Whether query q reads position k through so many stacked layers, by a path or a set that it never leaves.

        ``options`` are those of `hop_diameter` but target and residual.
        """
        from patternc.analysis.reach import reachable

        return reachable(self, q, k, layers, n, **options)

    def distance(self, q: int, k: int, n: int | None = None, **options: Any) -> Verdict:
        """The least number of stacked layers through which query q reads position k, as the verdict's value.

        ``options`` are those of `hop_diameter` but target.
        """
        from patternc.analysis.reach import distance

        return distance(self, q, k, n, **options)

    def hop_diameter(self, n: int | None = None, **options: Any) -> Verdict:
        """The least number of stacked layers that connect all that dense ones would, at n or for every n.

        ``options`` are those of `patternc.analysis.reach.hop_diameter`: target, residual, mode, start_layer, limit_seconds
        and, at one n, runtime inputs by name.
        """
        from patternc.analysis.reach import hop_diameter

        return hop_diameter(self, n, **options)

    def receptive_field(self, layers: int, q: int, n: int, **options: Any) -> tuple[tuple[int, int, int], ...]:
        """The positions that query q of the top layer reads through so many layers, as runs (first, last, step).

        ``options`` are those of `hop_diameter` but target.
        """
        from patternc.analysis.receptive_field import receptive_field

        return receptive_field(self, layers, q, n, **options)

    def field_sizes(self, layers: int, n: int, q: int | None = None, **options: Any) -> tuple[int, ...]:
        """How many positions are read through 0, 1, ..., ``layers`` layers, by query q or at most by any query.

        ``options`` are those of `hop_diameter` but target.
        """
        from patternc.analysis.receptive_field import field_sizes

        return field_sizes(self, layers, n, q, **options)

    def coverage(self, n: int | None = None, **options: Any) -> Verdict:
        """The number of layers that connects all, from whichever layer of the schedule it starts.

        ``options`` are those of `hop_diameter` but start_layer.
        """
        from patternc.analysis.coverage import coverage

        return coverage(self, n, **options)

    def hub(self, n: int | None = None) -> Verdict:
        """Whether some position is read by every query and reads every key, in every layer: then two layers connect all."""
        from patternc.analysis.hub import hub

        return hub(self, n)

    def hamiltonian_path(self, n: int | None = None) -> Verdict:
        """Whether a walk along the pairs of all layers can visit every position once."""
        from patternc.analysis.hamiltonian import hamiltonian_path

        return hamiltonian_path(self, n)

    def universality(self, n: int | None = None, *, hops: int = 2) -> tuple[Criterion, ...]:
        """Which published conditions for expressive power hold: Yun et al. 2020, BigBird's, the Sparse Transformer's."""
        from patternc.analysis.universality import universality

        return universality(self, n, hops=hops)

    def redundant_terms(self) -> Redundancy:
        """The operands of `|`, `&` and `-` that change nothing for any n, as they were written, and the rest without them."""
        from patternc.analysis.redundancy import redundant_terms

        return redundant_terms(self)

    def degrees(self, n: int, head: int = 0, *, layer: int | None = None, **inputs: Any) -> Degrees:
        """How many keys each query of one head reads at n, and how many queries read each key, with their distributions."""
        from patternc.analysis.degrees import degrees

        check_length(n)
        return degrees(self, n, head, layer=layer, **inputs)

    def spectral_gap(self, n: int, *, steps: int = 100, seed: int = 0, **options: Any) -> Verdict:
        """How well connected the pairs of one layer are at n, taken in both directions: an interval for the spectral gap.

        ``options`` are those of `patternc.analysis.spectrum.spectral_gap`: layer, symmetrise and the runtime inputs.
        """
        from patternc.analysis.spectrum import spectral_gap

        check_length(n)
        return spectral_gap(self, n, steps=steps, seed=seed, **options)

    def graph(self, n: int, head: int | None = None, *, layer: int | None = None, **inputs: Any) -> Graph:
        """The pairs of one layer at a small n as a networkx graph, with the terms and heads that hold each."""
        from patternc.analysis.graph import graph

        check_length(n)
        return graph(self, n, head, layer=layer, **inputs)

    def block_graph(self, n: int, block: int, head: int | None = None, *, layer: int | None = None, **inputs: Any) -> Graph:
        """The graph of one layer at n between blocks of positions, ready to draw: each edge with how many pairs it holds."""
        from patternc.analysis.graph import block_graph

        check_length(n)
        return block_graph(self, n, block, head, layer=layer, **inputs)


def _included(a: Meaning, b: Meaning) -> Inclusion:
    missing = a.static - b.possible
    if not missing.is_empty():
        return Inclusion(False, missing.sample())
    for term in a.terms:
        for condition in term.conditions:
            if condition.relation.is_subset(b.static):
                continue
            if not any(_covers(other, term) and condition.relation.is_subset(_under(other, condition)) for other in b.terms):
                reason = f"'{term}' depends on runtime inputs or draws, and the other side does not hold all that it may"
                return Inclusion(None, None, reason)
    return Inclusion(True)


def _covers(other: Term, term: Term) -> bool:
    """Whether what ``term`` picks is among what ``other`` holds, as far as the choices go."""
    if not other.choices:
        return True
    same = other.choices == term.choices and len(other.conditions) == len(term.conditions)
    return same and all(
        x.filters == y.filters and x.relation.equals(y.relation) for x, y in zip(other.conditions, term.conditions, strict=True)
    )


def _under(other: Term, condition: Condition) -> Relation:
    """The pairs that ``other`` holds wherever the filters of a condition do."""
    usable = (c.relation for c in other.conditions if set(c.filters) <= set(condition.filters))
    return reduce(Relation.__or__, usable, nothing())


@lru_cache(maxsize=512)
def _meaning(expression: Expression) -> Meaning:
    return meaning(expression)


def check_length(n: int) -> None:
    """Raises: ValueError: n is not a sequence length."""
    if not isinstance(n, int) or n < 1 or n > MAX_N:
        raise ValueError(f"n is a sequence length from 1 to {MAX_N:,}, got {n!r}")


def _check_walkable(n: int) -> None:
    if n > MAX_WALK:
        message = f"the keys of a row have no closed form here, and n = {n:,} is too large to test them one by one"
        raise PatternError("too-complex", message, None, f"the limit is n = {MAX_WALK:,}")


def parse(text: str, name: str = "<pattern>") -> Pattern:
    """Read a pattern: an expression, with definitions before it if you like, or the name of a preset.

    Asserts do not take part in the pattern; they must be claims, and are not checked.

    Raises:
        PatternError: with a code, the place, a caret and a hint.
    """
    program = parse_program(text, name)
    expression = resolve(program)
    claims(program)
    return Pattern(expression)


def parse_file(text: str, name: str) -> dict[str, Pattern]:
    """Every `pattern name = ...` of a `.pat` file, by name. Asserts must be claims, and are not checked."""
    program = parse_program(text, name)
    claims(program)
    return {key: Pattern(value, key) for key, value in named_patterns(program).items()}


def parse_asserts(text: str, name: str = "<pattern>") -> tuple[Claim, ...]:
    """What the `assert` lines of a program or a `.pat` file claim; `patternc.analysis.guarantees.check` decides them.

    Raises:
        PatternError: the text is no program, a line is no claim, or a pattern in one cannot be read.
    """
    found = claims(parse_program(text, name))
    for claim in found:
        for expression in (claim.subject, claim.other):
            if expression is not None:
                Pattern(expression)
    return found


def presets() -> dict[str, Pattern]:
    """The published patterns that ship with the package, by name."""
    return {name: preset(name) for name, d in preset_definitions().items() if d.keyword == "pattern"}


@lru_cache(maxsize=256)
def preset(name: str) -> Pattern:
    """One published pattern by name, such as "bigbird"."""
    known = [n for n, d in preset_definitions().items() if d.keyword == "pattern"]
    if name not in known:
        raise PatternError("unknown-name", f"unknown preset '{name}'", None, suggest(name, known))
    return Pattern(parse(name).expression, name)
