"""What the report's figures share: the canvas, the marks of each meaning, axes in percent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from persona_geometry.report.theming import LIGHT, template
from probes.theme import MARKERS

GLYPH = {"aligned": "\u25cf", "misaligned": "\u25c6", "control": "\u25cb", "chosen": "\u2605"}
MEANING = {
    "base": "aligned",
    "tuned": "misaligned",
    "tuned_ablated": "chosen",
    "base_steered": "chosen",
    "realigned": "chosen",
    "tuned_latents": "chosen",
}
SIZE = {"aligned": 10, "misaligned": 11, "control": 9, "chosen": 13, "shared": 9, "harmful": 11}


def meaning(model: str) -> str:
    """Which of the four meanings a model's marks carry; models not named are controls."""
    return MEANING.get(model, "control")


def canvas(title: str, *, height: int, narrow: dict[str, Any] | None = None, **layout: Any) -> go.Figure:
    """An empty figure under the theme; `narrow` is what changes on a phone ({"layout": .., "data": {index: ..}})."""
    figure = go.Figure(
        layout=go.Layout(template=template(), height=height, title={"text": title}, **{"showlegend": False, **layout})
    )
    if narrow:
        figure.update_layout(meta={"narrow": narrow})
    return figure


def marker(kind: str, **more: Any) -> dict[str, Any]:
    """The mark of one meaning: shape and colour."""
    shape = {"symbol": MARKERS[kind], "color": LIGHT[kind], "size": SIZE[kind]}
    if kind == "control":  # an open ring that hides the line behind it
        shape |= {
            "symbol": MARKERS[kind].removesuffix("-open"),
            "color": LIGHT["paper"],
            "line": {"color": LIGHT[kind], "width": 2},
        }
    return shape | more


def interval(values: Any, low: Any, high: Any, *, colour: str, thickness: float | int = 2.5) -> dict[str, Any]:
    """Bars from `low` to `high` around `values` (arrays of equal length), without end caps."""
    values, low, high = (np.asarray(item, dtype=float) for item in (values, low, high))
    bars = {"array": high - values, "arrayminus": values - low}
    return {"type": "data", "symmetric": False, "color": colour, "width": 0, "thickness": thickness, **bars}


def label(x: Any, y: Any, text: str, *, kind: str = "ink", **more: Any) -> dict[str, Any]:
    """A direct label: an annotation without an arrow."""
    colour = LIGHT["soft"] if kind == "control" else LIGHT.get(f"{kind}-text", LIGHT[kind])
    return {
        "x": x,
        "y": y,
        "text": text,
        "showarrow": False,
        "font": {"color": colour, "size": 12},
        "xanchor": "left",
        **more,
    }


def percent_axis(
    title: str | None, low: float | int = 0.0, high: float | int = 1.0, *, most: int = 6
) -> dict[str, Any]:
    """An axis over shares that reads in percent, with at most about `most` ticks."""
    step = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / step <= most - 0.95), 0.5)
    ticks = [
        round(i * step, 4)
        for i in range(round(low / step) - 1, round(high / step) + 2)
        if low - 1e-9 <= i * step <= high + 1e-9
    ]
    return {
        "range": [low, high],
        "tickvals": ticks,
        "ticktext": [f"{100 * tick:.0f}" for tick in ticks],
        "title": {"text": title},
    }


def ceiling(value: float | int) -> float:
    """The next tenth above a share, at most 1."""
    return min(1.0, math.ceil(value * 10 + 0.2) / 10)


def rows_axis(labels: Sequence[str]) -> dict[str, Any]:
    """A quiet vertical axis with one labelled row each, the first on top."""
    return {
        "tickvals": list(range(len(labels))),
        "ticktext": list(labels),
        "range": [len(labels) - 0.5, -0.5],
        "showline": False,
        "ticks": "outside",
        "ticklen": 8,
        "tickcolor": "rgba(0,0,0,0)",
        "tickfont": {"color": LIGHT["ink"], "size": 13},
    }


def tracks(figure: go.Figure, count: int, low: float | int, high: float | int, **where: Any) -> None:
    """A faint line for each row, so that a far dot is read with its label."""
    for place in range(count):
        figure.add_shape(
            type="line",
            x0=low,
            x1=high,
            y0=place,
            y1=place,
            line={"color": LIGHT["line"], "width": 1},
            layer="below",
            **where,
        )


def value_column(
    figure: go.Figure, texts: Sequence[str], *, shift: float | int = 0, kind: str = "ink", head: str | None = None
) -> None:
    """Figures set right of the plot, one a row; the right margin must leave room for them."""
    for place, text in enumerate(texts):
        figure.add_annotation(
            label(
                1,
                place,
                text,
                kind=kind,
                xref="paper",
                xshift=52 + shift,
                xanchor="right",
                font={"size": 13, "color": LIGHT["soft" if kind == "control" else kind]},
            )
        )
    if head:
        figure.add_annotation(
            label(1, -0.5, head, kind="control", xref="paper", xshift=52 + shift, xanchor="right", yanchor="bottom")
        )


def sizes(counts: Iterable[float]) -> str:
    """The numbers behind the points, as "n = 600 each" or "n = 200 to 600"."""
    found = sorted({int(count) for count in counts})
    if not found:
        return "n unknown"
    return f"n\u00a0=\u00a0{found[0]:,} each" if len(found) == 1 else f"n\u00a0=\u00a0{found[0]:,} to {found[-1]:,}"
