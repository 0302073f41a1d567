"""The report page in a real browser: what a reader does, and that nothing leaves the page. `make test-browser` runs it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import patternc as pc
from patternc.report.content import content
from patternc.report.page import page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: make test-browser")

COLOUR = """(c, [x, y]) => {
  const copy = new OffscreenCanvas(1, 1).getContext("2d");
  copy.drawImage(c, -x, -y);
  return [...copy.getImageData(0, 0, 1, 1).data];
}"""
LEFT, TOP = 40, 24  # the margins of a picture
SCHEDULE = "layers((causal & window(5)) + (causal & stride(8)))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Shown:
    """A page that is open, with all that it said and asked for."""

    def __init__(self, browser: Any, html: str, folder: Path, scheme: str = "light", wide: int = 1240):
        path = folder / "report.html"
        path.write_text(html, "utf-8")
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(color_scheme=scheme, viewport={"width": wide, "height": 900})
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")
        self.address = path.as_uri()

    def picture(self, which: str) -> str:
        return self.page.locator(which).evaluate("c => c.toDataURL()")

    def words(self) -> str:
        return self.page.locator("#said").inner_text()

    def deepen(self, layers: int) -> None:
        self.page.locator("#depth").fill(str(layers))

    def path(self, q: int, k: int) -> list[int]:
        self.page.locator("#q").fill(str(q))
        self.page.locator("#k").fill(str(k))
        self.page.get_by_role("button", name="Show the path").click()
        found = re.search(r"path: ([\d →]+)", self.words())
        return [int(position) for position in found[1].split(" → ")] if found else []

    def close(self) -> None:
        assert self.said == []
        assert self.requests == [self.address]
        self.page.close()


def opened(browser: Any, folder: Path, text: str, drawn: int = 64, **options: Any) -> Shown:
    return Shown(browser, page(content(pc.parse(text), n=256, drawn=drawn)), folder, **options)


def test_the_slider_spreads_the_reach(browser: Any, tmp_path: Path) -> None:
    shown = opened(browser, tmp_path, "causal & window(8)")
    mask, pictures, shares = shown.picture("#mask"), [], []
    for layers in range(10):
        shown.deepen(layers)
        assert shown.page.locator("#layers").inner_text() == f"{layers} of 9 layers"
        pictures.append(shown.picture("#reach"))
        shares.append(float(shown.page.locator("#share").inner_text().split(" %")[0]))
    assert len(set(pictures)) == 10
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (pytest.approx(100 * 2 / 65, abs=0.05), 100)
    assert shown.picture("#mask") == mask
    shown.close()


def test_a_pixel_is_a_pair(browser: Any, tmp_path: Path) -> None:
    shown = opened(browser, tmp_path, "causal & window(8)")
    side = shown.page.locator("#reach").evaluate("c => c.clientWidth") - LEFT - 6

    def at(which: str, q: int, k: int) -> list[int]:
        spot = [round(LEFT + (k + 0.5) * side / 64), round(TOP + (q + 0.5) * side / 64)]
        return shown.page.locator(which).evaluate(COLOUR, spot)

    mask = pc.parse("causal & window(8)").mask(64)
    blank = at("#mask", 0, 63)
    for q, k in ((40, 40), (40, 33), (40, 32), (40, 41), (63, 56), (63, 55)):
        assert (at("#mask", q, k) != blank) == mask[q, k]
    for layers, k in ((1, 56), (2, 49), (3, 42)):
        shown.deepen(layers)
        assert at("#reach", 63, k) != blank
        assert at("#reach", 63, k - 1) == blank
    shown.close()


def test_paths_are_real_and_shortest(browser: Any, tmp_path: Path) -> None:
    shown, p = opened(browser, tmp_path, SCHEDULE), pc.parse(SCHEDULE)
    masks = [p.layer(i).mask(64) for i in range(2)]
    away = {(q, k): int(p.distance(q, k, 64).value or 0) for q, k in ((63, 0), (63, 3), (30, 17), (9, 8))}
    before = shown.picture("#mask")
    for (q, k), layers in away.items():
        positions = shown.path(q, k)
        assert (positions[0], positions[-1], len(positions)) == (q, k, layers + 1)
        for i in range(layers):
            a, b = positions[i], positions[i + 1]
            assert a == b or masks[(layers - 1 - i) % 2][a, b]
        assert shown.picture("#mask") != before
    shown.page.locator("#clear").click()
    assert shown.picture("#mask") == before
    shown.close()


def test_a_witness_is_drawn(browser: Any, tmp_path: Path) -> None:
    shown = opened(browser, tmp_path, "causal & window(8, dilation=4)")
    before = shown.picture("#mask"), shown.picture("#reach")
    row = shown.page.locator("tr", has_text="at n = 64: infinite")
    row.get_by_role("button", name="Show the cut").click()
    assert "no layer leads from q = 1 out of the shaded keys, and k = 0 is not one" in shown.words()
    assert shown.picture("#mask") != before[0]
    assert shown.picture("#reach") != before[1]
    assert shown.path(63, 62) == []
    assert "never reached" in shown.words()
    shown.close()


def test_pointing_and_clicking(browser: Any, tmp_path: Path) -> None:
    shown = opened(browser, tmp_path, "causal & (window(4) | stride(8))")
    box = shown.page.locator("#mask").bounding_box()
    cell = (box["width"] - LEFT - 6) / 64

    def spot(q: int, k: int) -> tuple[float, float]:
        return box["x"] + LEFT + (k + 0.5) * cell, box["y"] + TOP + (q + 0.5) * cell

    shown.page.mouse.move(*spot(40, 32))
    assert shown.words() == "q = 40, k = 32: stride(8); reached through 1 layer"
    shown.page.mouse.click(*spot(40, 31))
    assert "q = 40, k = 31: not read; reached through 2 layers; path: 40 →" in shown.words()
    shown.page.locator("#clear").click()
    before = shown.picture("#mask")
    shown.page.mouse.move(*spot(32, 32))
    shown.page.mouse.wheel(0, -400)
    shown.page.wait_for_selector("#whole:visible")
    assert shown.picture("#mask") != before
    shown.page.locator("#whole").click()
    assert shown.picture("#mask") == before
    shown.close()


def test_layers_heads_and_inputs(browser: Any, tmp_path: Path) -> None:
    shown = opened(browser, tmp_path, "layers(heads(self + (causal & window(4))) + (causal & document(ids)))", drawn=32)
    before = shown.picture("#mask")
    shown.page.locator("#member").select_option("1")
    assert shown.picture("#mask") != before
    assert shown.page.locator("ul.legend[data-of-member='1']").is_visible()
    assert not shown.page.locator("ul.legend[data-of-member='0']").is_visible()
    shown.deepen(9)
    reach = shown.picture("#reach")
    shown.page.locator("#mode").select_option("must")
    shown.deepen(9)
    assert shown.picture("#reach") != reach
    shown.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("wide", [400, 1240])
def test_every_width_and_both_schemes(browser: Any, tmp_path: Path, scheme: str, wide: int) -> None:
    shown = opened(browser, tmp_path, "flagship", scheme=scheme, wide=wide)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= wide
    ground = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", ground))) > 3 * 128
    assert light == (scheme == "light")
    shown.close()


def test_hostile_text_stays_text(browser: Any, tmp_path: Path) -> None:
    evil = "</script><script>console.log('out')</script><img src=http://127.0.0.1:9/x onerror=console.log(1)>"
    p = pc.Pattern(pc.parse("where(k <= q and q - k < 5)").expression, evil)
    shown = Shown(browser, page(content(p, n=64, drawn=32)), tmp_path)
    assert shown.page.title() == f"{evil}: a patternc report"
    shown.close()
