"""README's tables of times and its charts, from what `gpu.py` or `cpu.py` measured.

    python tests/bench/render.py tests/bench/results/h200.json
    python tests/bench/render.py tests/bench/results/cpu_2cores.json

Writes the part of README.md between the markers; of times on a GPU also `results/forward.svg`, and `results/backward.svg`
where the backward pass was measured. Ratios on a GPU are to FlexAttention's FLASH backend where that ran, and else to TRITON.
"""

import argparse
import json
import re
from pathlib import Path

from patternc.report.bars import Bar, Bars, bars_svg

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "bench" / "results"
MARKERS = "<!-- {}:begin -->", "<!-- {}:end -->"
NAMES = {
    "patternc": "patternc",
    "flex-flash": "Flex FLASH",
    "flex": "Flex TRITON",
    "flash-attn": "FlashAttention-4",
    "sdpa-cudnn": "cuDNN",
}
WAYS = ("forward", "backward")


def times(row, way):
    """The measured times of a row by peer, in milliseconds."""
    found = {peer["name"]: peer.get(f"{way}_ms") for peer in row.get("peers", [])}
    return {name: ms for name, ms in found.items() if ms is not None}


def ways(report):
    """The directions of which there is a time."""
    return [way for way in WAYS if any(times(row, way) for row in report["rows"])]


def setting(report):
    heads = f"{report['heads']} heads"
    if report["kv_heads"] != report["heads"]:
        heads += f" on {report['kv_heads']}"
    versions = [f"{key.replace('_', '-')} {report[key]}" for key in ("torch", "triton", "flash_attn_4") if key in report]
    shapes = [report["dtype"], f"batch {report['batch']}", heads, f"head_dim {report['head_dim']}"]
    return ", ".join([report["device"], *shapes, *versions, report["date"]])


def table(report, way):
    """A Markdown table of one direction: every row, with a dash for what was not measured and the reasons below."""
    rows = report["rows"]
    peers = [name for name in NAMES if name == "patternc" or any(name in times(row, way) for row in rows)]
    several = len({row["n"] for row in rows}) > 1
    heads = ["pattern", *(["n"] if several else []), *(NAMES[name] for name in peers), "ratio", "times the floor"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for row in rows:
        pattern = "`" + row["pattern"].replace("|", "\\|") + "`"
        cells = [pattern, *([f"{row['n']:,}"] if several else []), *figures(row, way, peers)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *notes(rows, way)])


def figures(row, way, peers):
    found, floor = times(row, way), row.get(f"floor_{way}_ms")
    mine = found.get("patternc")
    against = next((found[name] for name in ("flex-flash", "flex") if name in found), None)
    ratio = "-" if not mine or against is None else f"{against / mine:.2f}"
    above = "-" if mine is None or not floor else f"{mine / floor:.1f}"
    return [*(f"{found[name]:,.3f}" if name in found else "-" for name in peers), ratio, above]


def notes(rows, way):
    """Why times are missing, each reason once."""
    found = {}
    for row in rows:
        if row.get("skipped") or row.get("error"):
            found.setdefault(f"Not measured: {row.get('skipped') or row['error']}", []).append(row)
        for peer in row.get("peers", []):
            if peer.get(f"{way}_ms") is None:
                found.setdefault(f"{NAMES[peer['name']]} was not measured ({reason(peer, way)})", []).append(row)
    if not found:
        return []
    shown = (f"{text}: {', '.join('`' + row['pattern'] + '`' for row in mine)}" for text, mine in found.items())
    everywhere = (text if len(mine) == len(rows) else one for (text, mine), one in zip(found.items(), shown, strict=True))
    return ["", "; ".join(everywhere) + "."]


def reason(peer, way):
    """The part of a peer's note that is about a direction."""
    parts = [part for part in peer.get("note", "").split("; ") if part]
    mine = [part.removeprefix("backward: ") for part in parts if part.startswith("backward: ") == (way == "backward")]
    return (mine or parts or ["no reason is known"])[0]


