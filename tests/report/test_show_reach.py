"""What several layers reach: distances against a search by hand, and their pictures in the terminal, in files and as data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.cli import main
from patternc.report import reached as module
from patternc.report.colours import PALETTE, ramp
from patternc.report.reached import Reached, distances, layered
from patternc.report.svg import mask_svg
from patternc.report.text import mask_text

STATIC = st.sampled_from(["causal", "self", "window(3)", "stride(3)", "sinks(1)", "none", "columns([0, -1])", "window(2)"])
LEAVES = STATIC | st.sampled_from(["random(1)", "heads(window(2) + stride(4))"])
MIXED = st.recursive(
    LEAVES, lambda p: st.tuples(p, st.sampled_from("|&"), p).map(lambda t: f"({t[0]} {t[1]} {t[2]})"), max_leaves=4
)
AT_RUN_TIME = ["document(ids)", "topk(s, 2)", "causal & document(ids)", "window(2) | topk(s, 1)", "layers(self + topk(s, 3))"]
SCHEDULES = MIXED | st.lists(MIXED, min_size=2, max_size=3).map(lambda found: f"layers({' + '.join(found)})")


def searched(layers: Sequence[Sequence[np.ndarray]], depth: int) -> np.ndarray:
    """Distances by sets of keys, layer by layer; ``layers`` holds the masks of the heads of each layer, bottom first."""
    n = len(layers[0][0])
    fields = [{q} for q in range(n)]
    found = np.full((n, n), -1)
    np.fill_diagonal(found, 0)
    for done in range(depth):
        heads = layers[done % len(layers)]
        fields = [fields[q].union(*(fields[k] for mask in heads for k in np.flatnonzero(mask[q]))) for q in range(n)]
        for q, field in enumerate(fields):
            for k in field:
                if found[q, k] < 0:
                    found[q, k] = done + 1
    return found


def masks(p: pc.Pattern, n: int, first: int = 0) -> list[list[np.ndarray]]:
    layers = [p.layer(first + i) for i in range(p.layers)]
    return [[layer.mask(n, head=head) for head in range(layer.heads)] for layer in layers]


@settings(max_examples=80, deadline=None)
@given(SCHEDULES, st.integers(1, 14), st.integers(0, 12), st.integers(0, 4))
def test_distances_are_those_of_a_search(text: str, n: int, depth: int, first: int) -> None:
    p = pc.parse(text)
    one = layered(p, n, first)
    assert one.is_settled
    found = distances(one.may, depth)
    wanted = searched(masks(p, n, first), depth)
    np.testing.assert_array_equal(found.of, wanted)
    assert found.pairs[-1] == (wanted >= 0).sum()
    if found.closed:
        np.testing.assert_array_equal(searched(masks(p, n, first), depth + 2 * n), wanted)
        assert found.layers == wanted.max()
    codes = Reached(p, n, depth, first).codes()
    np.testing.assert_array_equal(codes > 0, wanted >= 0)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(AT_RUN_TIME), st.integers(1, 10), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_what_is_sure_and_what_may_be_bound_every_run(text: str, n: int, depth: int, seed: int) -> None:
    p, rng = pc.parse(text), np.random.default_rng(seed)
    made = {"ids": np.sort(rng.integers(0, 3, n)), "s": rng.standard_normal((n, n))}
    layers = [p.layer(i) for i in range(p.layers)]
    run = searched([[one.mask(n, **{name: made[name] for name in one.inputs})] for one in layers], depth) >= 0
    codes = Reached(p, n, depth).codes()
    assert not ((codes > 0) & ~run).any()
    assert not (run & (codes == 0)).any()


def test_residues_that_never_meet() -> None:
    found = distances(layered(pc.parse("causal & window(4, dilation=4)"), 40).may, 100)
    q, k = np.indices((40, 40))
    np.testing.assert_array_equal(found.of >= 0, (k <= q) & ((q - k) % 4 == 0))
    assert found.closed
    assert found.layers == 3


def test_a_layer_that_adds_nothing_does_not_end_the_search() -> None:
    found = distances(layered(pc.parse("layers(4 * none + causal)"), 6).may, 100)
    assert (found.of[np.tril_indices(6, -1)] == 5).all()
    assert (found.layers, found.closed) == (5, True)


@pytest.mark.parametrize("layers", [*range(40), 100, 1_000, 1_000_000])
def test_classes_are_in_order(layers: int) -> None:
    drawn = Reached(pc.parse("causal & window(2)"), 64, layers)
    ends = drawn._ends
    assert ends[-1] == min(layers, 63), "no class is for more layers than any pair needs"
    assert all(a < b for a, b in pairwise(ends))
    assert len(drawn.labels) == len(drawn.colours) == len(ends) <= len(PALETTE)
    assert len(set(drawn.labels)) == len(ends)
    of = np.tril(np.subtract.outer(np.arange(64), np.arange(64)))
    assert (drawn.codes() > 0).sum() == (np.tril(np.ones((64, 64))) * (of <= layers)).sum()


def test_every_layer_reaches_more() -> None:
    p = pc.parse("layers((causal & window(3)) + (causal & stride(8)))")
    found = [Reached(p, 64, layers).codes() > 0 for layers in range(6)]
    assert all((a <= b).all() for a, b in pairwise(found))
    assert found[0].sum() == 64


def test_the_ramp_has_its_own_colours() -> None:
    for steps in (1, 2, 8, 129):
        assert len(set(ramp(steps))) == steps


GOLDEN = """\
  k = 0 .. 7
