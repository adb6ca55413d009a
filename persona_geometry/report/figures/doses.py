"""Strength against misalignment and coherence, with the random band behind; and the curve over layers."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_geometry.report.figures.common import canvas, ceiling, label, marker, percent_axis, sizes
from persona_geometry.report.plots import escape_plotly
from persona_geometry.report.tables import Row, Table
from persona_geometry.report.theming import LIGHT, rgba
from persona_geometry.report.wording import percent, plain, points

BUDGET = 0.95  # the share of the untreated coherence that a dose must keep


def random_band(dose: Table, what: str) -> Table:
    """Mean and 5-95 % range of the random controls, by kind and strength.

    `dose` holds either one row per control, or one row per kind and strength whose low and high are that range already.
    """
    random = dose[dose["kind"] != "vector"]
    grouped = random.groupby(["kind", "strength"], sort=True)
    values = grouped[what]
    band = pd.DataFrame(
        {"mean": values.mean(), "low": values.quantile(0.05), "high": values.quantile(0.95), "controls": values.size()}
    )
    if what == "misaligned" and {"low", "high"} <= set(random.columns):
        alone = band["controls"] == 1
        for side in ("low", "high"):
            band[side] = band[side].mask(alone, grouped[side].first())
    if "n_controls" in random.columns:
        band["controls"] = grouped["n_controls"].sum()
    return band.reset_index()


def untreated(curve: Table) -> Row:
    """The row of the strength nearest to none."""
    return curve.loc[curve["strength"].abs().idxmin()]


def chosen_dose(curve: Table) -> Table:
    """The rows marked as chosen."""
    return curve[curve["chosen"].fillna(False).astype(bool)] if "chosen" in curve else curve.head(0)


def dose_finding(dose: Table, on: str) -> str:
    """What the chosen dose does, against no dose; both with their coherence."""
    curve = dose[dose["kind"] == "vector"]
    picked, none = chosen_dose(curve), untreated(curve)
    if picked.empty:
        low, high = curve["misaligned"].min(), curve["misaligned"].max()
        return f"Over the strengths tried, the {on} model gives {percent(low)} to {percent(high)} misaligned answers"
    at = picked.iloc[0]
    rates = f"{percent(none['misaligned'])} to {percent(at['misaligned'])}"
    verb = "takes misalignment from" if on == "tuned" else "put into the base takes misalignment from"
    return f"Strength {plain(at['strength'])} {verb} {rates}; coherence {points(at['coherent'] - none['coherent'])}"


def _band(figure: go.Figure, band: Table, row: int) -> None:
    for kind, part in band.groupby("kind"):
        word = escape_plotly(str(kind).replace("_", " "))
        hover = f"{word}<br>mean %{{y:.1%}}<extra></extra>"
        if len(part) == 1:
            spot = part.iloc[0]
            error = {
                "type": "data",
                "symmetric": False,
                "array": [spot["high"] - spot["mean"]],
                "arrayminus": [spot["mean"] - spot["low"]],
                "color": rgba("control", 0.5),
                "width": 0,
                "thickness": 7,
            }
            figure.add_scatter(
                x=[spot["strength"]],
                y=[spot["mean"]],
                mode="markers",
                marker=marker("control"),
                error_y=error,
                name=word,
                hovertemplate=hover,
                row=row,
                col=1,
            )
            continue
        x, edge = [*part["strength"], *part["strength"][::-1]], [*part["high"], *part["low"][::-1]]
        figure.add_scatter(
            x=x,
            y=edge,
            mode="lines",
            fill="toself",
            fillcolor=rgba("control", 0.17),
            line={"width": 0},
            hoverinfo="skip",
            row=row,
            col=1,
        )
        figure.add_scatter(
            x=part["strength"],
            y=part["mean"],
            mode="lines",
            line={"color": LIGHT["control"], "width": 1.2, "dash": "dot"},
            name=word,
            hovertemplate=hover,
            row=row,
            col=1,
        )


def _curve(figure: go.Figure, curve: Table, what: str, kind: str, row: int) -> None:
    error = None
    if what == "misaligned" and {"low", "high"} <= set(curve.columns):
        error = {
            "type": "data",
            "symmetric": False,
            "array": curve["high"] - curve[what],
            "arrayminus": curve[what] - curve["low"],
            "color": LIGHT[kind],
            "width": 0,
            "thickness": 1.5,
        }
    hover = f"strength %{{x}}<br>%{{y:.1%}} {what}<br>n = %{{customdata:,}}<extra></extra>"
    figure.add_scatter(
        x=curve["strength"],
        y=curve[what],
        mode="lines+markers",
        line={"color": LIGHT[kind], "width": 2},
        marker=marker(kind, size=8),
        error_y=error,
        customdata=curve["n"],
        hovertemplate=hover,
        name=what,
        cliponaxis=False,
        row=row,
        col=1,
    )
    picked = chosen_dose(curve)
    figure.add_scatter(
        x=picked["strength"],
        y=picked[what],
        mode="markers",
        marker=marker("chosen", size=15, line={"color": LIGHT["paper"], "width": 2}),
        hoverinfo="skip",
        cliponaxis=False,
        row=row,
        col=1,
    )


def dose_figure(dose: Table, *, on: str = "tuned", unit: str = "strength", budget: float = BUDGET) -> go.Figure:
    """Misaligned share (above) and coherence (below) against strength, both signs, for edits of the `on` model.

    `dose` has strength, kind ("vector" or a random control), on, misaligned, low, high, coherent, n, chosen.
    The shaded floor of the lower panel is the coherence budget: `budget` times the coherence at the strength nearest 0.
    """
    dose = dose[dose["on"] == on]
    curve = dose[dose["kind"] == "vector"].sort_values("strength")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.64, 0.36], vertical_spacing=0.08)
    figure.update_layout(
        canvas(escape_plotly(dose_finding(dose, on)), height=440, margin={"l": 4, "r": 12, "t": 26, "b": 46}).layout
    )
    floor = budget * float(untreated(curve)["coherent"])
    bottom = min(0.8, max(0.0, (min(dose["coherent"].min(), floor) * 10 - 0.2) // 1 / 10))
    bands = {what: random_band(dose, what) for what in ("misaligned", "coherent")}
    for row, (what, kind) in enumerate((("misaligned", "misaligned"), ("coherent", "aligned")), start=1):
        _band(figure, bands[what], row)
        _curve(figure, curve, what, kind, row)
    figure.add_hrect(y0=bottom, y1=floor, fillcolor=LIGHT["control"], opacity=0.12, line_width=0, row=2, col=1)
    _labels(figure, curve, bands["misaligned"])
    figure.add_annotation(
        label(
            curve["strength"].min(),
            bottom,
            f"below {percent(floor)}: outside the coherence budget",
            kind="control",
            yanchor="bottom",
        ),
        row=2,
        col=1,
    )
    top = ceiling(max(dose["misaligned"].max(), curve.get("high", curve["misaligned"]).max(), 0.1))
    figure.update_yaxes(percent_axis("% misaligned", 0, top), row=1, col=1)
    figure.update_yaxes(percent_axis("% coherent", bottom, 1.0, most=4), row=2, col=1)
    figure.update_xaxes(showline=False, ticks="", row=1, col=1)
    return figure.update_xaxes(title={"text": f"{escape_plotly(unit)} ({sizes(curve['n'])})"}, row=2, col=1)


def _labels(figure: go.Figure, curve: Table, band: Table) -> None:
    first, last = curve.iloc[0], curve.iloc[-1]
    start, side = (first, "left") if first["misaligned"] > last["misaligned"] else (last, "right")
    other = "right" if side == "left" else "left"
    figure.add_annotation(
        label(
            start["strength"],
            start["misaligned"],
            "the vector",
            kind="misaligned",
            xanchor=side,
            xshift=10 if side == "left" else -10,
            yshift=6 if side == "left" else 16,
        ),
        row=1,
        col=1,
    )
    if not band.empty:
        spot = band[band["strength"] == (band["strength"].max() if side == "left" else band["strength"].min())]
        count = int(band.groupby("kind")["controls"].max().sum())
        word = f"{count} random directions, 5\u201395 %"
        figure.add_annotation(
            label(
                float(spot["strength"].iloc[0]),
                float(spot["high"].max()),
                word,
                kind="control",
                xanchor=other,
                yshift=12,
            ),
            row=1,
            col=1,
        )
    for spot in chosen_dose(curve).itertuples():
        figure.add_vline(x=spot.strength, line={"color": LIGHT["chosen"], "width": 1, "dash": "dot"}, row="all", col=1)
        figure.add_annotation(
            label(
                spot.strength,
                1,
                f"chosen: {plain(spot.strength)}",
                kind="chosen",
                xanchor="center",
                yref="y domain",
                yanchor="bottom",
                yshift=2,
            ),
            row=1,
            col=1,
        )


def layer_finding(curve: Table, chosen: Collection[int]) -> str:
    """Where the edit works best, and what was chosen."""
    best = curve.loc[curve["effect"].idxmax()]
    named = f"; chosen: {'block' if len(chosen) == 1 else 'blocks'} {', '.join(map(str, chosen))}" if chosen else ""
    cut = percent(best["effect"])
    return f"The edit works best at block {int(best['layer'])}: cut {cut} on selection questions{named}"


def layer_figure(curve: Table, chosen: Collection[int] = ()) -> go.Figure:
    """Per block: the cut that the edit reaches, and the split-half and mutual cosines of the directions."""
    figure = canvas(layer_finding(curve, chosen), height=270, margin={"l": 4, "r": 12, "t": 34, "b": 46})
    curve = curve.sort_values("layer")
    for block in chosen:
        figure.add_vrect(x0=block - 0.5, x1=block + 0.5, fillcolor=LIGHT["chosen"], opacity=0.12, line_width=0)
    lines = (
        ("effect", "cut", "chosen", "solid"),
        ("split_half", "split-half cosine", "control", "dash"),
        ("cosine", "cosine of two ways to find it", "aligned", "dot"),
    )
    for column, word, kind, dash in lines:
        if column not in curve or curve[column].isna().all():
            continue
        figure.add_scatter(
            x=curve["layer"],
            y=curve[column],
            mode="lines+markers",
            line={"color": LIGHT[kind], "width": 2, "dash": dash},
            marker=marker(kind, size=8),
            name=word,
            cliponaxis=False,
            hovertemplate=f"block %{{x}}<br>{word} %{{y:.2f}}<extra></extra>",
        )
    figure.update_layout(
        showlegend=True, legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}}
    )
    edge = [float(curve["layer"].min()) - 0.5, float(curve["layer"].max()) + 0.5]
    figure.update_xaxes(
        title={"text": "block (0-based; its output)"}, dtick=1 if len(curve) <= 12 else None, range=edge
    )
    return figure.update_yaxes(
        range=[min(0.0, float(curve["effect"].min())) - 0.04, 1.04], title={"text": "cut, cosine"}
    )
