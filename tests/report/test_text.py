"""The mask in a terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import patternc as pc
from patternc.report.colours import PALETTE
from patternc.report.text import mask_text

GOLDEN = """\
   k = 0 .. 11
 0 A · · · │· · · · │· · · ·
 1 A A · · │· · · · │· · · ·
 2 A A A · │· · · · │· · · ·
 3 B A A A │· · · · │· · · ·
   ────────┼────────┼────────
 4 B d A A │A · · · │· · · ·
 5 B C d A │A A · · │· · · ·
 6 B d C d │A A A · │· · · ·
 7 B d d C │d A A A │· · · ·
   ────────┼────────┼────────
 8 B d d d │C d A A │A · · ·
 9 B C d d │d C d A │A A · ·
10 B d C d │d d C d │A A A ·
11 B d d C │d d d C │d A A A
A window(3)
B sinks(1)
C stride(4)
d layout(t, 2) (may, at run time)
tiles of 4: 0 full, 6 partial, 3 empty of 9"""


def test_every_pair() -> None:
    p = pc.parse("causal & (window(3) | sinks(1) | stride(4) | layout(t, 2))")
    assert mask_text(p, 12, tiles=4).plain == GOLDEN


GOLDEN_CELLS = """\
     k = 0 .. 4095
   0 ▓░
 512 ██▓░
1024 ▓▓██▓░
1536 ▓ ░▓██▓░
2048 ▓   ░▓██▓░
2560 ▓     ░▓██▓░
3072 ▓       ░▓██▓░
3584 ▓         ░▓██▓░
window(1024)
sinks(200)
a cell is 512 queries
by 256 keys
· under 5% held, ░
under 1/3, ▒ under
2/3, ▓ less than all,
█ all"""


def test_cells_of_many_pairs() -> None:
    assert mask_text(pc.parse("causal & (window(1024) | sinks(200))"), 4096, width=22).plain == GOLDEN_CELLS


def test_half_blocks_draw_two_rows_a_line() -> None:
    drawn = mask_text(pc.parse("causal & (window(2) | stride(4))"), 8, width=12, colours=True).plain.splitlines()
    assert drawn[1:5] == ["0 ▀▄", "2  ▀▀▄", "4 ▀▄ ▀▀▄", "6   ▀▄ ▀▀▄"]


@pytest.mark.parametrize("width", [12, 45, 200])
@pytest.mark.parametrize("text", ["flagship", "bigbird", "none"])
@pytest.mark.parametrize("n", [1, 2, 17, 64, 5000])
def test_the_mask_fits_the_width(text: str, n: int, width: int) -> None:
    for colours in (False, True):
        lines = mask_text(pc.parse(text), n, width=width, colours=colours).plain.splitlines()
        assert max(map(len, lines)) <= max(width, 12)
        assert len(lines) > 2


def rendered(text: str, n: int, width: int) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", width=width)
    console.print(mask_text(pc.parse(text), n, width=width, colours=True), soft_wrap=True)
    return out.getvalue()


def test_parts_are_coloured_and_dimness_does_not_leak() -> None:
    drawn = rendered("causal & (window(2) | stride(4))", 8, 60)
    for part in (0, 1):
        red, green, blue = (int(PALETTE[part][i : i + 2], 16) for i in (1, 3, 5))
        assert f"\x1b[38;2;{red};{green};{blue}m██" in drawn
    assert "\x1b[2;38" not in drawn


STATIC = st.sampled_from(
    ["causal", "self", "window(3)", "stride(3)", "chunk(4)", "sinks(2)", "none", "topk(s, 2)", "random(2)"]
)
MIXED = st.recursive(
    STATIC, lambda p: st.tuples(p, st.sampled_from("|&"), p).map(lambda t: f"({t[0]} {t[1]} {t[2]})"), max_leaves=5
)


@settings(max_examples=60, deadline=None)
@given(MIXED, st.integers(1, 40), st.integers(1, 120), st.none() | st.integers(1, 9), st.booleans())
def test_nothing_raises(text: str, n: int, width: int, tiles: int | None, colours: bool) -> None:
    assert mask_text(pc.parse(text), n, width=width, tiles=tiles, colours=colours).plain


@pytest.mark.parametrize("name", pc.presets())
def test_presets(name: str) -> None:
    assert mask_text(pc.preset(name), 3000, width=60, layer=3, head=7, tiles=128).plain
