"""The mask of a pattern as an SVG file: crisp at any size, small, and readable on light and dark backgrounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt

from patternc.dense import true_runs
from patternc.pattern import Pattern
from patternc.report.picture import Drawing
from patternc.report.reached import drawing

MAX_PAIRS = 128
"""Up to this n every pair is drawn; beyond, a grid of this many cells to a side."""

_LEVELS = (0.22, 0.4, 0.6, 0.8, 1.0)
_MAY = 0.3
_SIDE = 512
_LEFT, _TOP, _GAP, _LEGEND, _BOTTOM, _RIGHT = 58, 88, 26, 270, 24, 20
_TEXT = 'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"'

_NOTES = {
    (True, False): "",
    (False, True): "possible; chosen at run time",
    (True, True): "pale: depends on run time",
    (False, False): "no pair of its own at this n",
}
_STYLE = (
    "<style>.pc-panel{fill:#fff}.pc-grid{stroke:#fff}.pc-text{fill:#57606a}.pc-strong{fill:#24292f}"
    "@media (prefers-color-scheme:dark){.pc-panel{fill:#161b22}.pc-grid{stroke:#161b22}.pc-text{fill:#8b949e}"
    ".pc-strong{fill:#e6edf3}}</style>"
)


@dataclass(frozen=True)
class Rect:
    """A block of like cells, in cells from the top left."""

    x: int
    y: int
    width: int
    height: int


def mask_svg(
    pattern: Pattern,
    n: int = 64,
    *,
    head: int = 0,
    layer: int = 0,
    reach: int | None = None,
    side: int = _SIDE,
    bare: bool = False,
) -> str:
    """Draw one layer and head of a pattern; queries run down, keys to the right.

    Args:
        reach: draw instead which keys each query reaches within so many layers, from ``layer`` up, all heads together.
        side: the width of the square in pixels.
        bare: only the square, without title, axes and legend.
    """
    drawn = drawing(pattern, n, head=head, layer=layer, reach=reach)
    cell = -(-n // MAX_PAIRS)
    layers = _of_pairs(drawn) if cell == 1 else _of_cells(drawn, cell)
    cells = -(-n // cell)
    size = side * cells * cell / n  # the last cell may reach beyond n
    plot = [
        f'<rect class="pc-panel" width="{side}" height="{side}" fill="#fff"/>',
        f'<g transform="scale({_number(size / cells)})" shape-rendering="crispEdges">',
        *(_group(layer, drawn.colours) for layer in layers),
        "</g>",
        *([_grid(n, side)] if cell == 1 and n > 1 else []),
        f'<rect width="{side}" height="{side}" fill="none" stroke="#8b949e" stroke-opacity=".55"/>',
    ]
    words = f"{drawn.title or 'Attention mask'} of {pattern} at n = {n:,}"
    if bare:
        return _document(side, side, words, [*plot])
    legend = list(_legend(drawn, layers, n, cell, side))
    height = _TOP + max(side, 28 * len(legend)) + _BOTTOM
    body = [
        *_title(pattern, side, drawn.title),
        f'<g transform="translate({_LEFT} {_TOP})">',
        *plot,
        *_axes(n, side),
        "</g>",
        f'<g transform="translate({_LEFT + side + _GAP} {_TOP})">',
        *legend,
        "</g>",
    ]
    return _document(_LEFT + side + _GAP + _LEGEND + _RIGHT, height, words, body)


@dataclass(frozen=True)
class _Layer:
    """Like cells of one part."""

    part: int
    held: bool
    opacity: float
    rects: tuple[Rect, ...]


def _of_pairs(drawn: Drawing) -> list[_Layer]:
    codes = drawn.codes()
    values = [(i, held) for held in (False, True) for i in range(len(drawn.labels))]
    found = [(i, held, merged(codes == (i + 1 if held else -(i + 1)))) for i, held in values]
    return [_Layer(i, held, 1.0 if held else _MAY, rects) for i, held, rects in found if rects]


def _of_cells(drawn: Drawing, cell: int) -> list[_Layer]:
    cells = drawn.cells(cell, cell)
    found = []
    for held in (False, True):
        part, share = cells.strongest(held=held)
        level = np.searchsorted([1 / 16, 1 / 4, 1 / 2, 0.999], share, side="right")
        for i in range(len(drawn.labels)):
            for step, opacity in enumerate(_LEVELS):
                rects = merged((part == i) & (level == step))
                if rects:
                    found.append(_Layer(i, held, opacity if held else opacity * _MAY, rects))
    return found


def merged(mask: npt.NDArray[np.bool_]) -> tuple[Rect, ...]:
    """The true cells as disjoint rectangles: runs of a row, joined downwards while the rows agree."""
    open_runs: dict[tuple[int, int], int] = {}
    found: list[Rect] = []
    for y in range(len(mask) + 1):
        present = {(first, last + 1) for first, last, _ in true_runs(mask[y])} if y < len(mask) else set()
        for run in [run for run in open_runs if run not in present]:
            top = open_runs.pop(run)
            found.append(Rect(run[0], top, run[1] - run[0], y - top))
        for run in present:
            open_runs.setdefault(run, y)
    return tuple(sorted(found, key=lambda r: (r.y, r.x)))


def _group(layer: _Layer, colours: tuple[str, ...]) -> str:
    kind = "held" if layer.held else "may"
    opacity = "" if layer.opacity == 1 else f' fill-opacity="{_number(layer.opacity)}"'
    rects = "".join(f'<rect x="{r.x}" y="{r.y}" width="{r.width}" height="{r.height}"/>' for r in layer.rects)
    return f'<g data-part="{layer.part}" data-kind="{kind}" fill="{colours[layer.part]}"{opacity}>{rects}</g>'


def _grid(n: int, side: int) -> str:
    at = [_number(side * i / n) for i in range(1, n)]
    lines = "".join(f"M0 {x}H{side}M{x} 0V{side}" for x in at)
    width = max(0.3, min(1, side / n / 8))
    return f'<path class="pc-grid" d="{lines}" fill="none" stroke="#fff" stroke-width="{_number(width)}"/>'


def _title(pattern: Pattern, side: int, what: str) -> Iterator[str]:
    room = (_LEFT + side + _GAP + _LEGEND + _RIGHT - 2 * 16) / 8.5
    shown, name = str(pattern), pattern.name
    if name:
        shown = f"{name} = {shown}"
    if what:
        shown = f"{what} of {shown}"
    if len(shown) > room:
        shown = shown[: int(room) - 3] + "..."
    yield _text(16, 28, shown, size=14, strong=True)


def _axes(n: int, side: int) -> Iterator[str]:
    query = _text(0, 0, "\u2190 query q", anchor="middle")
    yield _text(side / 2, -32, "key k \u2192", anchor="middle")
    yield f'<g transform="translate(-44 {_number(side / 2)}) rotate(-90)">{query}</g>'
    for position in _ticks(n):
        at = side * (position + 0.5) / n if n <= MAX_PAIRS else side * position / n
        yield _text(at, -10, _short(position), size=11, anchor="middle")
        yield _text(-8, at + 4, _short(position), size=11, anchor="end")


def _ticks(n: int) -> list[int]:
    step = 1
    while n > 9 * step:
        step *= 2
    return [position for position in range(0, n, step) if position + step / 2 <= n]


def _short(number: int) -> str:
    for size, suffix in ((1 << 20, "M"), (1 << 10, "K")):
        if number >= size and number % (size // 4) == 0 and number >= 8 * 1024:
            return f"{number / size:g}{suffix}"
    return str(number)


def _legend(drawn: Drawing, layers: list[_Layer], n: int, cell: int, side: int) -> Iterator[str]:
    y = 8
    used = {(layer.part, layer.held) for layer in layers}
    for i, label in enumerate(drawn.labels):
        held, may = (i, True) in used, (i, False) in used
        lines = _wrapped(label, 29)
        note = _NOTES[held, may]
        opacity = _MAY if may and not held else 1.0
        fill = f'fill="{drawn.colours[i]}" fill-opacity="{_number(opacity)}"'
        yield f'<rect x="0" y="{y - 2}" width="14" height="14" rx="3" {fill}/>'
        for line in lines:
            yield _text(24, y + 10, line, size=13, strong=True)
            y += 17
        if note:
            yield _text(24, y + 9, note, size=11)
            y += 15
        y += 11
    scale = f"n = {n:,}" if cell == 1 else f"n = {n:,}, a cell is {cell:,} \u00d7 {cell:,} pairs"
    yield _text(0, max(side - 4, y + 12), scale, size=11)
    if cell > 1:
        yield _text(0, max(side - 4, y + 12) - 16, "darker: a larger share is held", size=11)


def _wrapped(label: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in label.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    lines = [one if len(one) <= width else one[: width - 3] + "..." for one in [*lines, line]]
    return lines if len(lines) <= 3 else [*lines[:2], lines[2][: width - 3] + "..."]


def _text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", strong: bool = False) -> str:
    look = 'class="pc-strong" fill="#57606a" font-weight="600"' if strong else 'class="pc-text" fill="#6e7781"'
    where = f'x="{_number(x)}" y="{_number(y)}" font-size="{size}"'
    return f'<text {where} text-anchor="{anchor}" {look}>{escape(words)}</text>'


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _document(width: int, height: int, label: str, body: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return "\n".join([f'{head} role="img" aria-label={quoteattr(label)} {_TEXT}>', _STYLE, *body, "</svg>\n"])
