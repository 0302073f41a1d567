"""Scorers: what `topk` ranks keys by. One frozen object each, and nothing else asks which one it is.

A scorer says which runtime inputs it takes and yields score rows for any run of queries, so that no one ever holds all of
them. It works on numpy arrays (for masks) and on torch tensors (in kernels, into which this file is copied); ``xp`` is the
module of whichever it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeAlias

Rows: TypeAlias = Callable[[int, int], Any]
"""Of queries start to stop (counted from the first one there is) the scores: (b or 1, heads, rows, n or key blocks)."""


LOG_SUM_EXPS = "log-sum-exps"
"""What a runtime input holds that another attention can leave."""


class Unfit(Exception):
    """A scorer cannot score blocks of the size that was asked for."""

    def __init__(self, message: str, hint: str):
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class ScoreInput:
    """A runtime input of a scorer: its name, what it holds, and its shape in words. Equal uses of a name can share it."""

    name: str
    what: str
    shape: str
    sizes: Callable[..., tuple[int, ...]] = field(compare=False, repr=False)
    """The whole shape for a batch, query heads, key heads, n_q, n and head_dim."""

    @property
    def shape_key(self) -> str:
        """What the shape of the runtime input depends on."""
        return f"{self.what} {self.shape}"

    def __str__(self) -> str:
        return f"{self.name}: {self.what} {self.shape}"


@dataclass(frozen=True)
class Sight:
    """What a scorer may look at: queries (b, h, n_q, d), the last positions; keys (b, h_kv, n, d); and the runtime inputs."""

    xp: Any
    queries: Any
    keys: Any
    scale: float
    inputs: Mapping[str, Any]
    last: int | None = None
    """The position of the first query, where no query is asked for scores of keys after its own position."""
    together: bool = False
    """Whether all query heads of a key head pick alike, so that the sum of their scores is all that is asked for."""

    def rows(self, start: int, stop: int) -> Any:
        """Queries start to stop, in the precision of scores."""
        return wide(self.queries[:, :, start:stop])

    def given(self, name: str, given: Any, *shape: int) -> Any:
        """The runtime input ``name`` after a look at its type, device and shape; the first axis, the batch, may be 1.

        Raises:
            TypeError: it is no tensor, or not floating point.
            ValueError: it is on another device, or its shape is another.
        """
        kind = self.xp.ndarray if hasattr(self.xp, "ndarray") else self.xp.Tensor
        if not isinstance(given, kind):
            raise TypeError(f"'{name}' must be a tensor, got {type(given).__name__}")
        if given.device != self.keys.device:
            raise ValueError(f"'{name}' is on {given.device} and q on {self.keys.device}; they must be on one device")
        if shape and (tuple(given.shape[1:]) != shape[1:] or given.shape[0] not in (1, shape[0])):
            raise ValueError(f"'{name}' must have shape {shape}, got {tuple(given.shape)}")
        if hasattr(given, "is_floating_point") and not given.is_floating_point():
            raise TypeError(f"'{name}' must be floating point, got {given.dtype}")
        return given


class Scorer(Protocol):
    """What `topk` needs of a scorer. Its text, as in a pattern, is ``str`` of it."""

    @property
    def span(self) -> int:
        """How many keys one score speaks for."""
        ...

    @property
    def finite(self) -> bool:
        """Whether finite tensors give finite scores. Then a context of at most k candidates needs no scores."""
        ...

    @property
    def inputs(self) -> tuple[ScoreInput, ...]:
        """The runtime inputs that a call must give."""
        ...

    def of_blocks(self, block: int) -> Self:
        """The scorer as it serves a selection of key blocks of that size.

        Raises:
            Unfit: it does not.
        """
        ...

    def axes(self, batch: int, heads: int, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """For how many batches and heads there are scores of their own."""
        ...

    def rows(self, sight: Sight) -> Rows:
        """The score rows.

        Raises:
            TypeError, ValueError: a runtime input does not fit.
        """
        ...


@dataclass(frozen=True)
class Given:
    """Scores that are given at run time, for each key or for each key block: a tensor, or a callable of (start, stop)."""

    name: str
    block: int = 1

    span = 1
    finite = False

    def __str__(self) -> str:
        return self.name

    @property
    def inputs(self) -> tuple[ScoreInput, ...]:
        width = "n" if self.block == 1 else f"ceil(n / {self.block})"
        of = "key" if self.block == 1 else f"block of {self.block} keys"
        shape = f"(batch, heads, n, {width})"
        return (ScoreInput(self.name, f"scores of each query for each {of}", shape, self._sizes),)

    def _sizes(self, batch: int, heads: int, key_heads: int, n_q: int, n: int, dim: int) -> tuple[int, ...]:  # noqa: ARG002
        return batch, heads, n_q, -(-n // self.block)

    def of_blocks(self, block: int) -> Self:
        return replace(self, block=block)

    def axes(self, batch: int, heads: int, inputs: Mapping[str, Any]) -> tuple[int, int]:
        shape = tuple(getattr(inputs[self.name], "shape", ()))
        return (shape[0], shape[1]) if len(shape) == 4 else (batch, heads)

    def rows(self, sight: Sight) -> Rows:
        given = sight.inputs[self.name]

        def rows(start: int, stop: int) -> Any:
            if hasattr(given, "shape") or not callable(given):
                found, wanted = sight.given(self.name, given), sight.queries.shape[2]
                return wide(self._checked(found, wanted, sight)[:, :, start:stop])
            return wide(self._checked(sight.given(self.name, given(start, stop)), stop - start, sight))

        return rows

    def _checked(self, rows: Any, wanted: int, sight: Sight) -> Any:
        (batch, heads), n = sight.queries.shape[:2], sight.keys.shape[2]
        shape, blocks = tuple(rows.shape), -(-n // self.block)
        fits = len(shape) == 4 and shape[0] in (1, batch) and shape[1] > 0 and heads % shape[1] == 0
        if not fits or shape[2] != wanted or shape[3] not in (n, blocks):
            width = f"{n}" if self.block == 1 else f"{n} or {blocks}"
            raise ValueError(f"'{self.name}' must have shape ({batch} or 1, {heads} or 1, {wanted}, {width}), got {shape}")
        return rows


@dataclass(frozen=True)
class Exact:
    """q . k times the scale: the attention scores themselves."""

    span = 1
    finite = True
    inputs = ()

    def __str__(self) -> str:
        return "exact"

    def of_blocks(self, block: int) -> Self:  # noqa: ARG002
        return self

    def axes(self, batch: int, heads: int, inputs: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG002
        return batch, heads

    def rows(self, sight: Sight) -> Rows:
        keys = wide(sight.keys)
        return lambda start, stop: products(sight.rows(start, stop), keys) * sight.scale


@dataclass(frozen=True)
class MeanPool:
    """q times the mean of a block's keys, times the scale."""

    block: int

    finite = True
    inputs = ()

    def __str__(self) -> str:
        return f"meanpool({self.block})"

    @property
    def span(self) -> int:
        return self.block

    def of_blocks(self, block: int) -> Self:
        check_span(self, block)
        return self

    def axes(self, batch: int, heads: int, inputs: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG002
        return batch, heads

    def rows(self, sight: Sight) -> Rows:
        means = block_means(sight.xp, wide(sight.keys), self.block)
        return lambda start, stop: products(sight.rows(start, stop), means) * sight.scale


@dataclass(frozen=True)
class MaxPool:
    """The best score of a block's keys (or smaller blocks), by another scorer; NaN counts as -inf."""

    scorer: Any
    block: int

    def __str__(self) -> str:
        return f"maxpool({self.scorer}, {self.block})"

    @property
    def span(self) -> int:
        return self.block

    @property
    def finite(self) -> bool:
        return bool(self.scorer.finite)

    @property
    def inputs(self) -> tuple[ScoreInput, ...]:
        return tuple(self.scorer.inputs)

    def of_blocks(self, block: int) -> Self:
        check_span(self, block)
        return self

    def axes(self, batch: int, heads: int, inputs: Mapping[str, Any]) -> tuple[int, int]:
        found: tuple[int, int] = self.scorer.axes(batch, heads, inputs)
        return found

    def rows(self, sight: Sight) -> Rows:
        below = self.scorer.rows(replace(sight, last=None))  # a block's best score may be that of a later key
        return lambda start, stop: block_maxima(sight.xp, below(start, stop), self.block // self.scorer.span)


@dataclass(frozen=True)
class Indexer:
    """sum over heads j of w_j relu(q_j . k): the lightning indexer of DeepSeek Sparse Attention."""

    heads: int
    dim: int
    name: str

    span = 1
    finite = True

    def __str__(self) -> str:
        name = "" if self.name == "indexer" else f", name={self.name}"
        return f"indexer(heads={self.heads}, dim={self.dim}{name})"

    @property
    def inputs(self) -> tuple[ScoreInput, ...]:
        h, d = self.heads, self.dim
        return (
            ScoreInput(f"{self.name}_q", "the indexer's queries", f"(batch, {h}, n, {d})", lambda b, *at: (b, h, at[2], d)),
            ScoreInput(f"{self.name}_k", "the indexer's keys", f"(batch, 1, n, {d})", lambda b, *at: (b, 1, at[3], d)),
            ScoreInput(f"{self.name}_w", "the weights of its heads", f"(batch, {h}, n)", lambda b, *at: (b, h, at[2])),
        )

    def of_blocks(self, block: int) -> Self:  # noqa: ARG002
        return self

    def axes(self, batch: int, heads: int, inputs: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG002
        own = all(len(inputs[use.name].shape) and inputs[use.name].shape[0] == 1 for use in self.inputs)
        return 1 if own else batch, 1

    def rows(self, sight: Sight) -> Rows:
        (batch, _, n_q, _), n = sight.queries.shape, sight.keys.shape[2]
        shapes = (batch, self.heads, n_q, self.dim), (batch, 1, n, self.dim), (batch, self.heads, n_q)
        names = [use.name for use in self.inputs]
        q, k, w = (sight.given(name, sight.inputs[name], *shape) for name, shape in zip(names, shapes))  # noqa: B905
        last = sight.last

        def rows(start: int, stop: int) -> Any:
            return indexed(q[:, :, start:stop], k, w[:, :, start:stop], None if last is None else last + start)

        return rows


@dataclass(frozen=True)
class Compressed:
    """How much attention a key block gets from a query that attends to compressed keys: NSA's importance.

    A compressed key stands for ``length`` keys, every ``stride`` of them; it is their mean, or given under ``keys``. The
    log-sum-exp of that attention is computed, or given under ``lse`` by whoever attends to the compressed keys anyway.
    """

    length: int
    stride: int
    keys: str | None
    lse: str | None = None
    block: int = 0

    finite = True

    def __str__(self) -> str:
        named = "".join(f", {what}={name}" for what, name in (("keys", self.keys), ("lse", self.lse)) if name is not None)
        return f"compressed({self.length}, {self.stride}{named})"

    @property
    def span(self) -> int:
        return self.block

    @property
    def inputs(self) -> tuple[ScoreInput, ...]:
        found: tuple[ScoreInput, ...] = ()
        if self.keys is not None:
            shape = f"(batch, key heads, (n - {self.length}) // {self.stride} + 1, head_dim)"
            found += (ScoreInput(self.keys, "compressed keys", shape, lambda b, _, s, __, n, d: (b, s, self._count(n), d)),)
        if self.lse is not None:
            found += (ScoreInput(self.lse, LOG_SUM_EXPS, "(batch, heads, n_q)", lambda b, h, _, rows, *__: (b, h, rows)),)
        return found

    def _count(self, n: int) -> int:
        """How many compressed keys there are."""
        return max(0, (n - self.length) // self.stride + 1)

    def of_blocks(self, block: int) -> Self:
        if block % self.stride:
            message = f"'{self}' steps by {self.stride} keys, which does not divide blocks of {block}"
            raise Unfit(message, f"as in block={4 * self.stride}")
        return replace(self, block=block)

    def axes(self, batch: int, heads: int, inputs: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG002
        return batch, heads

    def rows(self, sight: Sight) -> Rows:
        (batch, shared, n, dim), n_q = sight.keys.shape, sight.queries.shape[2]
        count, apart = self._count(n), self.length // self.stride
        if self.keys is None:
            units = block_means(sight.xp, wide(sight.keys)[:, :, : n // self.stride * self.stride], self.stride)
            keys: Any = sum(units[:, :, i : i + count] for i in range(apart)) / apart
        else:
            keys = sight.given(self.keys, sight.inputs[self.keys], batch, shared, count, dim)
        lse = None
        if self.lse is not None:
            lse = sight.given(self.lse, sight.inputs[self.lse], batch, sight.queries.shape[1], n_q)
        sizes = self.length, self.stride, self.block, -(-n // self.block)

        def rows(start: int, stop: int) -> Any:
            queries, given = sight.queries[:, :, start:stop], None if lse is None else wide(lse[:, :, start:stop])
            return importance(sight.xp, queries, keys, sight.scale, n - n_q + start, sizes, sight.together, given)

        return rows


def check_span(scorer: Scorer, block: int) -> None:
    """Refuse to select other blocks than those that are scored."""
    if block != scorer.span:
        message = f"'{scorer}' scores blocks of {scorer.span} keys, and blocks of {block} are selected"
        raise Unfit(message, f"write block={scorer.span}")


def wide(x: Any) -> Any:
    """In the precision of scores: float32, or float64 if they are float64."""
    return x if str(x.dtype).endswith("float64") else x.float()


def products(q: Any, k: Any) -> Any:
    """q . k for q (b, h, rows, d) and k (b, h_kv, keys, d), where h / h_kv query heads share a key head."""
    batch, heads, rows, dim = q.shape
    shared = k.shape[1]
    grouped = q.reshape(batch, shared, heads // shared * rows, dim) @ k.swapaxes(-1, -2)
    return grouped.reshape(batch, heads, rows, k.shape[2])


def block_means(xp: Any, x: Any, block: int) -> Any:
    """The means of every ``block`` rows of (..., n, d); the last block may have fewer."""
    whole, n = x.shape[-2] // block, x.shape[-2]
    means = x[..., : whole * block, :].reshape(*x.shape[:-2], whole, block, x.shape[-1]).mean(-2)
    return means if whole * block == n else xp.concatenate([means, x[..., whole * block :, :].mean(-2)[..., None, :]], -2)


def block_maxima(xp: Any, x: Any, block: int) -> Any:
    """The maxima of every ``block`` elements of (..., n), NaN apart; the last block may have fewer."""
    x, whole, n = xp.where(x == x, x, -float("inf")), x.shape[-1] // block, x.shape[-1]
    maxima = xp.amax(x[..., : whole * block].reshape(*x.shape[:-1], whole, block), -1)
    return maxima if whole * block == n else xp.concatenate([maxima, xp.amax(x[..., whole * block :], -1)[..., None]], -1)


def norm_of(xp: Any, lse: Any) -> Any:
    """What scores lose before shares are taken, of a log-sum-exp: an infinite one leaves nothing.

    It is 0 where a score is NaN, so that the shares of other keys stay what they can be ranked by.
    """
    return xp.where(lse == lse, xp.where(xp.abs(lse) == float("inf"), float("inf"), lse), 0.0)


def shares(xp: Any, scores: Any, seen: Any, lse: Any = None) -> Any:
    """softmax over what is seen of the last axis; zeros where nothing is. With its log-sum-exp, if given."""
    if scores.shape[-1] == 0:
        return scores
    scores = xp.where(seen, scores, -float("inf"))
    if lse is not None:
        return xp.exp(scores - norm_of(xp, lse)[..., None])
    highest = xp.amax(scores, -1)[..., None]
    weights = xp.exp(scores - xp.where(highest > -float("inf"), highest, 0.0))
    total = weights.sum(-1)[..., None]
    return weights / xp.where(total > 0, total, 1.0)


def shared(scores: Any, share: str, heads: int, key_heads: int) -> Any:
    """The sum of the scores of the query heads that pick alike, where there are scores for each: a head for each group."""
    batch, of, rows, width = scores.shape
    if share == "head" or of == 1 or (share == "group" and key_heads % of == 0):
        return scores
    groups = 1 if share == "query" else key_heads
    if of % groups:
        scores = scores[:, [head * of // heads for head in range(heads)]]
    return scores.reshape(batch, groups, -1, rows, width).sum(2)


def importance(
    xp: Any,
    queries: Any,
    keys: Any,
    scale: float,
    first: int,
    sizes: tuple[int, int, int, int],
    together: bool,
    lse: Any = None,
) -> Any:
    """How much attention key blocks get from queries (b, h, rows, d) that attend to compressed keys (b or 1, h_kv, count, d).

    The first query is at position ``first``; sizes: a compressed key's length and stride, and a block's size and their number;
    lse: the log-sum-exp of that attention (b or 1, h, rows), if it is known.
    Returns (b, h, rows, blocks), or with ``together`` the sums over the heads of each key head, (b, h_kv, rows, blocks).
    """
    length, stride, block, blocks = sizes
    count, apart, steps = keys.shape[2], length // stride, block // stride
    at = xp.arange(first, first + queries.shape[2], device=queries.device)
    ends = xp.arange(count, device=queries.device) * stride + length - 1
    p = shares(xp, products(wide(queries), wide(keys)) * scale, ends <= at[:, None], lse)
    if together:
        p = p.reshape(p.shape[0], keys.shape[1], -1, *p.shape[2:]).sum(2)

    def nothing(width: int) -> Any:
        return xp.zeros((*p.shape[:-1], width), dtype=p.dtype, device=p.device)

    # Compressed key i stands for steps i to i + apart - 1, so a step is worth those of the apart keys up to its own.
    padded = xp.concatenate([nothing(apart - 1), p, nothing(blocks * steps - count)], -1)
    worth: Any = sum(padded[..., i : i + blocks * steps] for i in range(apart))
    return worth.reshape(*p.shape[:-1], blocks, steps).sum(-1)


def indexed(queries: Any, keys: Any, weights: Any, last: int | None = None) -> Any:  # noqa: ARG001
    """sum over heads j of w_j relu(q_j . k): (b, 1, rows, n), for (b, heads, rows, dim), (b, 1, n, dim) and (b, heads, rows).

    Scores of keys after the position of a row, ``last`` for the first, may be anything.
    """
    across, total = wide(keys).swapaxes(-1, -2), 0.0
    for head in range(queries.shape[1]):  # one at a time: all of them would be as many times the memory
        one = slice(head, head + 1)
        total = total + wide(weights[:, one])[..., None] * (wide(queries[:, one]) @ across).clip(0)
    return total
