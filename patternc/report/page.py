"""A report as one HTML page that needs nothing else: pictures to explore, reach layer by layer, guarantees and costs.

Whatever comes from the user is escaped: in the markup as text, and in the page's data so that it cannot end its element. The
page's policy lets no script run but its own, and no request leave.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

import patternc
from patternc.analysis.certificate import Certificate, Chain, ClosedSet, Joint, Path
from patternc.analysis.degrees import Degrees, Distribution
from patternc.analysis.verdict import Verdict
from patternc.report.charts import curve, histogram
from patternc.report.colours import ramp
from patternc.report.content import Content
from patternc.report.explain import Cost, Section, engineering, percent
from patternc.report.facts import RuntimeInput
from patternc.report.picture import Picture, natural_length
from patternc.report.reached import Distances

_UNREACHED = 255
_BINS = 24
_LONG = 4_000

_HINT = "Point at a pair to see what it is; click for a shortest path to it. The wheel zooms, dragging moves."
_NOT_INFLUENCE = (
    "Reach says what may have an influence, not what has one: weights may be small, and values may cancel. "
    "A number is for the worst runtime inputs; draws are those that the kernel makes."
)


def page(content: Content) -> str:
    """The report as the text of an HTML file."""
    script, style = _asset("page.js"), _asset("page.css")
    title = f"{content.pattern.name or 'a pattern'}: a patternc report"
    maker = f"Made by patternc {patternc.__version__}; complete in itself, without a network."
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>",
            *_head(content),
            *_pictures(content),
            *_growth(content),
            *_guarantees(content),
            *_meaning(content),
            f"<footer>{escape(maker)}</footer>\n</main>",
            f'<script type="application/json" id="data">{_script_safe(_data(content))}</script>',
            f"<script>{script}</script>\n</body>\n</html>\n",
        ]
    )


def _head(content: Content) -> Iterator[str]:
    pattern = content.pattern
    name = f"{pattern.name}: report" if pattern.name else "Report on a pattern"
    yield f'<h1>{escape(name)}</h1>\n<code class="expression">{_text(str(pattern))}</code>'
    notes = [f"Numbers are at n = {content.n:,}", f"pictures at n = {content.drawn:,}, computed pair by pair"]
    notes += [
        f"{word} repeat after {count}" for word, count in (("layers", pattern.layers), ("heads", pattern.heads)) if count > 1
    ]
    wanted = natural_length(pattern)
    small = f" The largest sizes in the pattern show from about n = {wanted:,}." if wanted > content.drawn else ""
    yield f'<p class="soft">{escape("; ".join(notes))}.{escape(small)}</p>'


def _pictures(content: Content) -> Iterator[str]:
    yield '<h2 id="pictures">Who reads whom</h2>\n<div class="cards">'
    yield _card(_member_choice(content), '<canvas id="mask" role="img" aria-label="the mask"></canvas>', *_legends(content))
    mode = ""
    if not content.layers.is_settled:
        mode = (
            '<select id="mode" aria-label="which pairs count"><option value="may">may be read</option>'
            '<option value="must">always read</option></select>'
        )
    control = (
        '<div class="control"><h3>Reach of</h3><output id="layers" for="depth"></output>'
        '<input type="range" id="depth" min="0" max="1" value="1" aria-label="how many layers">'
        f'<button type="button" id="play">Play</button>{mode}</div>'
    )
    legend = [
        _key(f"linear-gradient(90deg, {', '.join(ramp(6))})", "near to far", "ramp"),
        _key("var(--front)", "new in this layer"),
    ]
    legend += [_key("var(--never)", "never reached")] if content.cuts else []
    canvas = '<canvas id="reach" role="img" aria-label="what is reached"></canvas>'
    yield _card(control, canvas, f'<ul class="legend">{"".join(legend)}<li id="share"></li></ul>') + "</div>"
    field = f'type="number" min="0" max="{content.drawn - 1}" required'
    yield (
        f'<div class="card readout"><span id="said" role="status">{_HINT}</span>'
        f'<form id="ask"><label>q <input id="q" {field} value="{content.drawn - 1}"></label>'
        f'<label>k <input id="k" {field} value="0"></label><button>Show the path</button></form>'
        '<button type="button" id="clear" hidden>Clear</button>'
        '<button type="button" id="whole" hidden>Whole picture</button></div>'
    )


def _member_choice(content: Content) -> str:
    shown = content.members[: len(content.pictures)]
    if len(shown) == 1:
        return '<div class="control"><h3>One layer</h3></div>'
    options = "".join(f'<option value="{i}">{escape(one.label)}</option>' for i, one in enumerate(shown))
    left = len(content.members) - len(shown)
    more = f'<span class="soft">and {left:,} more</span>' if left else ""
    return f'<div class="control"><h3>The mask of</h3><select id="member" aria-label="of">{options}</select>{more}</div>'


def _legends(content: Content) -> Iterator[str]:
    for i, drawn in enumerate(content.pictures):
        yield f'<ul class="legend" data-of-member="{i}"{" hidden" if i else ""}>{"".join(_legend(drawn))}</ul>'


def _legend(drawn: Picture) -> Iterator[str]:
    codes = drawn.codes()
    for i, (label, colour) in enumerate(zip(drawn.labels, drawn.colours, strict=True)):
        held, may = bool((codes == i + 1).any()), bool((codes == -(i + 1)).any())
        note = "" if held and not may else "pale: decided at run time" if may else "no pair of its own at this n"
        yield _key(colour, f'<code>{_text(label)}</code> <span class="soft">{note}</span>')


def _growth(content: Content) -> Iterator[str]:
    growth = content.growth
    yield '<h2>How it grows</h2>\n<div class="cards three">'
    series = [("largest", growth.largest), *([("mean", growth.mean)] if growth.mean else [])]
    keys = [_key("var(--bar)", "the query that reads most")]
    keys += [_key("var(--front)", "mean over the queries")] if growth.mean else []
    drawn = curve(series, max(growth.largest), "layers")
    yield _card(f"<h3>Receptive field, in keys, at n = {growth.n:,}</h3>", drawn, f'<ul class="legend">{"".join(keys)}</ul>')
    yield _histograms(content, "Keys per query", "keys", "queries", lambda found: found.out)
    yield _histograms(content, "Queries per key", "queries", "keys", lambda found: found.into) + "</div>"


def _histograms(content: Content, title: str, across: str, who: str, pick: Callable[[Degrees], Distribution]) -> str:
    body = [f"<h3>{title}</h3>"]
    for i, (member, found) in enumerate(zip(content.members, content.degrees, strict=False)):
        one = pick(found)
        which = ", of pairs that may be read" if member.pattern.inputs else ""
        span = f"{one.minimum:,}" if one.minimum == one.maximum else f"{one.minimum:,} to {one.maximum:,}, mean {one.mean:,.1f}"
        words = f"{who} by their number of {across}, at n = {found.n:,}{which}: {span}"
        hidden = " hidden" if i else ""
        body.append(
            f'<div data-of-member="{i}"{hidden}>{histogram(one.histogram(_BINS), across)}<p class="soft">{words}</p></div>'
        )
    return _card(*body)


def _guarantees(content: Content) -> Iterator[str]:
    yield '<h2>Guarantees</h2>\n<div class="card"><table>'
    count = 0
    for one in content.guarantees:
        verdict = one.verdict
        buttons = []
        for witness in witnesses(verdict):
            buttons.append(f'<button type="button" data-witness="{count}">{_label(witness)}</button>')
            count += 1
        place = f"{verdict.where}: " if verdict.where else ""
        yield (
            f'<tr><td class="status"><span class="badge {verdict.status}">{verdict.status}</span></td>'
            f'<td>{_text(one.headline)}<div class="soft">{_text(place + verdict.reason)}</div></td>'
            f'<td class="action">{" ".join(buttons)}</td></tr>'
        )
    yield f'</table></div>\n<p class="soft">{_NOT_INFLUENCE}</p>'


def _meaning(content: Content) -> Iterator[str]:
    yield "<h2>Meaning and cost</h2>"
    sections = content.explanation.sections
    for section in sections:
        title = f"<h3>{escape(section.where)}: <code>{_text(section.expression)}</code></h3>" if len(sections) > 1 else ""
        yield _card(title, _cost(section.cost), _words(section), _inputs(section.inputs))
    for where, plan in content.plans:
        words = f"The kernel's plan{f', {where}' if where else ''}"
        yield f'<details class="card"><summary>{escape(words)}</summary><pre>{_text(plan)}</pre></details>'


def _cost(cost: Cost) -> str:
    keys = cost.keys
    if keys is None:
        return '<p class="soft">The cost is not counted: the keys of a query have no closed form.</p>'
    most = "" if keys.exact else "at most "
    span = f"{keys.most:,}" if keys.least == keys.most else f"{keys.least:,} to {most}{keys.most:,}"
    numbers = [("keys per query", span), ("pairs", most + f"{keys.pairs:,}"), ("density", most + percent(keys.density))]
    if cost.speedup is not None:
        numbers.append(("fewer pairs than dense", f"{'' if keys.exact else 'at least '}{cost.speedup:,.1f} times"))
    if cost.forward_flops is not None:
        numbers.append((f"forward, a head of {cost.head_dim}", most + engineering(cost.forward_flops)))
    cells = "".join(f'<div><b>{escape(value)}</b><span class="soft">{escape(name)}</span></div>' for name, value in numbers)
    return f'<div class="numbers">{cells}</div>'


def _words(section: Section) -> str:
    rows = [
        f"<tr><td><code>{_text(word.text)}</code></td><td>{_text(word.summary)}"
        f'<div class="soft"><code>{_text(word.equation)}</code></div></td></tr>'
        for word in section.words
    ]
    held = "always read" if section.possible is not None else "q reads k where"
    rows.append(f'<tr><td class="soft">{held}</td><td><code>{_text(section.held)}</code></td></tr>')
    if section.possible is not None:
        rows.append(f'<tr><td class="soft">may be read</td><td><code>{_text(section.possible)}</code></td></tr>')
    return f'<table class="words">{"".join(rows)}</table>'


def _inputs(inputs: Sequence[RuntimeInput]) -> str:
    rows = "".join(
        f"<tr><td><code>{_text(one.name)}</code></td><td>{_text(one.shape)}<div class='soft'>{_text(one.what)}</div></td></tr>"
        for one in inputs
    )
    return f'<h3 class="below">Runtime inputs</h3><table class="words">{rows}</table>' if inputs else ""


def witnesses(verdict: Verdict) -> list[dict[str, Any]]:
    """What of a verdict can be drawn: paths, sets that are not left, and else its pair."""
    found = list(_drawable(verdict.certificate))
    if not found and verdict.witness is not None:
        found = [{"n": verdict.witness.n, "q": verdict.witness.q, "k": verdict.witness.k}]
    return [{**one, "where": verdict.where} for one in found]


def _drawable(certificate: Certificate | None) -> Iterator[dict[str, Any]]:
    match certificate:
        case Path(n, layers, positions):
            yield {"n": n, "q": positions[0], "k": positions[-1], "layers": layers, "positions": positions}
        case ClosedSet(n, runs, q, k):
            yield {"n": n, "q": q, "k": k, "runs": runs}
        case Chain(int() as n, start, _, _, k):
            yield {"n": n, "q": start, "k": k}
        case Joint(parts):
            for part in parts:
                yield from _drawable(part)


def _label(witness: dict[str, Any]) -> str:
    what = "path" if "positions" in witness else "cut" if "runs" in witness else "pair"
    return f"Show the {what} ({witness['q']:,}, {witness['k']:,})"


def _data(content: Content) -> dict[str, Any]:
    """What the page's script reads: pictures, masks and distances as packed bytes, and witnesses."""
    layers = content.layers
    both = {id(may): may.astype(np.uint8) + must for may, must in zip(layers.may, layers.must, strict=True)}
    numbers = {key: i for i, key in enumerate(both)}
    return {
        "n": content.drawn,
        "causal": content.is_causal,
        "target": content.target,
        "members": [
            {"label": member.label, "labels": drawn.labels, "colours": drawn.colours, "codes": _packed(drawn.codes())}
            for member, drawn in zip(content.members, content.pictures, strict=False)
        ],
        "order": [numbers[id(may)] for may in layers.may],
        "masks": [_packed(mask) for mask in both.values()],
        "reach": {mode: _reach(found) for mode, found in content.reach.items()},
        "witnesses": [one for known in content.guarantees for one in witnesses(known.verdict)],
    }


def _reach(found: Distances) -> dict[str, Any]:
    packed = _packed(np.where(found.of < 0, _UNREACHED, found.of).astype(np.uint8))
    colours = ramp(found.layers + 1)
    return {"layers": found.layers, "closed": found.closed, "pairs": found.pairs, "colours": colours, "distances": packed}


def _packed(array: npt.NDArray[Any]) -> str:
    return b64encode(zlib.compress(array.tobytes(), 9)).decode()


def _card(*body: str) -> str:
    return f'<section class="card">{"".join(body)}</section>'


def _key(background: str, words: str, shape: str = "") -> str:
    return f'<li><span class="swatch {shape}" style="background:{background}"></span><span>{words}</span></li>'


def _text(shown: str) -> str:
    return escape(shown if len(shown) <= _LONG else f"{shown[:_LONG]}... ({len(shown):,} characters)")


def _script_safe(value: Any) -> str:
    """JSON in which no text can end the element that it stands in, or open another."""
    plain = json.dumps(value, separators=(",", ":"))
    return plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(script: str) -> str:
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _asset(name: str) -> str:
    return resources.files("patternc.report").joinpath(name).read_text("utf-8")
