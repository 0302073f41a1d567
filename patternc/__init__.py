"""patternc: a language and a compiler for sparse attention.

>>> import patternc as pc
>>> p = pc.parse("causal & (window(4096) | sinks(4))")
>>> p.nnz(1_000_000)
4091597050
>>> attn = pc.compile(p)  # doctest: +SKIP
>>> out = attn(q, k, v)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from patternc.diagnostics import PatternError
from patternc.pattern import Pattern, parse, preset, presets

if TYPE_CHECKING:
    from patternc import selection
    from patternc.combine import gated, merge, with_sink
    from patternc.compression import compress, compressed_mask
    from patternc.runtime.attention import Attention
    from patternc.runtime.entry import attention, compile  # noqa: A004
    from patternc.runtime.gated import Gated

__version__ = "0.1.0"
__all__ = [
    "Attention",
    "Gated",
    "Pattern",
    "PatternError",
    "attention",
    "compile",
    "compress",
    "compressed_mask",
    "gated",
    "merge",
    "parse",
    "preset",
    "presets",
    "selection",
    "with_sink",
]
_WITH_TORCH = {
    "Attention": "patternc.runtime.attention",
    "Gated": "patternc.runtime.gated",
    **dict.fromkeys(("attention", "compile"), "patternc.runtime.entry"),
    **dict.fromkeys(("compress", "compressed_mask"), "patternc.compression"),
    **dict.fromkeys(("gated", "merge", "with_sink"), "patternc.combine"),
}


def __getattr__(name: str) -> Any:
    """What needs torch; it is imported when one of these is first used."""
    if name in _WITH_TORCH:
        return getattr(import_module(_WITH_TORCH[name]), name)
    if name == "selection":
        return import_module("patternc.selection")
    raise AttributeError(f"module 'patternc' has no attribute '{name}'")
