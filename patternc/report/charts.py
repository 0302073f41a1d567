"""Curves and histograms as inline SVG; the page that holds them gives their colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 38


def curve(series: Sequence[tuple[str, Sequence[float]]], top: float, across: str) -> str:
    """Lines over 0, 1, 2, ...: one for each named series, on a scale from 0 to ``top``."""
    last = max(1, max(len(values) for _, values in series) - 1)
    step, high = (_WIDTH - _LEFT - _RIGHT) / last, _HEIGHT - _TOP - _BOTTOM
    body = [*_across(high, top), *_below([(i * step, f"{i:,}") for i in _ticks(last)], across)]
    for name, values in series:
        points = [(_LEFT + i * step, _TOP + high * (1 - value / top)) for i, value in enumerate(values)]
        path = "".join(f"{'L' if i else 'M'}{_number(x)} {_number(y)}" for i, (x, y) in enumerate(points))
        body.append(f'<path class="line {escape(name)}" d="{path}"><title>{escape(name)}</title></path>')
    ends = f'x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{_TOP + high}"'
    now = f'<line id="now" class="now" data-step="{_number(step)}" data-last="{last}" {ends}/>'
    return _chart(f"{across} against {', '.join(name for name, _ in series)}", [*body, now])


def histogram(bins: Sequence[tuple[int, int, int]], across: str) -> str:
    """Bars for ranges of integers of one width: (first, last, count)."""
    first, width = bins[0][0], bins[0][1] - bins[0][0] + 1
    slots = max(1, (bins[-1][0] - first) // width + 1)
    most = max(count for _, _, count in bins)
    slot, high = (_WIDTH - _LEFT - _RIGHT) / slots, _HEIGHT - _TOP - _BOTTOM
    body = list(_across(high, most))
    for low, end, count in bins:
        x, tall = _LEFT + (low - first) // width * slot, high * count / most
        size = (
            f'x="{_number(x)}" y="{_number(_TOP + high - tall)}" width="{_number(max(0.5, slot - 1))}" height="{_number(tall)}"'
        )
        words = f"{low:,}" if low == end else f"{low:,} to {end:,}"
        body.append(f'<rect class="bar" {size}><title>{words}: {count:,}</title></rect>')
    shown = sorted({0, slots // 2, slots - 1}) if slots > 1 else [0]
    body += _below([((i + 0.5) * slot, f"{first + i * width:,}") for i in shown], across)
    return _chart(across, body)


def _across(high: float, top: float) -> list[str]:
    found = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _TOP + high * (1 - share)
        found.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_number(y)}" y2="{_number(y)}"/>')
        if share in (0, 0.5, 1):
            found.append(f'<text x="{_LEFT - 7}" y="{_number(y + 4)}" text-anchor="end">{_short(share * top)}</text>')
    return found


def _below(ticks: Sequence[tuple[float, str]], across: str) -> list[str]:
    base = _HEIGHT - _BOTTOM
    found = [f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>']
    for x, words in ticks:
        found.append(f'<text x="{_number(_LEFT + x)}" y="{base + 15}" text-anchor="middle">{words}</text>')
    middle = _number((_LEFT + _WIDTH - _RIGHT) / 2)
    return [*found, f'<text x="{middle}" y="{base + 33}" text-anchor="middle">{escape(across)}</text>']


def _ticks(last: int) -> list[int]:
    step = max(1, -(-last // 8))
    return list(range(0, last + 1, step))


def _short(value: float) -> str:
    for size, suffix in ((1 << 30, "G"), (1 << 20, "M"), (10_240, "K")):
        if value >= size:
            return f"{value / (1024 if suffix == 'K' else size):.3g}{suffix}"
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _chart(label: str, body: Sequence[str]) -> str:
    words = escape(label, quote=True)
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{words}">{"".join(body)}</svg>'
