"""The mask of a pattern in a terminal: every pair where they fit, else shades for the share of each cell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from textwrap import wrap
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from rich.text import Text

from patternc.pattern import Pattern
from patternc.report.colours import pale
from patternc.report.picture import MAX_EXACT, Cells, Drawing, tile_classes
from patternc.report.reached import drawing

_MARGIN = 2
_MIN_WIDTH = 12
_SHADES = "·░▒▓█"
_LETTERS = "ABCDEFGH"
_Colours: TypeAlias = tuple[str, ...] | None
"""The colours of the classes; None for letters and shades instead."""

_NOTES = {
    (True, False): "",
    (False, True): "(may, at run time)",
    (True, True): "(in part at run time)",
    (False, False): "(no pair of its own at this n)",
}


def mask_text(
    pattern: Pattern,
    n: int = 64,
    *,
    head: int = 0,
    layer: int = 0,
    reach: int | None = None,
    width: int = 80,
    colours: bool = False,
    tiles: int | None = None,
) -> Text:
    """Draw one layer and head of a pattern, queries downwards and keys to the right, in at most ``width`` columns.

    Args:
        reach: draw instead which keys each query reaches within so many layers, from ``layer`` up, all heads together.
        colours: colour the parts and use block characters; without, parts are letters: capitals where a pair is held, small
            where it may be, for some runtime inputs or scores.
        tiles: draw the borders of tiles of this size (where every pair is drawn), and count them.
    """
    drawn = drawing(pattern, n, head=head, layer=layer, reach=reach)
    palette = drawn.colours if colours else None
    room = max(width, _MIN_WIDTH) - len(str(n)) - _MARGIN
    lines: list[Text] = []
    if _columns(n, 1, tiles) <= room and n <= MAX_EXACT:
        codes = drawn.codes()
        lines += _exact(codes, room, tiles, palette)
        used = [(bool((codes == i + 1).any()), bool((codes == -(i + 1)).any())) for i in range(len(drawn.labels))]
        shades = False
    else:
        columns = max(1, -(-n // room))
        cells = drawn.cells(min(2 * columns, n), columns)
        lines += _coarse(cells, room, palette)
        used = [(bool(cells.held[i].any()), bool(cells.may[i].any())) for i in range(len(drawn.labels))]
        shades = True
    lines += _legend(drawn, used, width, palette, shades=shades)
    if shades:
        lines += _scale(cells, width)
    if tiles is not None:
        lines += _dim(_tile_line(pattern, n, tiles, head, layer), width)
    return Text("\n").join(lines)


def _columns(n: int, cell: int, tiles: int | None) -> int:
    return n * cell + ((n - 1) // tiles if tiles else 0)


def _exact(codes: npt.NDArray[np.int8], room: int, tiles: int | None, colours: _Colours) -> Iterator[Text]:
    n = len(codes)
    cell = 2 if _columns(n, 2, tiles) <= room else 1
    yield _key_axis(n, room)
    halves = colours if cell == 1 and not tiles else None
    for q in range(0, n, 2 if halves else 1):
        if tiles and q and q % tiles == 0:
            yield Text(" " * (len(str(n)) + 1) + "┼".join("─" * cell * min(tiles, n - k) for k in range(0, n, tiles)), "dim")
        line = _query_label(q, n, labelled=q in _ticks(n, halves=halves is not None))
        if halves:
            below = codes[q + 1] if q + 1 < n else np.zeros(n, np.int8)
            _extend(line, (_half_block(int(upper), int(lower), halves) for upper, lower in zip(codes[q], below, strict=True)))
        else:
            _extend(line, _blocks(codes[q], cell, tiles, colours))
        line.rstrip()
        yield line


def _ticks(n: int, *, halves: bool) -> set[int]:
    step = max(1, n // 8)
    return {q - (q % 2 if halves else 0) for q in (*range(0, n, step), n - 1)}


def _key_axis(n: int, room: int) -> Text:
    words = f"k = 0 .. {n - 1}"
    return Text(" " * (len(str(n)) + 1) + (words if len(words) <= room else "k"), "dim")


def _query_label(q: int, n: int, *, labelled: bool) -> Text:
    return Text.assemble((f"{q if labelled else '':>{len(str(n))}} ", "dim"))


def _extend(line: Text, cells: Iterable[tuple[str, str]]) -> None:
    """Append cells, like-styled neighbours as one piece."""
    for style, run in groupby(cells, key=itemgetter(1)):
        line.append("".join(shown for shown, _ in run), style or None)


def _blocks(codes: npt.NDArray[np.int8], cell: int, tiles: int | None, colours: _Colours) -> Iterator[tuple[str, str]]:
    for k, code in enumerate(codes):
        if tiles and k and k % tiles == 0:
            yield "│", "dim"
        yield _block(int(code), cell, colours)


def _block(code: int, cell: int, colours: _Colours) -> tuple[str, str]:
    if code == 0:
        return "·" + " " * (cell - 1), "dim"
    part = abs(code) - 1
    if colours is None:
        letter = _LETTERS[part]
        return (letter if code > 0 else letter.lower()) + " " * (cell - 1), ""
    return ("█" if code > 0 else "░") * cell, _shade(code, colours)


def _half_block(upper: int, lower: int, colours: tuple[str, ...]) -> tuple[str, str]:
    if upper == lower == 0:
        return " ", ""
    if lower == 0:
        return "▀", _shade(upper, colours)
    if upper == 0:
        return "▄", _shade(lower, colours)
    return "▀", f"{_shade(upper, colours)} on {_shade(lower, colours)}"


def _shade(code: int, colours: tuple[str, ...]) -> str:
    return colours[code - 1] if code > 0 else pale(colours[-code - 1])


def _coarse(cells: Cells, room: int, colours: _Colours) -> Iterator[Text]:
    (held, share), (may, possible) = cells.strongest(held=True), cells.strongest(held=False)
    yield _key_axis(cells.n, room)
    lines = held.shape[0]
    for i in range(lines):
        labelled = i % max(1, lines // 8) == 0 or i == lines - 1
        line = _query_label(i * cells.rows, cells.n, labelled=labelled)
        shown = []
        for j in range(held.shape[1]):
            if held[i, j] >= 0:
                shown.append((_SHADES[_level(share[i, j])], colours[held[i, j]] if colours else ""))
            elif may[i, j] >= 0:
                shown.append((_SHADES[min(1, _level(possible[i, j]))], pale(colours[may[i, j]]) if colours else ""))
            else:
                shown.append((" ", ""))
        _extend(line, shown)
        line.rstrip()
        yield line


def _level(share: float) -> int:
    """The shade of a share: under 5%, under a third, under two thirds, less than all, all."""
    return int(np.searchsorted([0.05, 1 / 3, 2 / 3, 1], share, side="right"))


def _scale(cells: Cells, width: int) -> Iterator[Text]:
    yield from _dim(f"a cell is {cells.rows:,} queries by {cells.columns:,} keys", width)
    yield from _dim("· under 5% held, ░ under 1/3, ▒ under 2/3, ▓ less than all, █ all", width)


def _dim(words: str, width: int, indent: str = "") -> Iterator[Text]:
    for line in wrap(words, max(width, _MIN_WIDTH), initial_indent=indent, subsequent_indent=indent):
        yield Text(line, "dim")


def _legend(drawn: Drawing, used: list[tuple[bool, bool]], width: int, colours: _Colours, *, shades: bool) -> Iterator[Text]:
    width = max(width, _MIN_WIDTH)
    for i, (name, (held, may)) in enumerate(zip(drawn.labels, used, strict=True)):
        note = _NOTES[held, may]
        marks = _marks(i, held, may, colours, shades=shades)
        label = name if len(name) <= width - 4 else name[: width - 7] + "..."
        line = Text.assemble(*marks, " " if marks else "", label)
        fits = len(line.plain) + 1 + len(note) <= width
        yield line.append(f" {note}", "dim") if note and fits else line
        if not fits:
            yield from _dim(note, width, indent="  ")


def _marks(part: int, held: bool, may: bool, colours: _Colours, *, shades: bool) -> list[tuple[str, str]]:
    if colours:
        return [("█", colours[part]), *([("░", pale(colours[part]))] if may else [])]
    letter = _LETTERS[part]
    return [] if shades else [(letter if held or not may else letter.lower(), "")]


def _tile_line(pattern: Pattern, n: int, tiles: int, head: int, layer: int) -> str:
    meaning = pattern.meaning(head=head, layer=layer)
    side = -(-n // tiles)
    classes = tile_classes(meaning.static, n, tiles, tiles) if side <= MAX_EXACT else None
    possible = tile_classes(meaning.possible, n, tiles, tiles) if side <= MAX_EXACT else None
    if classes is None or possible is None:
        return f"tiles of {tiles}: too many, or too irregular, to count"
    full, some = int((classes == 2).sum()), int((possible > 0).sum())
    counts = f"{full:,} full, {some - full:,} partial, {side * side - some:,} empty"
    return f"tiles of {tiles}: {counts} of {side * side:,}"
