"""Measured times: as horizontal bars in an SVG file, and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from patternc.report.colours import colour
from patternc.report.svg import _document, _number, _text

if TYPE_CHECKING:
    from patternc.runtime.bench import Measured, Report, Row

_WIDTH, _SIDE, _TOP, _NAME, _VALUE = 860, 16, 60, 130, 150
_BAR, _STEP, _HEAD, _GAP = 14, 20, 26, 14


@dataclass(frozen=True)
class Bar:
    """One time in milliseconds; None (or no finite number) where it is missing, and then the note says why."""

    name: str
    ms: float | None
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """Bars on a scale of their own; ratios are to the first one. The floor is in milliseconds too."""

    title: str
    bars: tuple[Bar, ...]
    floor_ms: float | None = None


def bars_svg(title: str, groups: Sequence[Bars], subtitle: str = "") -> str:
    """Draw groups of bars below each other; each name has one colour in all of them."""
    names = list(dict.fromkeys(bar.name for group in groups for bar in group.bars))
    body = [
        _text(_SIDE, 26, _cut(title, 14), size=14, strong=True),
        _text(_SIDE, 45, _cut(subtitle, 11), size=11),
    ]
    y = _TOP
    for group in groups:
        body += _group(group, names, y)
        y += _HEAD + _STEP * len(group.bars) + _GAP
    if any(_finite(group.floor_ms) is not None for group in groups):
        body += [_line(_SIDE + 4, y + 1, 14), _text(_SIDE + 14, y + 12, "floor: no kernel can be faster", size=11)]
        y += 22
    return _document(_WIDTH, y + 10, _printable(title), body)


def _group(group: Bars, names: Sequence[str], y: float) -> Iterator[str]:
    times, floor = [_finite(bar.ms) for bar in group.bars], _finite(group.floor_ms)
    longest = max([time for time in (*times, floor) if time is not None], default=0.0) or 1.0
    left, room = _SIDE + _NAME, _WIDTH - 2 * _SIDE - _NAME - _VALUE
    yield _text(_SIDE, y + 14, _cut(group.title, 12), strong=True)
    for i, (bar, time) in enumerate(zip(group.bars, times, strict=True)):
        top = y + _HEAD + _STEP * i
        yield _text(left - 8, top + 11, _printable(bar.name), anchor="end")
        if time is None:
            missing = f"not measured: {bar.note}" if bar.note else "not measured"
            yield _text(left + 2, top + 11, _cut(missing, 11, left), size=11)
            continue
        width, fill = room * (time / longest), colour(names.index(bar.name))
        yield f'<rect x="{left}" y="{top}" width="{_number(width)}" height="{_BAR}" rx="2" fill="{fill}"/>'
        ratio = f"  {time / times[0]:.2f}\u00d7" if i and times[0] else ""
        yield _text(left + width + 6, top + 11, f"{milliseconds(time)} ms{ratio}", size=11)
    if floor is not None:
        yield _line(left + room * (floor / longest), y + _HEAD - 4, _STEP * len(group.bars) + 2)


def _line(x: float, y: float, height: float) -> str:
    """An upright line in the colour of strong text, which is seen on bars and beside them, on light and on dark."""
    return f'<path class="pc-strong" d="M{_number(x)} {_number(y)}h2v{_number(height)}h-2z" fill="#57606a"/>'


def _finite(value: float | None) -> float | None:
    """A time that can be drawn."""
    return value if value is not None and isfinite(value) and value >= 0 else None


def milliseconds(ms: float) -> str:
    """A time with as many digits as it is worth."""
    return f"{ms:,.0f}" if ms >= 1000 else f"{ms:.1f}" if ms >= 100 else f"{ms:.3f}"


def _cut(words: str, size: int, left: float = _SIDE) -> str:
    """What fits into a line."""
    words = _printable(words)
    room = int((_WIDTH - _SIDE - left) / (0.61 * size))
    return words if len(words) <= room else words[: room - 3] + "..."


def _printable(words: str) -> str:
    """Without the control characters of error messages, which have no place in XML."""
    return "".join(c if c.isprintable() else " " for c in words)


def bench_svg(report: Report) -> str:
    """The chart of what `patternc bench` measured: a group for each length and direction."""
    ways = [(False, "forward"), *([(True, "backward")] if report.setting.backward else [])]
    groups = [
        Bars(
            f"{way}, n = {result.n:,}",
            tuple(Bar(row.name, row.backward_ms if backward else row.forward_ms, row.note) for row in result.rows),
            result.floor_backward_ms if backward else result.floor_forward_ms,
        )
        for result in report.results
        for backward, way in ways
    ]
    return bars_svg(str(report.pattern), groups, _where(report))


def bench_table(report: Report) -> Lines:
    """What `patternc bench` measured, for a rich console."""
    peaks = report.ceilings
    heading = Text.assemble(
        (str(report.pattern), "bold"),
        f"\n{_where(report)}\nAt best, measured here: {peaks.flops / 1e12:,.3g} TFLOP/s in a matrix product, ",
        f"{peaks.bytes / 1e12:,.3g} TB/s in a copy\n",
        ("Medians. Ratios over 1 are slower than patternc. TFLOP/s count the pattern's own pairs only.", "dim"),
    )
    shown: list[RenderableType] = [heading]
    for result in report.results:
        shown += [Text(), _title(result), _table(result), *_notes(result)]
    return Lines(*shown)


def _where(report: Report) -> str:
    setting, machine = report.setting, report.machine
    versions = [f"{name} {machine[name]}" for name in ("torch", "triton", "flash_attn_4") if name in machine]
    heads = f"{setting.heads} heads" + (f" on {setting.kv_heads}" if setting.kv_heads != setting.heads else "")
    shapes = [setting.dtype, f"batch {setting.batch}", heads, f"head_dim {setting.head_dim}"]
    return ", ".join([machine["device"], *versions, *shapes])


def _title(result: Measured) -> Text:
    if result.pairs is None:
        return Text(f"n = {result.n:,} (its pairs were not counted)", "bold")
    return Text(f"n = {result.n:,}, {result.pairs / result.n**2:.3g} of all pairs", "bold")


def _table(result: Measured) -> Table:
    ways = [False, True] if result.setting.backward else [False]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", style="cyan", no_wrap=True)
    for backward in ways:
        for head in ("backward ms" if backward else "forward ms", "ratio", "TFLOP/s"):
            table.add_column(head, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(row.name, *(cell for backward in ways for cell in _cells(result, row, backward)))
    floors = [result.floor_backward_ms if backward else result.floor_forward_ms for backward in ways]
    table.add_row("floor", *(cell for floor in floors for cell in ("-" if floor is None else milliseconds(floor), "", "")))
    return table


def _notes(result: Measured) -> Iterator[Text]:
    for row in result.rows:
        if row.note:
            yield Text(f"{row.name}: {row.note}", "dim")


def _cells(result: Measured, row: Row, backward: bool) -> tuple[str, str, str]:
    ms = row.backward_ms if backward else row.forward_ms
    ratio, rate = result.ratio(row, backward=backward), result.tflops(row, backward=backward)
    digits = "-" if rate is None else f"{rate:.3g}" if rate < 1 else f"{rate:,.1f}"
    return "-" if ms is None else milliseconds(ms), "-" if ratio is None else f"{ratio:.2f}", digits