0 A · · · · · · ·
1 A A · · · · · ·
2 A A A · · · · ·
3 A B A A · · · ·
4 A C B A A · · ·
5 A · C B A A · ·
6 A · · C B A A ·
7 A · · · C B A A
A 1 layer
B 2 layers
C 3 layers"""


def test_text() -> None:
    assert mask_text(pc.parse("causal & (window(2) | sinks(1))"), 8, reach=3).plain == GOLDEN


def test_svg_is_the_same_picture() -> None:
    p, space = pc.parse("causal & (window(3) | topk(s, 1))"), "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(mask_svg(p, 24, reach=4))
    codes = np.zeros((24, 24), int)
    for group in root.iter(f"{space}g"):
        if "data-part" in group.attrib:
            part, sign = int(group.attrib["data-part"]), 1 if group.attrib["data-kind"] == "held" else -1
            assert group.attrib["fill"] == ramp(4)[part]
            for rect in group.iter(f"{space}rect"):
                x, y, width, height = (int(rect.attrib[a]) for a in ("x", "y", "width", "height"))
                codes[y : y + height, x : x + width] = sign * (part + 1)
    np.testing.assert_array_equal(codes, Reached(p, 24, 4).codes())
    assert {-1, 1, 2, 3, 4} <= set(codes.flatten().tolist())
    words = ["".join(text.itertext()) for text in root.iter(f"{space}text")]
    assert f"reach within 4 layers of {p}" in words
    assert "3 layers" in words


def test_cells_of_a_longer_sequence() -> None:
    cells = Reached(pc.parse("causal & window(9)"), 512, 16).cells(4, 4)
    assert cells.held[:, 40, 7:42].sum(0) == pytest.approx([0, 10 / 16, *[1.0] * 31, 10 / 16, 0])


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["show", *arguments], prog_name="patternc")


def test_the_command(tmp_path: Path) -> None:
    assert run("causal & (window(2) | sinks(1))", "--n", "8", "--reach", "3").stdout.rstrip("\n") == GOLDEN
    (found,) = json.loads(run("causal & window(3)", "--n", "8", "--reach", "2", "--json").stdout)
    assert found["reach"] == 2
    assert found["rows"][7] == {"held": [[3, 7]], "possible": []}
    schedule = "layers(self + causal)"
    rows = [
        json.loads(run(schedule, "--n", "4", "--reach", "1", "--layer", layer, "--json").stdout)[0]["rows"] for layer in "01"
    ]
    assert [row[3]["held"] for row in rows] == [[[3, 3]], [[0, 3]]]
    assert "reach" not in json.loads(run("causal", "--n", "4", "--json").stdout)[0]
    path = tmp_path / "reach.svg"
    assert run("causal & window(3)", "--reach", "2", "--svg", str(path)).exit_code == 0
    assert path.read_text() == mask_svg(pc.parse("causal & window(3)"), 64, reach=2)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--reach", "2", "--n", "4K"), "2,048"),
        (("--reach", "2", "--tiles", "8"), "--tiles"),
        (("--reach", "2", "--head", "1"), "--head"),
        (("--reach", "-1"), "-1"),
    ],
)
def test_errors(arguments: tuple[str, ...], word: str) -> None:
    result = run("causal & window(4)", *arguments)
    assert result.exit_code == 2
    assert word in result.stderr


def test_too_much_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WORK", 40 * 64**3)
    p = pc.parse("causal & window(2)")
    assert Reached(p, 64, 40).codes().any()
    with pytest.raises(ValueError, match="at most 40 layers"):
        Reached(p, 64, 41).codes()
    assert Reached(pc.parse("causal & window(3)"), 64, 1_000).codes().any()  # it ends before
    many = pc.parse("heads(" + " + ".join(f"window({i})" for i in range(1, 200)) + ")")
    with pytest.raises(ValueError, match="take a smaller n"):
        layered(many, 2_048)
