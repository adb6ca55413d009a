"""The report in a real browser: nothing fetched, nothing on the console, every figure drawn, hostile text inert."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.persona_geometry.report.browser import CHROMIUM, DESKTOP, PHONE, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
SCREENS = [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")]
ALL = "document.querySelectorAll('.plot').length"
DRAWN = "document.querySelectorAll('.plot[data-drawn]').length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = Browser()
    yield found
    found.close()


WIDE = """Array.from(document.querySelectorAll('.plot')).filter((box) => {
  const edge = box.getBoundingClientRect();
  return Array.from(box.querySelectorAll('text')).some((text) => {
    const word = text.getBoundingClientRect();
    return word.width > 0 && (word.right > edge.right + 2 || word.left < edge.left - 2);
  });
}).map((box) => box.id)"""
EMPTY = "Array.from(document.querySelectorAll('.plot')).filter((b) => !b.querySelector('.main-svg')).map((b) => b.id)"


@pytest.mark.parametrize(("screen", "scheme"), SCREENS)
def test_everything_is_drawn_quietly_and_fits(browser: Browser, page: Path, screen: dict, scheme: str) -> None:
    browser.open(page, screen=screen, scheme=scheme, query="?draw=all")
    assert browser.script("window.drawAll().then((boxes) => boxes.length)") == browser.script(ALL) >= 10
    assert browser.script(EMPTY) == []
    assert browser.troubles() == []
    assert browser.requests() == []
    assert browser.script("document.querySelectorAll('.modebar a, .modebar-btn').length") == 0
    assert browser.script("document.documentElement.scrollWidth") == screen["width"]
    assert browser.script(WIDE) == []


def test_figures_wait_until_they_are_near(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.script("new Promise((done) => setTimeout(done, 400))")
    before = browser.script(DRAWN)
    assert 0 < before < browser.script(ALL)
    browser.script("document.getElementById('turns-off').scrollIntoView({behavior: 'instant'})")
    browser.script("new Promise((done) => setTimeout(done, 600))")
    assert before < browser.script(DRAWN) < browser.script(ALL)
    assert browser.script("Boolean(document.querySelector('#treatments-plot[data-drawn]'))")
    browser.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)  # paper gets them all
    assert browser.script(DRAWN) >= browser.script(ALL)


HOVER = """window.drawAll().then(() => {
  const box = document.getElementById('map-plot');
  const hostile = (text) => text.includes('img');
  const curve = box.data.findIndex((trace) => Array.isArray(trace.text) && trace.text.some(hostile));
  Plotly.Fx.hover(box, [{curveNumber: curve, pointNumber: box.data[curve].text.findIndex(hostile)}]);
  const layer = box.querySelector('.hoverlayer');
  return [layer.textContent, layer.querySelectorAll('img, a').length];
})"""


def test_hostile_text_stays_text(browser: Browser, page: Path) -> None:
    browser.open(page, query="?draw=all")
    said, live = browser.script(HOVER)
    assert "<img src=x" in said
    assert live == 0
    assert "owned" not in browser.script("document.title")
    bad = "document.querySelectorAll('main img, main script:not([type]), main iframe, main object, main form').length"
    assert browser.script(bad) == 0
    assert browser.script("document.querySelectorAll('main a[href^=javascript], main svg a').length") == 0
    assert "<script>alert(1)</script>" in browser.script("document.getElementById('where').textContent")
    assert browser.troubles() == []


def test_colours_follow_the_reader_and_paper_is_white(browser: Browser, page: Path) -> None:
    fill = "getComputedStyle(document.querySelector('#rates-out-of-domain-misaligned-plot .point')).fill"
    browser.open(page, scheme="light")
    assert browser.script(f"window.drawAll().then(() => {fill})") == "rgb(0, 114, 178)"
    light = browser.script("getComputedStyle(document.body).backgroundColor")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.script(f"new Promise((go) => setTimeout(go, 300)).then(() => {fill})") != "rgb(0, 114, 178)"
    assert browser.script("getComputedStyle(document.body).backgroundColor") != light
    browser.script(f"window.addEventListener('beforeprint', () => {{ window.inked = {fill}; }}); true")
    browser.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
    assert browser.script("window.inked") == "rgb(0, 114, 178)"
    assert not browser.script("document.documentElement.classList.contains('printing')")


def test_numbers_stand_without_scripts(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    names = {node.get("name", {}).get("value", "") for node in tree}
    assert "Broadly misaligned" in " ".join(names)
    assert "The numbers" in names
    assert not any(
        node.get("role", {}).get("value") == "image" and "out of domain" in str(node).lower() for node in tree
    )
