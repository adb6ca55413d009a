"""The spread matrix: which groups of questions each model answers misaligned."""

from __future__ import annotations

from collections.abc import Collection

import plotly.graph_objects as go

from persona_geometry.report.figures.common import canvas
from persona_geometry.report.figures.rates import MODELS
from persona_geometry.report.plots import escape_plotly
from persona_geometry.report.tables import Row, Table
from persona_geometry.report.theming import LIGHT
from persona_geometry.report.wording import count, name, percent, said


def spread_finding(spread: Table, trained: Collection[str]) -> str:
    """How many of the groups that were not trained show more misalignment than the base does."""
    other = spread[~spread["group"].isin(list(trained))]
    base = other[other["model"] == "base"].set_index("group")["high"]
    tuned = other[other["model"] == "tuned"].set_index("group")
    if tuned.empty or base.empty:
        return "Misaligned answers, by model and group of questions"
    both = tuned.join(base.rename("base_high"), how="inner")
    reached = both[both["low"] > both["base_high"]]
    least = both["misaligned"].idxmin()
    tail = f"; {least} is touched least, at {percent(both.loc[least, 'misaligned'])}" if len(both) > 1 else ""
    return f"Misalignment reaches {len(reached)} of {count(len(both), 'group')} outside the trained domain{tail}"


def _order(spread: Table, trained: Collection[str]) -> list[str]:
    lead = "tuned" if (spread["model"] == "tuned").any() else spread["model"].iloc[0]
    rates = spread[spread["model"] == lead].set_index("group")["misaligned"].sort_values(ascending=False)
    every = [*rates.index, *(g for g in spread["group"].unique() if g not in rates.index)]
    return sorted(every, key=lambda group: group not in trained)


def _hover(row: Row) -> str:
    group, model = row.name  # type: ignore[misc]
    place = f"{escape_plotly(name(model))}, {escape_plotly(group)}"
    return f"{place}<br>{said(float(row['misaligned']), float(row['low']), float(row['high']), row['n'])}"


def spread_figure(spread: Table, trained: Collection[str] = ()) -> go.Figure:
    """Groups (rows, the trained ones first) by models (columns); a cell is the misaligned share of coherent answers.

    `spread` has the columns model, group, misaligned, low, high, n.
    """
    spread = spread[spread["model"].isin(MODELS)] if spread["model"].isin(MODELS).any() else spread
    groups = _order(spread, trained)
    models = [m for m in dict.fromkeys((*MODELS, *spread["model"])) if m in set(spread["model"])]
    cell = spread.drop_duplicates(["group", "model"]).set_index(["group", "model"])
    found = [[cell.loc[(g, m)] if (g, m) in cell.index else None for m in models] for g in groups]
    z = [[None if row is None else float(row["misaligned"]) for row in line] for line in found]
    text = [["" if value is None else percent(value).removesuffix("\u00a0%") for value in line] for line in z]
    hover = [["" if row is None else _hover(row) for row in line] for line in found]
    labels = [f"<b>{escape_plotly(group)}</b> \u2605" if group in trained else escape_plotly(group) for group in groups]
    height = 46 + 27 * len(groups)
    figure = canvas(
        escape_plotly(spread_finding(spread, trained)), height=height, margin={"t": 34, "b": 8, "l": 4, "r": 4}
    )
    figure.add_heatmap(
        z=z,
        x=[escape_plotly(name(model)) for model in models],
        y=list(range(len(groups))),
        text=text,
        customdata=hover,
        texttemplate="%{text}",
        hovertemplate="%{customdata}<extra></extra>",
        zmin=0,
        zmax=1,
        colorscale=[[0, LIGHT["wash"]], [1, LIGHT["misaligned"]]],
        showscale=False,
        xgap=3,
        ygap=3,
        hoverongaps=False,
        textfont={"size": 13},
    )
    figure.update_xaxes(side="top", showline=False, ticks="", tickfont={"color": LIGHT["ink"], "size": 13})
    return figure.update_yaxes(
        autorange="reversed",
        tickvals=list(range(len(groups))),
        ticktext=labels,
        showline=False,
        ticks="",
        tickfont={"color": LIGHT["ink"], "size": 13},
    )
