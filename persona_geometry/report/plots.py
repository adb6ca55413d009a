"""A Plotly figure as a block of the page: its finding, a place to draw it, its data made inert, its numbers."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import plotly.graph_objects as go

from persona_geometry.report.html import Html, clean, el, script_json

# Plotly draws a subset of HTML in every text; only layout tags may pass, so that no text brings a link or an image.
_TAG = re.compile(r"<(?!/?(?:b|i|br|sub|sup|extra)\s*/?>)", re.IGNORECASE)
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


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """The figure as inert JSON values without title and template, which the page gives it."""
    found = json.loads(str(figure.to_json()))
    layout = {key: item for key, item in found.get("layout", {}).items() if key not in ("title", "template", "width")}
    layout.setdefault("height", 360)
    layout["margin"] = {"t": 12, "b": 48, "l": 12, "r": 12, **layout.get("margin", {})}
    return inert({"data": found.get("data", []), "layout": layout})


def finding_of(figure: go.Figure) -> str:
    """The figure's title as plain text."""
    title = figure.layout.title.text or "Figure"
    return unescape(re.sub(r"<br\s*/?>", " ", re.sub(r"</?(?:b|i|sub|sup)>", "", title)))


def plot(key: str, figure: go.Figure, *, alt: str, table: Html | None = None, note: Any = None) -> Html:
    """Build the block: the figure's title is its heading, `note` explains, `alt` is read aloud, `table` opens below."""
    data, finding = figure_json(figure), finding_of(figure)
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
