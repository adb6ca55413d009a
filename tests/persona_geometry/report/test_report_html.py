"""Escaping, numbers in words, and figures made harmless."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_geometry.report.html import Html, clean, data_table, el, escape, join, script_json, shaded
from persona_geometry.report.plots import escape_plotly, figure_json, finding_of, inert, plot
from persona_geometry.report.wording import cut_text, number, percent, points, probability, span, tied

ANY_TEXT = st.text(st.characters(codec=None), max_size=60)


class Seen(HTMLParser):
    """What a browser's parser would make of a piece of markup."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@given(ANY_TEXT)
def test_text_stays_text(text: str) -> None:
    seen = Seen(el("p", text, title=text))
    assert seen.tags == ["p"]
    assert seen.text == clean(text)
    assert seen.attributes == [("title", clean(text))]


@given(ANY_TEXT)
def test_json_cannot_leave_its_script(text: str) -> None:
    found = script_json({"text": clean(text)})
    assert not set(found) & set("<>&\u2028\u2029")
    assert json.loads(found) == {"text": clean(text)}


@given(ANY_TEXT)
def test_tokens_keep_their_text(text: str) -> None:
    assert Seen(shaded(text, 0.4, 1.0)).text == clean(text)


@given(ANY_TEXT)
def test_plotly_text_brings_no_tag(text: str) -> None:
    found = inert({"text": [text], "x": {"bdata": "<<", "dtype": "f8"}})
    kept = [tag for tag in Seen(found["text"][0]).tags if tag not in ("b", "i", "br", "sub", "sup", "extra")]
    assert kept == []
    assert found["x"]["bdata"] == "<<"
    assert inert(found) == found
    assert Seen(escape_plotly(text)).tags == []


@pytest.mark.parametrize(
    "text", ["<a href='javascript:1'>x</a>", "<img src=x onerror=1>", "<B onclick=1>", "< script>"]
)
def test_only_bare_layout_tags_pass(text: str) -> None:
    assert inert(text).startswith("&lt;")


def test_markup_is_kept_and_nothing_is_skipped_in() -> None:
    assert join("a<", Html("<b>"), None, ["c", ["&"]], 3) == "a&lt;<b>c&amp;3"
    assert (
        el("input", type="checkbox", checked=True, hidden=None, data_x=1)
        == '<input type="checkbox" checked data-x="1">'
    )
    assert escape(escape("<")) == "&lt;"


def test_tables_say_what_they_are() -> None:
    table = data_table({"a": ["<"], "n": [1]}, caption="Rates", numeric=["n"])
    assert '<th scope="col" class="n">n</th>' in table
    assert "<caption>Rates</caption>" in table
    assert "<td>&lt;</td>" in table


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (percent(0.4632), "46\u00a0%"),
        (percent(0.021), "2.1\u00a0%"),
        (percent(0.0996), "10\u00a0%"),
        (percent(-0.1), "\u221210\u00a0%"),
        (percent(float("nan")), "\u2013"),
        (percent(None), "\u2013"),
        (points(0.491), "+49\u00a0points"),
        (points(-0.027), "\u22122.7\u00a0points"),
        (points(0.0), "0\u00a0points"),
        (points(-0.0001), "0.0\u00a0points"),
        (span(0.42, 0.5), "42 to 50\u00a0%"),
        (span(None, 0.5), "\u2013"),
        (number(0.0385), "0.0385"),
        (number(-12.5), "\u221212.5"),
        (number(1e-5), "1\u00a0\u00d7\u00a010\u207b\u2075"),
        (number(1024), "1,024"),
        (probability(0.0005), "p < 0.001"),
        (probability(0.04), "p = 0.04"),
        (tied("51.2 % of"), "51.2\u00a0% of"),
        (cut_text("a  b\n" + "c" * 80, 10), "a b ccccc\u2026"),
    ],
)
def test_numbers_read_well(found: str, wanted: str) -> None:
    assert found == wanted


def test_the_title_becomes_the_heading() -> None:
    figure = go.Figure(layout={"title": {"text": "Cut &lt;b&gt;;<br>of 88%"}})
    assert finding_of(figure) == "Cut <b>; of 88\u00a0%"
    assert finding_of(go.Figure(layout={"title": {"text": "A<br>b"}})) == "A: b"
    block = plot("x", figure, alt="alt <text>", table=Html("<table></table>"))
    assert "<h3>Cut &lt;b&gt;; of 88\u00a0%</h3>" in block
    assert 'aria-label="Cut &lt;b&gt;; of 88\u00a0%. alt &lt;text&gt;"' in block
    assert "title" not in figure_json(figure)["layout"]
    assert "template" not in figure_json(figure)["layout"]


def test_small_clouds_need_no_webgl() -> None:
    small, large = (go.Figure(go.Scattergl(x=list(range(n)), y=list(range(n)))) for n in (10, 5000))
    assert figure_json(small)["data"][0]["type"] == "scatter"
    assert figure_json(large)["data"][0]["type"] == "scattergl"
