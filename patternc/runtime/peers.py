"""The attentions that are measured side by side, all under the mask of one pattern."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from math import gcd
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from patternc.dense import Evaluator
from patternc.pattern import Pattern
from patternc.relation import BudgetExceeded
from patternc.runtime.compile import serving
from patternc.runtime.entry import compile as compile_pattern
from patternc.runtime.operator import request_of
from patternc.scalar import Const, evaluate
from patternc.terms import Choice, Condition, Filter, Layout, Meaning, Random, Term, TopK

MASK_BYTES = {"cuda": 1 << 30, "cpu": 1 << 28}
"""The largest dense boolean mask that is built, in bytes (one a pair), by the device's type."""
MAX_LISTED = 1 << 27
"""The most pairs among which those of a selection (`topk`) are listed; that runs on the CPU."""
MAX_COUNTED = {"cuda": 1 << 36, "cpu": 1 << 30}
"""Up to this many pairs are counted one by one where their number has no closed form, by the device's type."""

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
Holds: TypeAlias = Callable[[Any, Any, Any], Any]

_CHUNK = 1 << 24  # pairs that are evaluated at once
_FAR = 1 << 20  # a query with all the keys of a window before it
_NEVER: Holds = lambda h, q, k: q < 0  # noqa: E731


class Missing(Exception):
    """A peer is left out; the message says why."""


@dataclass(frozen=True)
class Mask:
    """A pattern at one n, as a function of tensors of positions.

    Attributes:
        planes: 1 where all heads are alike, and otherwise the number of heads.
        holds: whether pairs are in the pattern, of integer tensors (head, q, k) that broadcast.
        pairs: the number of pairs of each plane; None where it was not counted.
    """

    planes: int
    holds: Holds
    pairs: tuple[int, ...] | None

    def dense(self, n: int, device: torch.device) -> Tensor:
        """The boolean mask (planes, n, n)."""
        planes = [torch.cat(list(_rows(self.holds, plane, n, device))) for plane in range(self.planes)]
        return torch.stack(planes)


@dataclass(frozen=True)
class Case:
    """What every peer attends with: a pattern of one layer, q (B, H, n, D), k and v (B, Hkv, n, D), and runtime inputs."""

    pattern: Pattern
    q: Tensor
    k: Tensor
    v: Tensor
    inputs: dict[str, Tensor]

    @property
    def n(self) -> int:
        return int(self.q.shape[2])

    @property
    def heads(self) -> int:
        return int(self.q.shape[1])

    @cached_property
    def is_causal(self) -> bool:
        """Whether the pattern is exactly causal.

        Raises:
            Missing: that was not decided.
        """
        return _is_same(self.pattern, "causal")

    @cached_property
    def mask(self) -> Mask:
        """The pattern's mask.

        Raises:
            Missing: it has no closed form and is too large to be listed.
        """
        seen = {}
        if any(_scores_itself(choice) for choice in _choices(self.pattern)):
            if len(self.q) > 1:
                raise Missing("what it selects differs in every batch, and masks are of one")
            seen = {"queries": self.q[0], "keys": self.k[0]}
        return _mask(self.pattern, self.n, self.heads, {**self.inputs, **seen}, self.q.device)

    @cached_property
    def block_mask(self) -> tuple[Any, float]:
        """FlexAttention's block mask, and the milliseconds that building it takes, compilation not counted."""
        flex = import_module("torch.nn.attention.flex_attention")
        mask, on_gpu = self.mask, self.q.device.type == "cuda"
        per_head = None if mask.planes == 1 else self.heads
        if not on_gpu:
            _check_fits(mask.planes, self.n, "cpu", "its block mask is built from a dense mask on a CPU, which would take")
        holds = mask.holds
        mod = lambda b, h, q, k: holds(h, q, k)  # noqa: E731
        build = torch.compile(flex.create_block_mask) if on_gpu else flex.create_block_mask
        for _ in range(2):
            start = perf_counter()
            built = build(mod, None, per_head, self.n, self.n, device=str(self.q.device))
            if on_gpu:
                torch.cuda.synchronize(self.q.device)
            elapsed = 1e3 * (perf_counter() - start)
        torch.compiler.reset()
        return built, elapsed

    def pairs(self) -> float | None:
        """The pairs of a head, on average over the heads; None where they were not counted."""
        try:
            counts = self.mask.pairs
        except Missing:
            counts = _count_in_closed_form(self.pattern, self.n, _planes(self.pattern, self.heads))
        return None if counts is None else sum(counts) / len(counts)


