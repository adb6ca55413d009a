"""A Plotly figure as a block of the page: its finding, a place to draw it, its data made inert, its numbers."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import plotly.graph_objects as go

from persona_geometry.report.html import Html, clean, el, script_json
from persona_geometry.report.wording import tied

# Plotly draws a subset of HTML in every text; only layout tags may pass, so that no text brings a link or an image.
_TAG = re.compile(r"<(?!/?(?:b|i|br|sub|sup|extra)\s*/?>)", re.IGNORECASE)
ROOM = 36  # pixels above a figure: enough for a legend or column heads
WEBGL_ABOVE = 4_000  # points of one trace
_BULKY = frozenset({"bdata", "dtype", "shape"})


def inert(value: Any) -> Any:
    """Copy a figure's JSON with every text made harmless."""
    if isinstance(value, str):
        return _TAG.sub("&lt;", clean(value))
    if isinstance(value, list):
        return [inert(item) for item in value]
    if isinstance(value, dict):
        return {key: item if key in _BULKY else inert(item) for key, item in value.items()}
    return value


def escape_plotly(text: object) -> str:
    """Escape text for Plotly's labels and hover, which read `<`, `>` and `&` as markup."""
    return clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _drawn(trace: Any) -> str:
    """The kind of a trace; a small cloud needs no WebGL, whose contexts are few and which some machines lack."""
    return "scatter" if trace.type == "scattergl" and len(trace.x) <= WEBGL_ABOVE else trace.type


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """The figure as inert JSON values without title and template, which the page gives it."""
    found = json.loads(str(figure.to_json()))
    layout = {key: item for key, item in found.get("layout", {}).items() if key not in ("title", "template", "width")}
    layout.setdefault("height", 360)
    if layout.get("margin", {}).get("t", 0) > ROOM:  # that was for the title, which stands above as a heading
        layout["margin"]["t"] = ROOM
    data = [item | {"type": _drawn(trace)} for item, trace in zip(found["data"], figure.data, strict=True)]
    return inert({"data": data, "layout": layout})


def finding_of(figure: go.Figure) -> str:
    """The figure's title as plain text, with a space before each percent sign."""
    title = figure.layout.title.text or "Figure"
    lines = re.sub(r"(?<=[\w)\]])<br\s*/?>", ": ", title)
    return tied(unescape(re.sub(r"</?(?:b|i|sub|sup)>", "", re.sub(r"\s*<br\s*/?>", " ", lines))))


def plot(
    key: str, figure: go.Figure, *, alt: str, table: Html | None = None, note: Any = None, finding: str | None = None
) -> Html:
    """Build the block: `finding` (or the figure's title) is its heading, `note` explains it, `table` opens below it.

    `alt` follows the heading where the figure is read aloud.
    """
    data, finding = figure_json(figure), finding or finding_of(figure)
    caption = el("figcaption", el("h3", finding), el("p", note, class_="note") if note else None)
    place = el(
        "div",
        id=f"{key}-plot",
        class_="plot",
        role="img",
        aria_label=f"{finding}. {alt}",
        style=f"height:{data['layout']['height']}px",
    )
    source = el("script", script_json(data), type="application/json", id=f"{key}-plot-data")
    numbers = el("details", el("summary", "The numbers"), table) if table else None
    return el("figure", caption, place, source, numbers, class_="chart", id=key)
