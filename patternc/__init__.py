"""patternc: a language and a compiler for sparse attention.

    >>> import patternc as pc
    >>> p = pc.parse("causal & (window(4096) | sinks(4))")
    >>> p.nnz(1_000_000)
    4091597050
"""

from patternc.diagnostics import PatternError
from patternc.pattern import Pattern, parse, preset, presets

__version__ = "0.1.0"
__all__ = ["Pattern", "PatternError", "parse", "preset", "presets"]
