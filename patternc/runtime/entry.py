"""From a pattern to a callable: `compile`, and `attention` for both in one call."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from patternc.backend import backend_named
from patternc.pattern import Pattern, parse
from patternc.runtime.attention import Attention
from patternc.runtime.gated import Gated


def compile(  # noqa: A001 - the library's own verb
    pattern: Pattern | str, *, layer: int | None = None, backend: str | None = None, **bound: Any
) -> Attention:
    """Compile a pattern (or its text) into a callable: an `Attention`, or a `Gated` one where branches have gates.

    Args:
        layer: which layer, where the pattern's layers differ.
        backend: "gluon", "triton", "torch" or "reference"; by default the best one for the device of each call.
        bound: runtime inputs to use in every call that does not give its own.

    Raises:
        PatternError: the text is not a pattern, or its layers differ and none was chosen.
        ValueError: unknown backend.
    """
    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a Pattern or its text, got {type(pattern).__name__}")
    if backend is not None:
        backend_named(backend)
    if layer is not None:
        pattern = pattern.layer(layer)
    pattern.meaning()
    attention = (Gated if pattern.branches else Attention)(pattern, backend or "", bound)
    attention._inputs(dict.fromkeys(attention._names) | bound)
    return attention


@lru_cache(maxsize=1024)
def _compiled(pattern: Pattern | str, layer: int | None, backend: str | None) -> Attention:
    return compile(pattern, layer=layer, backend=backend)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | str,
    *,
    layer: int | None = None,
    backend: str | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    sink_logit: Tensor | None = None,
    **inputs: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Sparse attention in one call; the pattern is compiled once and kept. See `Attention` for the arguments.

    A pattern with `gated(...)` takes ``gates`` and ``kv`` too, see `Gated`.
    """
    run = _compiled(pattern, layer, backend)
    return run(q, k, v, scale=scale, return_lse=return_lse, sink_logit=sink_logit, **inputs)  # type: ignore[call-overload,no-any-return]
