"""patternc: a language and a compiler for sparse attention.

>>> import patternc as pc
>>> p = pc.parse("causal & (window(4096) | sinks(4))")
>>> p.nnz(1_000_000)
4091597050
>>> attn = pc.compile(p)  # doctest: +SKIP
>>> out = attn(q, k, v)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from patternc.diagnostics import PatternError
from patternc.pattern import Pattern, parse, preset, presets

if TYPE_CHECKING:
    from patternc.runtime.attention import Attention, attention, compile  # noqa: A004

__version__ = "0.1.0"
__all__ = ["Attention", "Pattern", "PatternError", "attention", "compile", "parse", "preset", "presets"]


def __getattr__(name: str) -> Any:
    """`compile`, `attention` and `Attention` need torch; it is imported when one of them is first used."""
    if name in ("Attention", "attention", "compile"):
        from patternc.runtime import attention as runtime

        return getattr(runtime, name)
    raise AttributeError(f"module 'patternc' has no attribute '{name}'")