@dataclass(frozen=True)
class Ready:
    """A peer that can be called.

    Attributes:
        repeats: how many query heads read each head of the k and v that it wants.
        mask_ms: the time that building its mask took, in milliseconds; no part of its calls.
    """

    attend: Attend
    repeats: int
    note: str = ""
    mask_ms: float | None = None


def patternc_itself(case: Case) -> Ready:
    """The pattern's own kernel, by the best backend for the call."""
    attention: Any = compile_pattern(case.pattern)
    inputs = case.inputs
    backend = serving(case.pattern, None, request_of(case.q, case.v))
    return Ready(lambda q, k, v: attention(q, k, v, **inputs), case.heads // int(case.k.shape[1]), f"{backend} backend")


def sdpa_mask(case: Case) -> Ready:
    """torch's dense attention under a boolean mask."""
    _check_fits(_planes(case.pattern, case.heads), case.n, case.q.device.type, "the dense mask would take")
    start = perf_counter()
    mask = case.mask.dense(case.n, case.q.device)
    elapsed = 1e3 * (perf_counter() - start)
    note = "" if case.k.shape[1] == case.heads else "k and v repeated for every query head"
    return Ready(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask[None]), 1, note, elapsed)


def sdpa_causal(case: Case) -> Ready:
    """torch's causal attention, where it is the same."""
    if not case.is_causal:
        raise Missing("the pattern is not exactly causal")
    repeats = case.heads // int(case.k.shape[1])
    return Ready(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=repeats > 1), repeats)


def sdpa_cudnn(case: Case) -> Ready:
    """torch's causal attention by cuDNN, where it is the same."""
    _check_gpu(case)
    its = sdpa_causal(case)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return its.attend(q, k, v)

    return replace(its, attend=attend)


