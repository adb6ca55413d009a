"""Latents: what each does when it is taken out or put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_geometry.report.figures.common import canvas, label, marker, percent_axis, rows_axis
from persona_geometry.report.theming import LIGHT
from persona_geometry.report.wording import known, percent, points


def causal_finding(features: Sequence[Mapping[str, Any]]) -> str:
    """The latent whose removal repairs most, as a share of the excess, and what it does when put in."""
    repaired = [f for f in features if known(f.get("repair"))]
    if not repaired:
        induced = [f for f in features if known(f.get("induce"))]
        best = max(induced, key=lambda f: f["induce"])
        return f"Latent {best['latent']}, put into the base, adds {points(best['induce']).removeprefix('+')}"
    best = max(repaired, key=lambda f: f["repair"])
    tail = (
        f"; put into the base it adds {points(best['induce']).removeprefix('+')}" if known(best.get("induce")) else ""
    )
    return f"Taking out latent {best['latent']} alone removes {percent(best['repair'])} of the excess{tail}"


def _panel(figure: go.Figure, features: Sequence[Mapping[str, Any]], key: str, col: int) -> None:
    word, kind, say = ("taken out", "chosen", percent) if key == "repair" else ("put in", "misaligned", points)
    values = [float(f[key]) if known(f.get(key)) else None for f in features]
    found = [value for value in values if value is not None]
    low, high = min([0.0, *(value * 1.08 for value in found)]), max([0.1, *(value * 1.08 for value in found)])
    for place, value in enumerate(values):
        if value is not None:
            figure.add_shape(
                type="line", x0=0, x1=value, y0=place, y1=place, line={"color": LIGHT[kind], "width": 2}, row=1, col=col
            )
    figure.add_scatter(
        x=values,
        y=list(range(len(features))),
        mode="markers",
        marker=marker(kind),
        cliponaxis=False,
        text=[f"latent {f['latent']}, {word}: {say(f.get(key))}" for f in features],
        hovertemplate="%{text}<extra></extra>",
        row=1,
        col=col,
    )
    title = "% of the excess removed" if key == "repair" else "points added"
    figure.update_xaxes(
        {**percent_axis(title, low, high), "zeroline": True, "zerolinecolor": LIGHT["line"]}, row=1, col=col
    )


def causal_figure(features: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Per latent: what taking it out of the tuned model repairs (left), what putting it into the base induces (right).

    `repair` is the share of the excess that goes, `induce` the rise of the base's misaligned share.
    """
    heads = ("taken out of tuned", "put into base")
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.07)
    figure.update_layout(
        canvas(
            causal_finding(features), height=86 + 32 * len(features), margin={"l": 4, "r": 16, "t": 30, "b": 46}
        ).layout
    )
    for col, (key, head) in enumerate(zip(("repair", "induce"), heads, strict=True), start=1):
        _panel(figure, features, key, col)
        figure.add_annotation(
            label(0, 1, head, xref="x domain", yref="y domain", yanchor="bottom", yshift=6), row=1, col=col
        )
    axis = rows_axis([str(f["latent"]) for f in features])
    figure.update_yaxes(axis, row=1, col=1).update_yaxes({**axis, "showticklabels": False}, row=1, col=2)
    return figure.update_yaxes(title={"text": "latent"}, row=1, col=1)
