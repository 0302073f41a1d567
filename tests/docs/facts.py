"""Writes the table of the published patterns' guarantees into docs/GUARANTEES.md.

python tests/docs/facts.py
"""

from pathlib import Path

import patternc as pc
from patternc.report.guarantees import Known, known, number

PATH = Path(__file__).resolve().parents[2] / "docs" / "GUARANTEES.md"
BEGIN, END = "<!-- facts:begin -->\n", "<!-- facts:end -->"
N = 65_536
PROPERTIES = {
    "causal": "causal",
    "nonempty": "reads something",
    "self_loops": "reads itself",
    "hub": "hub",
    "hamiltonian": "Hamiltonian path",
    "universal": "universal",
}
WORDS = {"proved": "yes", "refuted": "no"}


def table() -> str:
    """The table, a row for each preset."""
    heads = ["pattern", "hops, for every n", f"hops at n = {N:,}", "coverage, for every n", *PROPERTIES.values()]
    rows = [row(name, pattern) for name, pattern in pc.presets().items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows]) + "\n"


def row(name: str, pattern: pc.Pattern) -> list[str]:
    """What is known of one pattern; at one n only where no runtime input has a say."""
    found = {(one.guarantee, one.n): one for one in known(pattern, () if pattern.inputs else (N,))}
    hops = [found["hops", None], found.get(("hops", N)), found.get(("coverage", None), found["hops", None])]
    properties = [found[name, None].verdict.status for name in PROPERTIES]
    return [f"`{name}`", *map(shown, hops), *(WORDS.get(status, status) for status in properties)]


def shown(one: Known | None) -> str:
    """The number of a measure."""
    return "by the inputs" if one is None else number(one.verdict)


def written(text: str) -> str:
    """The document with the table as it is now."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PATH.write_text(written(PATH.read_text("utf-8")), "utf-8")