def flash_attn(case: Case) -> Ready:
    """flash-attn-4's own call, where the pattern is causal or the w keys up to each query."""
    flash, window = _flash_attn(case), _window(case)
    size = (None, None) if window is None else (window - 1, 0)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out: Tensor = flash.flash_attn_func(q, k, v, causal=window is None, window_size=size)[0]
        return out.transpose(1, 2)

    return Ready(attend, case.heads // int(case.k.shape[1]))


def flex(case: Case) -> Ready:
    """FlexAttention with its own kernels."""
    return _flex(case, {"BACKEND": "TRITON"} if case.q.device.type == "cuda" else None)


def flex_flash(case: Case) -> Ready:
    """FlexAttention with the kernels of flash-attn-4."""
    _flash_attn(case)
    return _flex(case, {"BACKEND": "FLASH"})


def _check_gpu(case: Case) -> None:
    if case.q.device.type != "cuda":
        raise Missing("needs a GPU")


def _flash_attn(case: Case) -> Any:
    _check_gpu(case)
    try:
        return import_module("flash_attn.cute")
    except Exception as error:
        raise Missing(f"flash-attn-4 cannot be imported: {error}") from None


def _window(case: Case) -> int | None:
    """The w of ``causal & window(w)``; None where the pattern is causal."""
    if case.is_causal:
        return None
    if not case.pattern.inputs:
        window = sum(len(range(first, last + 1, step)) for first, last, step in case.pattern.row(_FAR, _FAR + 1))
        if window and _is_same(case.pattern, f"causal & window({window})"):
            return window
    raise Missing("the pattern is neither causal nor a causal window")


def _is_same(pattern: Pattern, text: str) -> bool:
    try:
        return bool(pattern.equivalent(text))
    except BudgetExceeded:
        raise Missing(f"whether the pattern is exactly {text} was not decided") from None


def _flex(case: Case, options: dict[str, str] | None) -> Ready:
    try:
        found = import_module("torch.nn.attention.flex_attention")
    except ImportError as error:
        raise Missing(f"this torch has no FlexAttention: {error}") from None
    block_mask, elapsed = case.block_mask
    attention: Any = torch.compile(found.flex_attention, dynamic=False)
    repeats = case.heads // int(case.k.shape[1])

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attention(q, k, v, block_mask=block_mask, kernel_options=options, enable_gqa=repeats > 1)
        return out

    return Ready(attend, repeats, mask_ms=elapsed)


PEERS: dict[str, Callable[[Case], Ready]] = {
    "sdpa-mask": sdpa_mask,
    "sdpa-causal": sdpa_causal,
    "sdpa-cudnn": sdpa_cudnn,
    "flash-attn": flash_attn,
    "flex": flex,
    "flex-flash": flex_flash,
}
"""What patternc is measured against: torch's dense attention under the mask, its causal one, also by cuDNN, flash-attn-4's
own causal and window calls, and FlexAttention with its Triton kernels (C++ on a CPU) and with those of flash-attn-4."""


def _check_fits(planes: int, n: int, device: str, what: str) -> None:
    needed, limit = planes * n * n, MASK_BYTES[device]
    if needed > limit:
        raise Missing(f"{what} {needed / 2**30:,.3g} GiB; the bound is {limit / 2**30:g} GiB")


def _choices(pattern: Pattern) -> list[Choice]:
    meanings = (pattern.meaning(head=head) for head in range(pattern.heads))
    return [choice for meaning in meanings for term in meaning.picks for choice in term.choices]


def _scores_itself(choice: Choice) -> bool:
    """Whether the scores come of queries and keys (or of a scorer's own), and not from the call."""
    return isinstance(choice, TopK) and choice.name not in [use.name for use in choice.scorer.inputs]


def _planes(pattern: Pattern, heads: int) -> int:
    """1 where the mask is the same for all heads; draws differ in every head, and so do scores of queries and keys."""
    alike = pattern.heads == 1 and not any(isinstance(c, Random) or _scores_itself(c) for c in _choices(pattern))
    return 1 if alike else heads


def _mask(pattern: Pattern, n: int, heads: int, inputs: dict[str, Tensor], device: torch.device) -> Mask:
    planes = _planes(pattern, heads)
    alike: dict[Pattern, list[int]] = {}
    for head in range(min(pattern.heads, heads)):
        alike.setdefault(pattern.head(head), []).append(head)
    period = sum(map(len, alike.values()))
    kinds: list[tuple[list[int], Holds]] = []
    for residues in alike.values():
        mine = [plane for plane in range(planes) if plane % period in residues]
        meaning = pattern.meaning(head=residues[0])
        terms = [_term(term, meaning, mine, planes, n, inputs, device) for term in meaning.terms]
        kinds.append((residues, _joined(terms or [_NEVER], operator.or_)))
    apart = [_of_heads(period, residues, holds) for residues, holds in kinds]
    holds = kinds[0][1] if len(kinds) == 1 else _joined(apart, operator.or_)
    block = gcd(*(choice.block for choice in _choices(pattern)))
    if block > 1 and planes * n * n <= MAX_COUNTED[device.type]:
        holds = _by_blocks(holds, block, planes, n, device) or holds
    return Mask(planes, holds, _count_in_closed_form(pattern, n, planes) or _count(holds, planes, n, device))


def _by_blocks(holds: Holds, block: int, planes: int, n: int, device: torch.device) -> Holds | None:
    """The same as one table of blocks, which is quicker to look up; None where some block is held in part."""
    first = torch.arange(0, n, block, device=device)
    heads = torch.arange(planes, device=device)[:, None, None]
    side = len(first)
    table = holds(heads, first[:, None], first[None, :]).expand(planes, side, side)
    found = _looked_up(table, block)

    def differs(h: Any, q: Any, k: Any) -> Any:
        return holds(h, q, k) != found(h, q, k)

    return None if any(bool(rows.any()) for plane in range(planes) for rows in _rows(differs, plane, n, device)) else found


def _joined(parts: Sequence[Holds], join: Callable[[Any, Any], Any]) -> Holds:
    """Conditions joined; in closures and loops only, which torch.compile traces everywhere."""
    if len(parts) == 1:
        return parts[0]

    def holds(h: Any, q: Any, k: Any) -> Any:
        found = parts[0](h, q, k)
        for part in parts[1:]:
            found = join(found, part(h, q, k))
        return found

    return holds


def _of_heads(period: int, heads: Sequence[int], holds: Holds) -> Holds:
    def of_heads(h: Any, q: Any, k: Any) -> Any:
        mine = h % period == heads[0]
        for head in heads[1:]:
            mine = mine | (h % period == head)
        return mine & holds(h, q, k)

    return of_heads


def _term(
    term: Term, meaning: Meaning, planes: Sequence[int], of: int, n: int, inputs: dict[str, Tensor], device: torch.device
) -> Holds:
    """One term: its conditions in closed form and its draws as tables of blocks; with a selection, a list of its pairs."""
    given = (
        {name: (t.float() if t.is_floating_point() else t).cpu().numpy() for name, t in inputs.items()} if term.choices else {}
    )
    if any(isinstance(choice, TopK) for choice in term.choices):
        if of * n * n > MAX_LISTED:
            raise Missing(f"selected pairs have no closed form, and {of * n * n:,} pairs are too many to list them")
        listed = np.zeros((of, n, n), bool)
        k = np.arange(n)[None, :]
        for plane in planes:
            evaluator = Evaluator(meaning, n, plane, given)
            listed[plane] = np.concatenate([evaluator.holds_term(term, q[:, None], k) for q in evaluator.row_blocks()])
        return _looked_up(torch.from_numpy(listed).to(device), 1)
    parts = [_joined([_condition(condition, n, inputs) for condition in term.conditions], operator.or_)]
    for choice in (choice for choice in term.choices if isinstance(choice, Random)):
        side = -(-n // choice.block)
        if of * side * side > MASK_BYTES[device.type]:
            raise Missing(f"its table of draws would take {of * side * side / 2**30:,.3g} GiB")
        table = np.zeros((of, side, side), bool)
        rows = np.arange(side)
        for plane in planes:
            for keys in Evaluator(meaning, n, plane, given).drawn(choice, term, rows * choice.block):
                table[plane, rows[keys >= 0], keys[keys >= 0]] = True
        parts.append(_looked_up(torch.from_numpy(table).to(device), choice.block))
    return _joined(parts, operator.and_)


def _looked_up(table: Tensor, block: int) -> Holds:
    """A table (planes, blocks, blocks) as a condition."""
    if len(table) == 1:
        table = table[0]
        return lambda h, q, k: table[q // block, k // block]
    return lambda h, q, k: table[h, q // block, k // block]


def _condition(condition: Condition, n: int, inputs: dict[str, Tensor]) -> Holds:
    predicate = condition.relation.predicate
    if isinstance(predicate, Const):
        parts: list[Holds] = [(lambda h, q, k: q >= 0) if predicate.value else _NEVER]
    else:
        parts = [lambda h, q, k: evaluate(predicate, {"q": q, "k": k, "n": n}, torch)]
    return _joined([*parts, *(_filter(f, inputs[f.name]) for f in condition.filters)], operator.and_)


def _filter(f: Filter, given: Tensor) -> Holds:
    negated = f.negated
    if isinstance(f, Layout):
        block = f.block
        return lambda h, q, k: given[q // block, k // block] != negated
    return lambda h, q, k: (given[q] == given[k]) != negated


def _rows(holds: Holds, plane: int, n: int, device: torch.device) -> Iterator[Tensor]:
    """One plane in blocks of whole rows."""
    size = max(1, _CHUNK // n)
    head = torch.tensor(plane, device=device)
    k = torch.arange(n, device=device)[None, :]
    for first in range(0, n, size):
        q = torch.arange(first, min(n, first + size), device=device)[:, None]
        yield holds(head, q, k).expand(len(q), n)


def _count_in_closed_form(pattern: Pattern, n: int, planes: int) -> tuple[int, ...] | None:
    """The pairs of each plane, without runtime inputs; None where that takes walking over all pairs of a large n."""
    if pattern.inputs or any(choice.block > 1 for choice in _choices(pattern)):
        return None
    try:
        return tuple(pattern.nnz(n, head=head) for head in range(planes))
    except (BudgetExceeded, ValueError):
        return None


def _count(holds: Holds, planes: int, n: int, device: torch.device) -> tuple[int, ...] | None:
    if planes * n * n > MAX_COUNTED[device.type]:
        return None
    return tuple(sum(int(rows.sum()) for rows in _rows(holds, plane, n, device)) for plane in range(planes))
