"""The arguments that questions about stacked layers have in common, checked in one place."""

from __future__ import annotations

from typing import get_args

from patternc.analysis.steps import Mode
from patternc.pattern import MAX_N, check_length


def check_arguments(
    n: int | None, *positions: int, mode: Mode = "may", start_layer: int = 0, layers: int = 0, most: int | None = None
) -> None:
    """Refuse what is out of range: n (None for all of them), positions, the mode, the starting layer, a number of layers.

    Args:
        most: the largest number of layers; None for any.

    Raises:
        ValueError: one is, or is not a whole number.
    """
    if n is not None:
        check_length(n)
    for position in positions:
        if not isinstance(position, int) or not 0 <= position < (MAX_N if n is None else n):
            raise ValueError(f"{position!r} is not a position{'' if n is None else f' of a sequence of n = {n:,}'}")
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {' or '.join(map(repr, get_args(Mode)))}, got {mode!r}")
    if not isinstance(start_layer, int) or start_layer < 0:
        raise ValueError(f"start_layer must be at least 0, the bottom layer, got {start_layer!r}")
    if not isinstance(layers, int) or layers < 0 or (most is not None and layers > most):
        wanted = "at least 0" if most is None else f"from 0 to {most:,}"
        raise ValueError(f"layers must be {wanted}, got {layers!r}")
