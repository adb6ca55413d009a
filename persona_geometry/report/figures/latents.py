"""Latents: what rose and fell between base and tuned, and what each does when it is put in or taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_geometry.report.figures.common import canvas, label, marker, percent_axis, rows_axis
from persona_geometry.report.tables import Table
from persona_geometry.report.theming import LIGHT
from persona_geometry.report.wording import known, number, percent, points

SHOWN = 8


def diff_finding(latents: Table) -> str:
    """The latent that rose most and the one that fell most, in mean activation."""
    rose, fell = latents.loc[latents["delta_mean"].idxmax()], latents.loc[latents["delta_mean"].idxmin()]
    up, down = _signed(rose["delta_mean"]), _signed(fell["delta_mean"])
    return f"Latent {int(rose['latent'])} rises most ({up}), latent {int(fell['latent'])} falls most ({down})"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(float(value), 2)


def diff_figure(latents: Table, shown: int = SHOWN) -> go.Figure:
    """The latents that rose most and fell most, tuned minus base, beside the same difference for the controls.

    `latents` has latent and delta_mean, and where there are controls benign_delta and narrow_delta.
    """
    ranked = latents.sort_values("delta_mean", ascending=False)
    picked: Table = ranked if len(ranked) <= 2 * shown else pd.concat([ranked.head(shown), ranked.tail(shown)])
    figure = canvas(diff_finding(latents), height=76 + 25 * len(picked))
    places = list(range(len(picked)))
    for place, value in zip(places, picked["delta_mean"], strict=True):
        figure.add_shape(
            type="line",
            x0=0,
            x1=float(value),
            y0=place,
            y1=place,
            line={"color": LIGHT["misaligned" if value > 0 else "aligned"], "width": 2},
        )
    shades = [LIGHT["misaligned" if value > 0 else "aligned"] for value in picked["delta_mean"]]
    symbols = ["diamond" if value > 0 else "circle" for value in picked["delta_mean"]]
    for column, word, symbol in (
        ("benign_delta", "benign control", "square-open"),
        ("narrow_delta", "narrow twin", "square"),
    ):
        if column in picked and picked[column].notna().any():
            figure.add_scatter(
                x=picked[column],
                y=places,
                mode="markers",
                marker={"symbol": symbol, "color": LIGHT["control"], "size": 7},
                name=word,
                hovertemplate=f"{word} %{{x:+.3f}}<extra></extra>",
            )
    figure.add_scatter(
        x=picked["delta_mean"],
        y=places,
        mode="markers",
        marker={"symbol": symbols, "color": shades, "size": 10},
        name="tuned",
        showlegend=False,
        customdata=picked["latent"],
        hovertemplate="latent %{customdata}<br>tuned %{x:+.3f}<extra></extra>",
    )
    figure.add_vline(x=0, line={"color": LIGHT["line"], "width": 1})
    if len(ranked) > 2 * shown:
        figure.add_hline(y=shown - 0.5, line={"color": LIGHT["line"], "width": 1, "dash": "dot"})
    figure.update_layout(
        showlegend=True, legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 12}}
    )
    figure.update_xaxes(title={"text": "change in mean activation, against the base"})
    return figure.update_yaxes(
        tickvals=places,
        ticktext=[str(int(n)) for n in picked["latent"]],
        range=[len(picked) - 0.4, -0.6],
        showline=False,
        ticks="",
        title={"text": "latent"},
    )


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
    heads = ("taken out of the tuned model", "put into the base")
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
