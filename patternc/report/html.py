"""A pattern as a card for notebooks: its expression, a small picture and the facts."""

from __future__ import annotations

from html import escape

from patternc.analysis.members import Member, members
from patternc.diagnostics import PatternError
from patternc.pattern import Pattern
from patternc.relation import BudgetExceeded
from patternc.report.colours import colour
from patternc.report.explain import percent
from patternc.report.facts import keys_per_query, runtime_inputs
from patternc.report.parts import parts
from patternc.report.picture import natural_length
from patternc.report.svg import mask_svg

_SHOWN = 4
_N = 4_096
_MAX_TEXT = 400


def pattern_card(pattern: Pattern) -> str:
    """The HTML of a pattern: one picture with its facts for each distinct layer and head (the first few of them)."""
    shown = f"{pattern.name} = {pattern}" if pattern.name else str(pattern)
    title = f'<code style="font-size:1.05em;font-weight:600">{_text(shown)}</code>'
    found = list(members(pattern))
    cards = "".join(_member(member) for member in found[:_SHOWN])
    more = f"<div>and {len(found) - _SHOWN} more</div>" if len(found) > _SHOWN else ""
    return f'<div class="patternc-card" style="max-width:60em">{title}{cards}{more}</div>'


def _member(member: Member) -> str:
    head = f"<div><b>{escape(member.label)}</b>: <code>{_text(str(member.pattern))}</code></div>" if member.label else ""
    beside = "display:flex;gap:1.5em;align-items:flex-start;margin:.6em 0"
    return f'{head}<div style="{beside}">{_picture(member)}{_facts(member)}</div>'


def _picture(member: Member) -> str:
    n = natural_length(member.pattern)
    try:
        drawn = mask_svg(member.pattern, n, head=member.head, side=220, bare=True)
    except (BudgetExceeded, PatternError) as error:
        return f"<div>no picture: {escape(str(error))}</div>"
    return f"<div>{drawn}<div style='opacity:.7;font-size:.85em'>n = {n:,}; q runs down, k to the right</div></div>"


def _facts(member: Member) -> str:
    rows = []
    swatch = "display:inline-block;width:.8em;height:.8em;border-radius:.2em;margin-right:.4em;background:"
    pieces = parts(member.expression)
    if len(pieces) > 1:
        labels = (f'<span style="{swatch}{colour(i)}"></span><code>{_text(p.label)}</code>' for i, p in enumerate(pieces))
        rows.append(("parts", "<br>".join(labels)))
    try:
        keys = keys_per_query(member.meaning, _N, member.head)
    except BudgetExceeded:
        keys = None
    if keys is not None:
        most = "" if keys.exact else "at most "
        span = f"{keys.least:,} to {most}{keys.most:,}, {most}{keys.mean:,.1f} on average"
        rows.append((f"keys per query at n = {_N:,}", span))
        rows.append(("density", f"{most}{percent(keys.density)}"))
    inputs = (f"<code>{_text(i.name)}</code> {_text(i.shape)}: {_text(i.what)}" for i in runtime_inputs(member.meaning))
    rows.append(("runtime inputs", "<br>".join(inputs) or "none"))
    left = "text-align:left;vertical-align:top"
    cells = "".join(
        f'<tr><td style="{left};opacity:.7">{name}</td><td style="{left}">{value}</td></tr>' for name, value in rows
    )
    return f"<table>{cells}</table>"


def _text(shown: str) -> str:
    return escape(shown if len(shown) <= _MAX_TEXT else shown[: _MAX_TEXT - 3] + "...")
