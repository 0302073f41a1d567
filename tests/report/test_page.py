"""The report page: complete in itself, escaped, small, and true to the pattern."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from base64 import b64decode, b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis.certificate import Chain, ClosedSet, Joint
from patternc.analysis.certificate import Path as Way
from patternc.analysis.verdict import Verdict, bounded, estimated, proved, unknown
from patternc.cli import main
from patternc.relation import Pair
from patternc.report.charts import curve, histogram
from patternc.report.content import Content, content
from patternc.report.guarantees import Known, number
from patternc.report.page import page, witnesses
from patternc.report.picture import picture

VOID = {"meta", "br", "input", "img"}
LIMIT = 500_000


class Reader(HTMLParser):
    """Checks that elements are balanced, and keeps their texts and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.inside: dict[str, str] = {"script": "", "style": ""}
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(words for words in self.words if words.strip())

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


def made(text: str, **options: Any) -> tuple[Content, Reader]:
    found = content(pc.parse(text), **options)
    return found, Reader(page(found))


def unpacked(text: str, n: int, dtype: type = np.uint8) -> np.ndarray:
    return np.frombuffer(zlib.decompress(b64decode(text)), dtype).reshape(n, n)


@pytest.mark.parametrize("name", pc.presets())
def test_presets(name: str) -> None:
    found = content(pc.preset(name))
    html = page(found)
    assert len(html) < LIMIT
    reader = Reader(html)
    assert reader.text.startswith(f"{name}: a patternc report")
    assert f"n = {found.drawn:,}, computed pair by pair" in reader.text
    json.dumps(found.to_json(), allow_nan=False)


def test_a_page_of_draws_is_small_too() -> None:
    assert len(page(content(pc.parse("random(3)"), drawn=512))) < LIMIT


