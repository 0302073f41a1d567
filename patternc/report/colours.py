"""One colour for each part of a pattern, the same in the terminal and in files.

The palette is Paul Tol's "bright" scheme: told apart with every common form of colour blindness, on light and on dark.
"""

from __future__ import annotations

PALETTE = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#EE8866", "#8C8C8C")


def colour(part: int) -> str:
    """The colour of a part, by its position."""
    return PALETTE[part % len(PALETTE)]


def pale(part: int) -> str:
    """The part's colour half way to a grey that is seen on light and on dark."""
    return "#" + "".join(f"{(int(colour(part)[i : i + 2], 16) + 0x90) // 2:02X}" for i in (1, 3, 5))
