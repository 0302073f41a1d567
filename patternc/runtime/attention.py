"""The callable that a user gets: checks, casts and hands over to the operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from patternc.backend import Request
from patternc.combine import check_sink, with_sink
from patternc.diagnostics import suggest
from patternc.pattern import Pattern
from patternc.runtime import operator
from patternc.runtime.compile import DEFAULT_REQUEST, emit_source, plan_for, serving, without_selections
from patternc.runtime.support import check_call, check_input
from patternc.scorers import ScoreInput
from patternc.terms import TopK

if TYPE_CHECKING:
    from patternc.lower.plan import Plan

CAST = (torch.float16, torch.bfloat16, torch.float32)  # under autocast; float64 is left alone, as torch's own operators do

AUTOCAST_DEVICES = frozenset({"cpu", "cuda", "hpu", "mps", "xpu"})


@dataclass(frozen=True)
class Attention:
    """Sparse attention for one pattern (one layer of it): call it like `torch`'s scaled_dot_product_attention."""

    pattern: Pattern
    backend: str = ""
    bound: dict[str, Any] = field(default_factory=dict)
    _program: str = field(init=False, repr=False, compare=False)  # known before a call, so that torch.compile need not trace it
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _scores: frozenset[str] = field(init=False, repr=False, compare=False)
    _bare: bool = field(init=False, repr=False, compare=False)  # without inputs and selections
    _selects: bool = field(init=False, repr=False, compare=False)
    _short: tuple[int, str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        meanings = [self.pattern.meaning(head=head) for head in range(self.pattern.heads)]
        uses = [use for meaning in meanings for use in meaning.arguments]
        object.__setattr__(self, "_program", str(self.pattern))
        object.__setattr__(self, "_names", tuple(dict.fromkeys(use.name for use in uses)))
        object.__setattr__(self, "_scores", frozenset(use.name for use in uses if isinstance(use, ScoreInput)))
        object.__setattr__(self, "_selects", any(isinstance(use, TopK) for meaning in meanings for use in meaning.inputs))
        object.__setattr__(self, "_bare", not (self._names or self.bound or self._selects))
        object.__setattr__(self, "_short", without_selections(self.pattern) if self._selects else (-1, "", ()))

    @overload
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        return_lse: Literal[False] = False,
        sink_logit: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor: ...
    @overload
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        return_lse: Literal[True],
        sink_logit: Tensor | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, Tensor]: ...
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        return_lse: bool = False,
        sink_logit: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """O = softmax(Q K^T * scale + mask) V, where the mask is the pattern: -inf where query q may not read key k.

        Args:
            q: (B, H, Nq, D), float16, bfloat16 or float32 (float64 on the torch and reference backends).
            k: (B, Hkv, Nk, D) with H a multiple of Hkv (GQA, MQA); Nq <= Nk, and the queries are the last positions.
            v: (B, Hkv, Nk, Dv).
            scale: the factor on the scores, 1 / sqrt(D) by default.
            return_lse: also return the log-sum-exp of the scaled, masked scores.
            sink_logit: (H,), one more logit for each head, unscaled and without a value, as in gpt-oss; it is part of the
                softmax and of the log-sum-exp. See `patternc.with_sink`.
            inputs: the pattern's runtime inputs by name (block tables, document ids or cu_seqlens, scores).

        Returns:
            out (B, H, Nq, Dv) in q's dtype; with ``return_lse`` also lse (B, H, Nq) in float32. Both are differentiable in
            q, k, v and sink_logit. A query without keys gets output 0, log-sum-exp -inf (the sink, where there is one) and
            zero gradients.

        Raises:
            ValueError: shapes, devices or runtime inputs that do not fit, or no backend that can run the call.
            TypeError: wrong types, dtypes, or a runtime input that the pattern does not have.
        """
        if self._bare and not inputs and sink_logit is None and (found := self._at_once(q, k, v, scale)) is not None:
            return found if return_lse else found[0]
        device = q.device.type if isinstance(q, Tensor) else ""
        if device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            q, k, v = (t.to(dtype) if isinstance(t, Tensor) and t.dtype in CAST else t for t in (q, k, v))
        if not operator.fit(q, k, v):
            check_call(q, k, v)
            if k.shape[2] > operator.MAX_LENGTH:
                raise ValueError(f"k has {k.shape[2]:,} positions; the limit is {operator.MAX_LENGTH:,}")
        if sink_logit is not None:
            check_sink(sink_logit, q)
        given = self._inputs(inputs) if self._names or inputs or self.bound else {}
        for name, t in given.items():
            if not (name in self._scores and callable(t)):
                check_input(name, t, q.device)
        program, layer, backend = self._program, 0, self.backend
        tensors = [t for t in given.values() if isinstance(t, Tensor)]
        direct = operator.direct(q, k, v, *tensors)
        scale = float(q.shape[3] ** -0.5 if scale is None else scale)
        chosen: list[Tensor] = []
        kept = [name for name in given if name not in self._scores]
        if self._selects and k.shape[2] <= self._short[0]:
            _, program, names = self._short
            kept = list(names)
        elif self._selects:
            if len(tensors) == len(given) and not direct:
                chosen = operator.select(q, k, v, tensors, program, layer, backend, scale)
            else:
                with torch.no_grad():
                    chosen = operator.module_of(program, layer, backend, q, v).selections(q, k, given, scale)
        filters = [t.detach() if t.requires_grad else t for t in (given[name] for name in kept)]
        rest = filters, chosen, program, layer, backend, scale
        if direct:
            out, lse = operator.call(operator.module_of(program, layer, backend, q, v), q, k, v, *rest)
        else:
            out, lse = operator.attention(q, k, v, *rest)
        if sink_logit is not None:
            out, lse = with_sink(out, lse, sink_logit)
        return (out, lse) if return_lse else out

    def _at_once(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor] | None:
        """Output and log-sum-exp of a call with nothing to cast, check or dispatch on; None where there is something."""
        if not operator.direct(q, k, v):
            return None
        kinds = q.device, k.device, v.device, q.dtype, k.dtype, v.dtype, q.shape, k.shape, v.shape
        found = operator.ready(self._program, self.backend, *kinds)
        if found is None:
            return None
        module, device, usual = found
        if device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
            return None
        return operator.call(module, q, k, v, [], [], self._program, 0, self.backend, usual if scale is None else float(scale))

    def _inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        """The runtime inputs in the kernel's order."""
        given = {**self.bound, **given}
        names = self._names
        for name in given:
            if name not in names:
                hint = suggest(name, names) or (f"its inputs are {', '.join(names)}" if names else "it has none")
                raise TypeError(f"the pattern has no runtime input '{name}'; {hint}")
        for name in names:
            if name not in given:
                raise ValueError(f"the pattern needs the runtime input '{name}': pass {name}=...")
        return {name: given[name] for name in names}

    @property
    def plan(self) -> Plan:
        """What the kernel will do, for bf16 and head_dim 128 on a GPU; `plan_for` takes other requests."""
        return self.plan_for()

    def plan_for(self, request: Request = DEFAULT_REQUEST) -> Plan:
        """The plan for a request."""
        return plan_for(self.pattern, None, self.backend or serving(self.pattern, None, request), request)

    @property
    def source(self) -> str:
        """The emitted file, for bf16 and head_dim 128 on a GPU; `source_for` takes other requests."""
        return self.source_for()

    def source_for(self, request: Request = DEFAULT_REQUEST) -> str:
        """The emitted file for a request."""
        return emit_source(self.pattern, self.backend or serving(self.pattern, None, request), None, request)

    def __repr__(self) -> str:
        return f"compile({str(self.pattern)!r}{f', backend={self.backend!r}' if self.backend else ''})"