def test_nothing_is_loaded() -> None:
    html = page(content(pc.parse("causal & (window(16) | stride(16))")))
    reader = Reader(html)
    names = {name for _, name, _ in reader.attributes}
    assert not names & {"src", "href", "action", "srcset", "poster", "background"}
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"https?:|//\w|url\(|@import|import\(|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", html)
    (policy,) = [value for tag, name, value in reader.attributes if tag == "meta" and value.startswith("default-src")]
    digest = b64encode(sha256(reader.scripts[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "prefers-color-scheme: dark" in html


def test_text_is_escaped() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&quot;"
    p = pc.Pattern(pc.parse("where(k <= q and q - k < 5) | topk(scores, 2)").expression, evil)
    html = page(content(p, n=64, drawn=32))
    reader = Reader(html)
    assert len(reader.scripts) == 2
    assert html.count("<script") == html.count("</script") == 2
    assert evil in reader.text
    assert "q - k < 5" not in html
    assert "where(k <= q and q - k < 5)" in reader.text
    assert reader.data["members"][0]["labels"][0] == "where(k <= q and q - k < 5)"
    assert not [tag for tag, _, _ in reader.attributes if tag == "img"]


STATIC = st.sampled_from(["causal", "self", "window(3)", "stride(3)", "sinks(2)", "none", "columns([0, -1])", "chunk(4)"])
LEAVES = STATIC | st.sampled_from(["random(2)", "topk(s, 2)", "document(ids)", "layout(t, 2)", "heads(self + causal)"])
MIXED = st.recursive(
    LEAVES, lambda p: st.tuples(p, st.sampled_from("|&"), p).map(lambda t: f"({t[0]} {t[1]} {t[2]})"), max_leaves=4
)
SCHEDULES = MIXED | st.lists(MIXED, min_size=2, max_size=3).map(lambda found: f"layers({' + '.join(found)})")


@settings(max_examples=25, deadline=None)
@given(SCHEDULES, st.integers(1, 12))
def test_the_data_is_the_pattern(text: str, n: int) -> None:
    with patch("patternc.report.content.known", return_value=()):
        found, reader = made(text, n=64, drawn=n)
    data, p = reader.data, found.pattern
    for member, one in zip(found.members, data["members"], strict=True):
        drawn = picture(member.pattern, n, head=member.head)
        np.testing.assert_array_equal(unpacked(one["codes"], n, np.int8), drawn.codes())
        assert tuple(one["labels"]) == drawn.labels
    masks = [unpacked(mask, n) for mask in data["masks"]]
    assert len(data["order"]) == p.layers
    for layer, index in enumerate(data["order"]):
        codes = [picture(p.layer(layer), n, head=head).codes() for head in range(p.layer(layer).heads)]
        np.testing.assert_array_equal(masks[index] > 0, np.any([code != 0 for code in codes], 0))
        np.testing.assert_array_equal(masks[index] == 2, np.any([code > 0 for code in codes], 0))
    for mode, least in (("may", 1), ("must", 2)):
        if mode not in data["reach"]:
            assert set(np.unique(np.stack(masks))) <= {0, 2}
            continue
        one = data["reach"][mode]
        away, reached = unpacked(one["distances"], n), np.eye(n, dtype=bool)
        for layer in range(one["layers"] + 1):
            np.testing.assert_array_equal(away <= layer, reached)
            assert one["pairs"][layer] == reached.sum()
            step = masks[data["order"][layer % p.layers]] >= least
            reached = reached | (step.astype(int) @ reached > 0)


def test_the_numbers_are_at_n_and_the_pictures_are_not() -> None:
    found, reader = made("causal & window(16)", n=4096, drawn=64)
    assert found.growth.n == 4096
    assert found.growth.largest[:3] == (1, 16, 31)
    assert found.growth.mean == ()
    assert found.degrees[0].n == 4096
    assert "Receptive field, in keys, at n = 4,096" in reader.text
    assert "at n = 4,096: 1 to 16, mean 16.0" in reader.text
    assert found.reach["may"].layers == 5
    assert [(one.guarantee, one.n) for one in found.guarantees if one.guarantee == "hops"] == [
        ("hops", None), ("hops", 64), ("hops", 4096),
    ]  # fmt: skip
    assert "the hop diameter, at n = 64: 5" in reader.text
    assert "the hop diameter, at n = 4,096: 273" in reader.text


def test_what_relations_do_not_tell_is_counted_in_the_picture() -> None:
    found, reader = made("causal & (window(4) | random(2))", n=512, drawn=64)
    assert found.growth.n == 64
    counts = found.reach["may"].within(1).sum(1)
    assert found.growth.largest[1] == counts.max()
    assert found.growth.mean[1] == pytest.approx(counts.mean())
    assert "mean over the queries" in reader.text


def test_sizes_beyond_the_picture_are_pointed_out() -> None:
    assert "show from about n = 16,384" in made("mistral")[1].text
    assert "show from about" not in made("causal & window(16)")[1].text


def test_layers_and_heads_can_be_chosen() -> None:
    found, reader = made("layers((causal & window(4)) + heads(self + causal))", drawn=32)
    options = [member.label for member in found.members]
    assert len(options) == 3
    assert all(option in reader.text for option in options)
    assert "the hop diameter from any starting layer" in reader.text
    assert "the hop diameter from any starting layer" not in made("causal", drawn=32)[1].text
    many, reader = made("heads(" + " + ".join(f"window({i})" for i in range(1, 20)) + ")", drawn=32)
    assert len(many.pictures) == 12
    assert "and 7 more" in reader.text


def test_verdicts_and_their_witnesses() -> None:
    found, reader = made("causal & window(8, dilation=4)", drawn=64, n=256)
    statuses = [value for tag, name, value in reader.attributes if tag == "span" and name == "class" and "badge" in value]
    assert statuses == [f"badge {one.verdict.status}" for one in found.guarantees]
    buttons = [int(value) for tag, name, value in reader.attributes if name == "data-witness"]
    assert buttons == list(range(len(reader.data["witnesses"])))
    cuts = [one for one in reader.data["witnesses"] if "runs" in one and one["n"] == 64]
    assert cuts
    assert all(one["q"] % 4 != one["k"] % 4 for one in cuts)
    assert "Show the cut (1, 0)" in reader.text
    assert "never reached" in reader.text


def test_what_of_a_verdict_is_drawn() -> None:
    pair = Pair(9, 5, 1)
    way, cut = Way(9, (1, 0), (5, 3, 1)), ClosedSet(9, ((1, 7, 2),), 5, 2)
    assert witnesses(Verdict("refuted", "", "", pair, "layer 1")) == [{"n": 9, "q": 5, "k": 1, "where": "layer 1"}]
    both = witnesses(Verdict("proved", "", "", pair, certificate=Joint((way, cut, Chain(None, 5, (), (), 2)))))
    assert [(one["q"], one["k"]) for one in both] == [(5, 1), (5, 2)]
    assert both[0]["positions"] == (5, 3, 1)
    assert both[1]["runs"] == ((1, 7, 2),)
    assert witnesses(Verdict("proved", "", "", certificate=Chain(9, 5, (), (), 2))) == [{"n": 9, "q": 5, "k": 2, "where": ""}]
    assert witnesses(proved("", "")) == []


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (proved("", "", value=1_200), "1,200"),
        (Verdict("refuted", "", "", value=float("inf")), "infinite"),
        (bounded("", 2, 5, ""), "2 to 5"),
        (bounded("", 2, None, ""), "at least 2"),
        (bounded("", 2, float("inf"), ""), "at least 2"),
        (bounded("", None, 3, ""), "0 to 3"),
        (estimated("", 4, ""), "about 4"),
        (unknown("", ""), "unknown"),
    ],
)
def test_numbers_in_short(verdict: Verdict, words: str) -> None:
    assert number(verdict) == words
    assert Known("hops", 8, verdict).headline == f"the hop diameter, at n = 8: {words}"


def test_charts() -> None:
    drawn = curve([("largest", [1, 3, 4]), ("mean", [1, 2, 2.5])], 4, "layers")
    assert len(re.findall(r'class="line', drawn)) == 2
    Reader(drawn)
    bars = histogram([(0, 9, 5), (20, 29, 10)], "keys")
    boxes = [
        {a: float(v) for a, v in re.findall(r'(\w+)="([\d.]+)"', bar)} for bar in re.findall(r'<rect class="bar"[^>]*>', bars)
    ]
    assert boxes[1]["height"] == pytest.approx(2 * boxes[0]["height"], abs=0.02)
    assert boxes[1]["x"] - boxes[0]["x"] == pytest.approx(2 * (boxes[0]["width"] + 1), abs=0.05)
    assert "20 to 29: 10" in bars
    Reader(histogram([(3, 3, 7)], "<keys>"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["report", *arguments], prog_name="patternc")


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "one.html"
    result = run("causal & window(8)", "-o", str(path), "--picture", "32", "--n", "1K")
    assert result.exit_code == 0
    assert result.stdout == f"wrote {path}\n"
    reader = Reader(path.read_text("utf-8"))
    assert reader.data["n"] == 32
    assert "Numbers are at n = 1,024" in reader.text
    assert "  patternc report" in run("--help").stdout
    printed = json.loads(run("gemma3", "--layer", "5", "-o", str(path), "--json").stdout)
    assert printed["file"] == str(path)
    assert printed["expression"] == "causal"
    assert {one["guarantee"] for one in printed["guarantees"]} >= {"causal", "hops", "hub"}
    assert printed["picture"]["reach"]["may"]["pairs"][-1] == printed["picture"]["target"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("causal", "--picture", "4K"), "2,048"),
        (("causal", "--n", "0"), "not a length"),
        (("layers(" + " + ".join(f"window({i})" for i in range(1, 19)) + ")",), "at most 16 different layers"),
        (("windw(3)",), "did you mean"),
    ],
)
def test_errors(arguments: tuple[str, ...], word: str, tmp_path: Path) -> None:
    path = tmp_path / "none.html"
    result = run(*arguments, "-o", str(path))
    assert result.exit_code == 2
    assert word in result.stderr
    assert not path.exists()
    assert "cannot write" in run("causal", "-o", str(tmp_path / "no" / "such.html")).stderr


def test_no_torch(tmp_path: Path) -> None:
    command = f"main(['report', 'bigbird', '-o', {str(tmp_path / 'a.html')!r}], standalone_mode=False)"
    code = f"import sys; from patternc.cli import main; {command}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