def chart(report, way):
    groups = []
    several = len({row["n"] for row in report["rows"]}) > 1
    for row in report["rows"]:
        if not times(row, way):
            continue
        bars = [
            Bar(NAMES[peer["name"]], peer.get(f"{way}_ms"), reason(peer, way))
            for name in NAMES
            for peer in row["peers"]
            if peer["name"] == name
        ]
        title = f"{row['pattern']}, n = {row['n']:,}" if several else row["pattern"]
        groups.append(Bars(title, tuple(bars), row.get(f"floor_{way}_ms")))
    lengths = ", ".join(f"{n:,}" for n in dict.fromkeys(row["n"] for row in report["rows"]))
    title = f"{way.capitalize()} pass at n = {lengths}: milliseconds, and how many times as long as patternc"
    return bars_svg(title, groups, setting(report))


def section(report):
    """What stands between README's markers."""
    parts = []
    for way in ways(report):
        lengths = ", ".join(f"{n:,}" for n in dict.fromkeys(row["n"] for row in report["rows"]))
        picture = f"![times of the {way} pass as bars](tests/bench/results/{way}.svg)"
        peaks = "a matrix product ran at {matmul_tflops:.0f} TFLOP/s, a copy at {copy_tb_per_s:.2f} TB/s"
        head = f"{way.capitalize()} pass, n = {lengths}. {setting(report)}; {peaks.format(**report['ceilings'])}."
        parts.append(f"{head}\n\n{picture}\n\n{table(report, way)}")
    return "\n\n".join(parts)


def cpu_section(report):
    """The same of times on a CPU, at the longest length."""
    n = max(row["n"] for row in report["rows"])
    rows = [row for row in report["rows"] if row["n"] == n]
    shapes = f"float32, batch 1, {report['heads']} heads, head_dim {report['dim']}"
    machine = f"{report['processor']}, {report['threads']} threads, {shapes}, torch {report['torch']}, {report['date']}"
    heads = ["pattern", "density", "patternc", "Flex", "dense", "vs Flex", "vs dense", "trained", "dense", "vs dense"]
    lines = [f"n = {n:,}. {machine}.", "", "| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for row in rows:
        times = [row["patternc_ms"], row.get("flex_ms"), row["sdpa_dense_mask_ms"]]
        ratios = [row["ratio_flex"], row["ratio_sdpa"]]
        trained = [row["patternc_train_ms"], row["sdpa_dense_mask_train_ms"]]
        name = "`" + row["pattern"].replace("|", "\\|") + "`"
        cells = [name, f"{row['density']:.1%}", *map(_short, times), *map(_short, ratios)]
        lines.append("| " + " | ".join([*cells, *map(_short, trained), _short(row["ratio_sdpa_train"])]) + " |")
    later = [f"; `{row['pattern']}` at {row['commit']}{_note(row)}" for row in rows if "commit" in row]
    return "\n".join([*lines, "", f"Measured at commit {report['commit']}{''.join(later)}."])


def _note(row):
    return f" ({row['note']})" if "note" in row else ""


def _short(number):
    """Three digits, and no decimals of large numbers."""
    return "-" if number is None else f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def replaced(readme, text, name="bench"):
    """README with another text between its markers."""
    begin, end = (marker.format(name) for marker in MARKERS)
    if readme.count(begin) != 1 or readme.count(end) != 1:
        raise SystemExit(f"README.md must hold {begin} and {end} once each")
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", readme, flags=re.DOTALL)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="what gpu.py or cpu.py wrote")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--charts", type=Path, default=RESULTS, help="the folder of the charts")
    args = parser.parse_args(arguments)
    report = json.loads(args.report.read_text(encoding="utf-8"))
    readme = args.readme.read_text(encoding="utf-8")
    if "threads" in report:
        args.readme.write_text(replaced(readme, cpu_section(report), "cpu"), encoding="utf-8")
        return
    for way in ways(report):
        (args.charts / f"{way}.svg").write_text(chart(report, way), encoding="utf-8")
    args.readme.write_text(replaced(readme, section(report)), encoding="utf-8")


if __name__ == "__main__":
    main()
