"""One colour for each part of a pattern, the same in the terminal and in files.

The palette is Paul Tol's "bright" scheme: told apart with every common form of colour blindness, on light and on dark.
"""

from __future__ import annotations

PALETTE = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#EE8866", "#8C8C8C")
_STOPS = ("#35579B", "#2A8FA3", "#3FB67A", "#B4C93E", "#EFCB3A")


def colour(part: int) -> str:
    """The colour of a part, by its position."""
    return PALETTE[part % len(PALETTE)]


def pale(strong: str) -> str:
    """A colour half way to a grey that is seen on light and on dark."""
    return mixed(strong, "#909090", 0.5)


def mixed(one: str, other: str, share: float) -> str:
    """Two colours as one, with this share of the other."""
    pairs = [(int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{int(a + (b - a) * share):02X}" for a, b in pairs)


def ramp(steps: int) -> tuple[str, ...]:
    """Colours in an order that is seen, from near to far: as many as there are steps."""
    last = len(_STOPS) - 1
    at = [last * i / max(1, steps - 1) for i in range(steps)]
    return tuple(mixed(_STOPS[int(x)], _STOPS[min(last, int(x) + 1)], x % 1) for x in at)
