"""For tests of what is built on patterns: random patterns, and masks computed without the compiler.

`patterns` draws expressions of the language for property tests (it needs hypothesis), `random_inputs` makes up the
runtime inputs that a pattern needs, and `oracle_mask` computes a mask from the syntax alone: primitives by their
plain-Python oracles, conditions by Python's own arithmetic, draws and selections by loops over sets. It shares the parser
with the compiler, and nothing after it.

With torch, `random_call` makes up the tensors of a call, and `assert_matches_dense` compares compiled attention with dense
attention under the masks of `dense_mask`.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.language.primitives import PRIMITIVES
from patternc.language.resolve import select
from patternc.language.scoring import SCORERS
from patternc.language.syntax import Call, Chain, Expression, Integer, List, Name, Range, Unary
from patternc.pattern import Pattern, parse
from patternc.scorers import ScoreInput
from patternc.terms import Document, Layout, TopK

if TYPE_CHECKING:
    import torch
    from hypothesis.strategies import DrawFn, SearchStrategy
    from torch import Tensor

    from patternc.runtime.attention import Attention

Bools: TypeAlias = npt.NDArray[np.bool_]

_TABLE, _IDS, _SCORES, _BLOCK_SCORES = "table", "ids", "scores", "block_scores"


# Random expressions


def patterns(max_depth: int = 4, choices: bool = False, inputs: bool = False) -> SearchStrategy[str]:
    """Expressions of the language, as text, for hypothesis.

    Args:
        max_depth: how deep the operators nest.
        choices: draw `random` too, and with ``inputs`` also `topk`.
        inputs: draw `layout` and `document` too; `random_inputs` makes up what they need.
    """
    from hypothesis import strategies as st

    @st.composite
    def expressions(draw: DrawFn) -> str:
        return _Draw(draw, inputs).pattern(draw(st.integers(0, max_depth)), choices)

    return expressions()


class _Draw:
    """One random expression. Sizes and divisors are small, so that small n show every case and exact sets stay simple."""

    def __init__(self, draw: DrawFn, inputs: bool):
        self._draw, self._inputs = draw, inputs

    def _number(self, low: int, high: int) -> int:
        from hypothesis import strategies as st

        return self._draw(st.integers(low, high))

    def _one(self, *options: Any) -> Any:
        from hypothesis import strategies as st

        return self._draw(st.sampled_from(options))

    def pattern(self, depth: int, choices: bool) -> str:
        if depth == 0:
            return self._leaf(choices)
        match self._one("leaf", "|", "|", "&", "&", "-", "~"):
            case "leaf":
                return self._leaf(choices)
            case "~":
                return f"~{self._operand(depth - 1, False)}"
            case "-":
                return f"{self._operand(depth - 1, choices)} - {self._operand(depth - 1, False)}"
            case joined:
                return f" {joined} ".join(self._operand(depth - 1, choices) for _ in range(self._one(2, 2, 3)))

    def _operand(self, depth: int, choices: bool) -> str:
        text = self.pattern(depth, choices)
        return f"({text})" if " " in text or text.startswith("~") else text

    def _leaf(self, choices: bool) -> str:
        kinds = ["word", "window", "size", "blocks", "summary", "list", "where", *(["input"] if self._inputs else [])]
        match self._one(*kinds, *(["choice"] if choices else [])):
            case "word":
                return str(self._one("full", "none", "self", "causal"))
            case "window":
                return self._window()
            case "size":
                return f"{self._one('local', 'stride', 'chunk', 'sinks')}({self._number(1, 9)})"
            case "blocks":
                return f"blocks({self._number(1, 6)}, {self._number(0, 2)}, {self._number(0, 2)})"
            case "summary":
                period = self._number(1, 8)
                columns = self._number(1, period)
                slot = self._number(0, period // columns - 1)
                return f"summary({period}, {columns}{f', slot={slot}' if slot else ''})"
            case "list":
                items = ", ".join(self._item() for _ in range(self._number(1, 3)))
                return f"{self._one('rows', 'columns', 'global')}([{items}])"
            case "where":
                return f"where({self._condition(self._number(0, 2))})"
            case "input":
                return str(self._one(f"document({_IDS})", f"layout({_TABLE}2, 2)", f"layout({_TABLE}5, 5)"))
        return self._choice()

    def _window(self) -> str:
        dilation = self._one("", "", f", dilation={self._number(1, 4)}")
        if self._one(True, False):
            return f"window({self._number(1, 9)}{dilation})"
        return f"window(left={self._number(0, 9)}, right={self._number(0, 9)}{dilation})"

    def _item(self) -> str:
        match self._one("one", "range", "negative", "from the end", "across"):
            case "one":
                return str(self._number(-9, 9))
            case "range":
                first = self._number(0, 9)
                return f"{first}..{first + self._number(0, 6)}"
            case "negative":
                return str(-self._number(1, 9))
            case "from the end":
                last = -self._number(1, 9)
                return f"{last - self._number(0, 6)}..{last}"
        return f"{self._number(0, 9)}..-{self._number(1, 9)}"

    def _condition(self, depth: int) -> str:
        if depth == 0:
            parts = [self._value() for _ in range(self._one(2, 2, 3))]
            signs = [self._one("<", "<=", "==", "!=", ">", ">=") for _ in parts[1:]]
            return parts[0] + "".join(f" {sign} {part}" for sign, part in zip(signs, parts[1:], strict=True))
        match self._one("and", "or", "not"):
            case "not":
                return f"not ({self._condition(depth - 1)})"
            case word:
                return f"({self._condition(depth - 1)}) {word} ({self._condition(depth - 1)})"

    def _value(self) -> str:
        linear = f"{self._number(-2, 3)}*q {self._one('+', '-')} {self._one('k', 'k*2', 'n', '0')} + {self._number(-9, 9)}"
        plain = self._one("q", "k", "q - k", "k - q", "n - 1 - k", str(self._number(-3, 12)))
        divided = f"({self._one(plain, linear)}) {self._one('%', '//')} {self._number(1, 5)}"
        return str(self._one(plain, plain, linear, divided, f"-({plain})"))

    def _choice(self) -> str:
        block = self._one(1, 1, 2, 3)
        suffix = f", block={block}" if block > 1 else ""
        if not self._inputs or self._one(True, False):
            seed = self._one("", f", seed={self._number(1, 99)}")
            pool = self._one("", f", pool={self._number(1, 9)}")
            return f"random({self._number(1, 4)}{suffix}{seed}{pool})"
        if block > 1:
            name = self._one(
                _SCORES, f"{_BLOCK_SCORES}{block}", f"{_BLOCK_SCORES}{block}", f"meanpool({block})", f"maxpool(exact, {block})"
            )
        else:
            name = self._one(_SCORES, _SCORES, "exact", "indexer(heads=2, dim=4)")
        share = self._one("", "", ", share=query")
        force = self._one("", "", "", ", force=self", ", force=sinks(2)", ", force=window(3) - sinks(1)")
        return f"topk({name}, {self._number(1, 4)}{suffix}{share}{force})"


def random_inputs(pattern: Pattern | str, n: int, *, heads: int = 1, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Made-up runtime inputs for a sequence of n: tables (heads, blocks, blocks), ids (n), scores with ties and -inf.

    Scores go by the text of their scorer, also those that a pattern makes itself of queries and keys. They are (heads, n, n),
    one score a key, unless the text ends in its block size, as in ``block_scores2``; then they are
    (heads, n, ceil(n / block)), one score a key block.
    """
    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    generator = np.random.default_rng([seed, n])
    found: dict[str, npt.NDArray[Any]] = {}
    for call in _calls(pattern.expression):
        bound = _arguments(call) if call.function in ("document", "layout", "topk") else {}
        match call.function:
            case "document":
                found[bound["ids"]] = np.cumsum(generator.random(n) < 0.2)
            case "layout":
                side = -(-n // bound["block"])
                found[bound["name"]] = generator.random((heads, side, side)) < 0.5
            case "topk":
                name, block = bound["scorer"], bound.get("block", 1)
                width = -(-n // block) if name.endswith(str(block)) else n
                scores = generator.integers(0, 8, (heads, n, width)).astype(np.float64)
                scores[generator.random(scores.shape) < 0.1] = -np.inf
                found[name] = scores
    return found


def _calls(node: Expression) -> list[Call]:
    match node:
        case Call(_, arguments, keywords):
            below = [*arguments, *(keyword.value for keyword in keywords if keyword.value is not None)]
            return [node, *(call for one in below for call in _calls(one))]
        case Unary(_, operand):
            return _calls(operand)
        case Chain(operands):
            return [call for operand in operands for call in _calls(operand)]
    return []


# Masks from the syntax alone


@dataclass(frozen=True)
class _Set:
    """A set without choices: its pairs, and those that it and its complement could hold, whatever the runtime inputs."""

    pairs: Bools
    may: Bools
    may_not: Bools

    def __and__(self, other: _Set) -> _Set:
        return _Set(self.pairs & other.pairs, self.may & other.may, self.may_not | other.may_not)

    def __or__(self, other: _Set) -> _Set:
        return _Set(self.pairs | other.pairs, self.may | other.may, self.may_not & other.may_not)

    def __invert__(self) -> _Set:
        return _Set(~self.pairs, self.may_not, self.may)


@dataclass(frozen=True)
class _Pick:
    """What ``choices`` pick from a set: (name of the primitive, its arguments), each choice once."""

    source: _Set
    choices: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]


@dataclass(frozen=True)
class _Union:
    """One set (None: no set at all), and picks."""

    base: _Set | None
    picks: tuple[_Pick, ...] = field(default=())

    def __or__(self, other: _Union) -> _Union:
        both = [one.base for one in (self, other) if one.base is not None]
        return _Union(reduce(operator.or_, both) if both else None, self.picks + other.picks)

    def __and__(self, other: _Union) -> _Union:
        base = None if self.base is None or other.base is None else self.base & other.base
        picks = [
            _Pick(a.source & b.source, tuple(dict.fromkeys(a.choices + b.choices))) for a in self.picks for b in other.picks
        ]
        for one, choosing in ((self, other), (other, self)):
            if one.base is not None:
                picks += [_Pick(pick.source & one.base, pick.choices) for pick in choosing.picks]
        return _Union(base, tuple(picks))

    def __invert__(self) -> _Union:
        if self.picks or self.base is None:
            raise ValueError("a choice has no complement")
        return _Union(~self.base)


def oracle_mask(pattern: Pattern | str, n: int, head: int = 0, layer: int | None = None, **inputs: Any) -> Bools:
    """The dense (n, n) mask of one head, from the definitions and slowly: what every other way to compute it must equal.

    Args:
        pattern: a pattern or its text.
        inputs: the runtime inputs by name, as for `Pattern.mask`.
    """
    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    grid = _Grid(n, head, inputs)
    held = grid.union(select(pattern.expression, {"layers": layer or 0, "heads": head}))
    mask = np.zeros((n, n), bool) if held.base is None else held.base.pairs.copy()
    for pick in held.picks:
        mask |= grid.picked(pick)
    return mask


class _Grid:
    """All (q, k) of a sequence of n."""

    def __init__(self, n: int, head: int, inputs: Mapping[str, Any]):
        self._n, self._head, self._inputs = n, head, inputs
        self._q, self._k = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")

    def union(self, node: Expression) -> _Union:
        match node:
            case Name(name, span):
                return self.union(Call(name, (), (), span))
            case Call("where", (condition,)):
                return self._static(np.broadcast_to(self._evaluate(condition), (self._n, self._n)).astype(bool))
            case Call("document"):
                return self._known_later(self._same_document(_arguments(node)["ids"]))
            case Call("layout"):
                return self._known_later(self._table(**_arguments(node)))
            case Call(("random" | "topk") as name):
                everywhere = self._static(np.ones((self._n, self._n), bool)).base
                assert everywhere is not None
                return _Union(None, (_Pick(everywhere, ((name, _options(node)),)),))
            case Call("gated", _, keywords):
                return reduce(operator.or_, [self.union(keyword.value) for keyword in keywords if keyword.value is not None])
            case Call(function):
                oracle = PRIMITIVES[function].oracle
                assert oracle is not None, f"'{function}' has no oracle"
                return self._static(oracle(self._q, self._k, self._n, **_arguments(node)))
            case Unary("~", operand):
                return ~self.union(operand)
            case Chain(operands, ("-", *_)):
                first, *rest = (self.union(operand) for operand in operands)
                return reduce(lambda left, right: left & ~right, rest, first)
            case Chain(operands, (("|" | "&") as joined, *_)):
                join = operator.or_ if joined == "|" else operator.and_
                return reduce(join, [self.union(operand) for operand in operands])
        raise ValueError(f"not a pattern: {node}")

    def _static(self, pairs: Bools) -> _Union:
        return _Union(_Set(pairs, pairs, ~pairs))

    def _known_later(self, pairs: Bools) -> _Union:
        either = np.ones_like(pairs)
        return _Union(_Set(pairs, either, either))

    def _evaluate(self, node: Expression) -> Any:
        match node:
            case Integer(value):
                return value
            case Name(name):
                return {"q": self._q, "k": self._k, "n": self._n, "true": True, "false": False}[name]
            case Unary("-", operand):
                return -self._evaluate(operand)
            case Unary("not", operand):
                return np.logical_not(self._evaluate(operand))
            case Chain(operands, operators):
                values = [self._evaluate(operand) for operand in operands]
                if operators[0] in _COMPARE:
                    pairs = zip(operators, values, values[1:], strict=False)
                    return reduce(np.logical_and, [_COMPARE[sign](a, b) for sign, a, b in pairs])
                total = values[0]
                for sign, value in zip(operators, values[1:], strict=True):
                    total = _CALCULATE[sign](total, value)
                return total
        raise ValueError(f"not a condition: {node}")

    def _same_document(self, ids: str) -> Bools:
        given = np.asarray(self._inputs[ids])
        first = given.reshape(-1, given.shape[-1])[0].tolist()
        if len(first) != self._n:  # cumulative lengths: a position's document is the last one that starts at or before it
            first = [sum(1 for start in first if start <= position) for position in range(self._n)]
        return np.array([[a == b for b in first] for a in first])

    def _table(self, name: str, block: int) -> Bools:
        table = self._of_head(name)
        return np.array([[bool(table[q // block, k // block]) for k in range(self._n)] for q in range(self._n)])

    def _of_head(self, name: str) -> npt.NDArray[Any]:
        given = np.asarray(self._inputs[name])
        while given.ndim > 3:
            given = given[0]
        return given if given.ndim == 2 else given[self._head % given.shape[0]]

    def picked(self, pick: _Pick) -> Bools:
        """The pairs that all choices pick: draws first, then selections among what was drawn."""
        held = pick.source.pairs
        for name, options in pick.choices:
            if name == "random":
                held = held & self._drawn(pick.source.may, **dict(options))
        selected = [self._selected(held, **dict(options)) for name, options in pick.choices if name == "topk"]
        return reduce(operator.and_, selected, held)

    def _drawn(self, may: Bools, r: int, block: int = 1, seed: int = 0, pool: int | None = None) -> Bools:
        found = np.zeros_like(may)
        for row in range(-(-self._n // block)):
            queries = slice(row * block, (row + 1) * block)
            blocks = sorted({int(k) // block for k in np.flatnonzero(may[queries].any(0))})[:pool]
            for index in _floyd(r, len(blocks), seed, self._head, row):
                found[queries, blocks[index] * block : (blocks[index] + 1) * block] = True
        return found

    def _selected(self, allowed: Bools, scorer: str, k: int, block: int = 1, share: str = "head", force: Any = None) -> Bools:
        given = self._of_head(scorer)
        if share != "head":  # of tables, all heads are one group
            given = sum(np.asarray(self._inputs[scorer]).reshape(-1, *given.shape))
        forced = np.zeros_like(allowed)
        if isinstance(force, Call | Name | Unary | Chain):
            base = self.union(force).base
            forced = forced if base is None else base.pairs
        found = np.zeros_like(allowed)
        for q in range(self._n):
            best: list[tuple[int, float, int]] = []
            for first in range(0, self._n, block):
                keys = [key for key in range(first, min(self._n, first + block)) if allowed[q, key]]
                values = [float(given[q, key if given.shape[-1] == self._n else first // block]) for key in keys]
                values = [value for value in values if value > -np.inf]  # not of NaN either
                if keys and forced[q, first : first + block].any():
                    best.append((0, 0, first))
                    found[q, first : first + block] = allowed[q, first : first + block]
                elif values:
                    best.append((1, -max(values), first))
            for _, _, first in sorted(best)[:k]:
                found[q, first : first + block] = allowed[q, first : first + block]
        return found


_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_CALCULATE: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
    "and": np.logical_and, "or": np.logical_or,
}  # fmt: skip


def _floyd(draws: int, count: int, seed: int, head: int, row: int) -> set[int]:
    """``draws`` distinct numbers below ``count`` (all of them where there are no more), by R. W. Floyd's method."""
    if count <= draws:
        return set(range(count))
    picked: set[int] = set()
    for i in range(draws):
        last = count - draws + i
        number = _hash(seed, head, row, i) * (last + 1) >> 32
        picked.add(last if number in picked else number)
    return picked


def _hash(seed: int, *counters: int) -> int:
    state = 0
    for number in (seed + 0x9E3779B9, *counters):
        state = (state + number) % 2**32
        state ^= state >> 16
        state = state * 0x7FEB352D % 2**32
        state ^= state >> 15
        state = state * 0x846CA68B % 2**32
        state ^= state >> 16
    return state


def _options(call: Call) -> tuple[tuple[str, Any], ...]:
    """The arguments of a choice with its defaults, so that two ways to write it are one choice."""
    parameters = inspect.signature(PRIMITIVES[call.function].build).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return tuple(sorted({**defaults, **_arguments(call)}.items()))


def _arguments(call: Call) -> dict[str, Any]:
    names = inspect.signature(PRIMITIVES[call.function].build).parameters
    given = [*zip(names, call.arguments, strict=False), *((keyword.name, keyword.value) for keyword in call.keywords)]
    kept = {name: node for name, node in given if node is not None}
    return {name: _of_parameter(name, node) for name, node in kept.items()}


def _of_parameter(name: str, node: Expression) -> Any:
    return node if name == "force" else _scorer(node) if name == "scorer" else _argument(node)


def _scorer(node: Expression) -> str:
    """The text under which the scores are."""
    function = node.function if isinstance(node, Call) else node.name if isinstance(node, Name) else ""
    if function not in SCORERS or node == Name("indexer", node.span):
        return str(_argument(node))
    return str(_built(node))


def _built(node: Expression) -> Any:
    match node:
        case Name(name, span) if name in SCORERS:
            return _built(Call(name, (), (), span))
        case Call(function, arguments, keywords) if function in SCORERS:
            named = {keyword.name: _built(keyword.value) for keyword in keywords if keyword.value}
            return SCORERS[function].build(*map(_built, arguments), **named)
    return _argument(node)


def _argument(node: Expression) -> Any:
    match node:
        case Integer(value):
            return value
        case Name("all"):
            return None
        case Name(name):
            return name
        case Unary("-", operand):
            return -_argument(operand)
        case List(items):
            return tuple(
                (_argument(i.first), _argument(i.last)) if isinstance(i, Range) else (_argument(i),) * 2 for i in items
            )
        case Chain(operands, operators):
            total, *rest = (_argument(operand) for operand in operands)
            for sign, value in zip(operators, rest, strict=True):
                total = _CALCULATE[sign](total, value)
            return total
    raise ValueError(f"not an argument: {node}")


# Calls with tensors (torch is imported when they are made)


@dataclass(frozen=True)
class Example:
    """Tensors for one call."""

    q: Tensor
    k: Tensor
    v: Tensor
    inputs: dict[str, Tensor]


def random_call(
    pattern: Pattern | str,
    *,
    n: int,
    n_q: int | None = None,
    batch: int = 1,
    heads: int = 1,
    kv_heads: int | None = None,
    head_dim: int = 16,
    value_dim: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
) -> Example:
    """Made-up queries, keys, values and runtime inputs (those of `random_inputs`, different in every batch and head).

    Where the pattern computes scores, what they are computed from are multiples of 1/8: sums of products are then exact in
    float32, and no backend's order of adding them decides what is picked.
    """
    import torch

    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    generator = torch.Generator().manual_seed(seed)
    n_q = n if n_q is None else n_q
    kv_heads = heads if kv_heads is None else kv_heads

    def normal(*shape: int, exact: bool = False) -> Tensor:
        drawn = torch.randn(*shape, generator=generator)
        return (torch.round(8 * drawn) / 8 if exact else drawn).to(device, getattr(torch, dtype))

    tensors: dict[str, Tensor] = {}
    made = [random_inputs(pattern, n, heads=heads, seed=seed * batch + b) for b in range(batch)]
    uses = {use.name: use for head in range(pattern.heads) for use in pattern.meaning(head=head).arguments}
    every = [use for head in range(pattern.heads) for use in pattern.meaning(head=head).inputs]
    scored = any(isinstance(use, TopK) and use.name not in uses for use in every)
    for use in uses.values():
        if use.name in made[0]:
            stacked = torch.from_numpy(np.stack([one[use.name] for one in made]))
            if stacked.is_floating_point():  # scores have a row for each query, not for each position
                stacked = stacked[:, :, n - n_q :].float()
            tensors[use.name] = stacked.to(device)
        elif isinstance(use, ScoreInput):
            tensors[use.name] = normal(*use.sizes(batch, heads, kv_heads, n_q, n, head_dim), exact=True)
    q = normal(batch, heads, n_q, head_dim, exact=scored)
    k = normal(batch, kv_heads, n, head_dim, exact=scored)
    return Example(q, k, normal(batch, kv_heads, n, value_dim or head_dim), tensors)


def dense_mask(
    pattern: Pattern | str,
    heads: int,
    n_q: int,
    n: int,
    *,
    batch: int = 1,
    q: Tensor | None = None,
    k: Tensor | None = None,
    scale: float | None = None,
    **inputs: Any,
) -> Tensor:
    """Every batch's and head's mask by `Pattern.mask`, for runtime inputs as a call takes them: bool (batch, heads, n_q, n).

    ``q`` and ``k`` are needed where the pattern scores them, ``k`` also where the heads of a group share given scores.
    """
    import torch

    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    uses = {use.name: use for head in range(pattern.heads) for use in pattern.meaning(head=head).inputs}
    arguments = [use for head in range(pattern.heads) for use in pattern.meaning(head=head).arguments]
    given = {use.name: _rows(inputs[use.name], n_q) for use in arguments}
    found = torch.zeros(batch, heads, n_q, n, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            one: dict[str, Any] = {}
            for name, use in uses.items():
                if name in given:
                    one[name] = _of_pair(use, given[name].detach().cpu(), b, h, heads, n)
                elif isinstance(use, TopK):
                    for own in use.scorer.inputs:
                        whole = own.sizes(1, heads, k.shape[1] if k is not None else heads, n, n, 1)
                        one[own.name] = _padded(given[own.name], b, whole)
            if q is not None:
                one["queries"] = _padded(q, b, (1, heads, n))[0]
            if k is not None:
                one["keys"] = k[b].detach().cpu().double().numpy()
            if scale is not None:
                one["scale"] = scale
            found[b, h] = torch.from_numpy(pattern.mask(n, h, **one)[n - n_q :])
    return found


def _rows(given: Any, n_q: int) -> Tensor:
    """All rows of a runtime input that may be a callable."""
    rows: Tensor = given(0, n_q) if callable(given) else given
    return rows


def _padded(given: Tensor, batch: int, whole: tuple[int, ...]) -> npt.NDArray[Any]:
    """One batch (1, ...), with zeros in front up to a whole shape: for the queries before the first one that there is."""
    one = given[batch % len(given)][None].detach().cpu().double().numpy()
    before = [(max(0, size - had), 0) for size, had in zip(whole, one.shape, strict=False)]
    return np.pad(one, before + [(0, 0)] * (one.ndim - len(before)))


def _of_pair(use: Layout | Document | TopK, given: Tensor, batch: int, head: int, heads: int, n: int) -> npt.NDArray[Any]:
    """What one batch and head sees of a runtime input."""
    match use:
        case Document():
            return (given if given.dim() == 1 else given[batch % len(given)]).numpy()
        case Layout():
            whole = given[(None,) * (4 - given.dim())]
            return whole[batch % whole.shape[0], head % whole.shape[1]].numpy()
        case TopK():
            own = given[batch % given.shape[0]].repeat_interleave(heads // given.shape[1], 0)
            rows = (own if use.share != "head" else own[head]).float().numpy()
            return np.concatenate([np.zeros((*rows.shape[:-2], n - rows.shape[-2], rows.shape[-1])), rows], -2)


def assert_matches_dense(
    attention: Attention | Pattern | str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    backend: str | None = None,
    scale: float | None = None,
    grads: bool = True,
    **inputs: Any,
) -> None:
    """Compare compiled attention with dense attention under the pattern's mask: output, log-sum-exp and gradients.

    The tolerance is FlashAttention's: at most twice the error that dense attention in the call's own dtype makes, plus
    what rounding to that dtype costs, and a few ulps. Queries without keys and keys without queries
    must give exact zeros (log-sum-exp: -inf). Arguments are as for a call of `Attention`.

    Raises:
        AssertionError: which result differs, where, and by how much.
    """
    import torch

    from patternc.runtime.attention import Attention as Compiled
    from patternc.runtime.entry import compile as compile_

    if not isinstance(attention, Compiled):
        attention = compile_(attention, backend=backend)
    elif backend is not None:
        attention = Compiled(attention.pattern, backend, attention.bound)
    batch, heads, n_q, _ = q.shape
    n, kv_heads = k.shape[2], k.shape[1]
    given = {**attention.bound, **inputs}
    mask = dense_mask(attention.pattern, heads, n_q, n, batch=batch, q=q, k=k, scale=scale, **given).to(q.device)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(*shape, generator=generator).to(q.device) for shape in ((*q.shape[:3], v.shape[3]), q.shape[:3])]

    def results(run: Callable[..., Any], dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = [t.detach().to(dtype).requires_grad_(grads) for t in (q, k, v)]
        out, lse = run(*leaves)
        found = {"out": out, "lse": lse}
        if grads:
            flat = torch.autograd.grad((out, lse), leaves, [g.to(t.dtype) for g, t in zip(upstream, (out, lse), strict=True)])
            found |= dict(zip(("grad of q", "grad of k", "grad of v"), flat, strict=True))
        return {name: t.detach() for name, t in found.items()}

    def dense(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        some = mask.any(-1, keepdim=True)
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = scores.masked_fill(~mask & some, -torch.inf)
        weights = torch.softmax(scores, -1).masked_fill(~some, 0)
        return weights @ v, torch.logsumexp(scores, -1).masked_fill(~some[..., 0], -torch.inf)

    def compiled(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return attention(q, k, v, scale=scale, return_lse=True, **inputs)

    accumulator = torch.float64 if q.dtype == torch.float64 else torch.float32
    got = results(compiled, q.dtype)
    plain = results(dense, q.dtype)
    exact = results(dense, torch.float64 if q.dtype in (torch.float32, torch.float64) else torch.float32)
    read = mask.view(batch, kv_heads, heads // kv_heads * n_q, n).any(2)[..., None]
    answers = mask.any(-1, keepdim=True)
    live = {"out": answers, "lse": answers[..., 0], "grad of q": answers, "grad of k": read, "grad of v": read}
    for name, mine in got.items():
        ref = exact[name]
        wanted = accumulator if name == "lse" else q.dtype
        what = f"{name} of {attention!r} for q {tuple(q.shape)}, k {tuple(k.shape)}, {q.dtype}"
        assert (mine.dtype, mine.shape) == (wanted, ref.shape), f"{what} is {mine.dtype} {tuple(mine.shape)}"
        dead = ~live[name].expand(ref.shape)
        nothing = -torch.inf if name == "lse" else 0.0
        assert bool((mine[dead] == nothing).all()), f"{what} is not {nothing} where nothing is read"
        mine, ref, near = (t.masked_fill(dead, 0) for t in (mine, ref, plain[name]))
        rounded = ref.to(mine.dtype)
        rounding = (rounded + 0.3 - 0.3 - rounded).abs().max().item() if ref.numel() else 0.0
        ulps = 32 * torch.finfo(accumulator).eps * (1 + ref.abs().max().item()) if ref.numel() else 0.0
        if name.startswith("grad") and ref.numel():  # the backward pass starts from the output as rounded to the dtype
            ulps += torch.finfo(q.dtype).eps * ref.abs().max().item()
        allowed = 2 * (near - ref).abs().max().item() + 2 * rounding + ulps if ref.numel() else 0.0
        error = (mine - ref).abs().nan_to_num(nan=torch.inf)
        if error.numel() and error.max().item() > allowed:
            place = tuple(int(i) for i in np.unravel_index(int(error.argmax()), tuple(error.shape)))
            raise AssertionError(f"{what} is off by {error.max().item():.3g} at {place}; {allowed:.3g} is allowed")
