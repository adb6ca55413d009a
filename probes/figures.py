"""Figures of behaviour: rates with intervals, and how far a trained harm spreads over domains."""

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.errors import InputError
from probes.outcomes import Outcomes
from probes.theme import ALIGNED, MISALIGNED, SEQUENTIAL, themed


def rates_figure(outcomes: Outcomes, *, by: str = "model") -> go.Figure:
    """Misaligned and coherent rates with 95 % intervals, one row for each value of the column `by`."""
    if by not in outcomes.table.columns:
        raise InputError(f"column {by!r} is not in the outcome table: it has {', '.join(outcomes.table.columns)}")
    parts = {str(name): Outcomes(table) for name, table in outcomes.table.groupby(by, sort=False)}
    figure = go.Figure()
    for kind, colour, marker in (("misaligned", MISALIGNED, "diamond"), ("coherent", ALIGNED, "circle")):
        rates = [part.rate(kind) for part in parts.values()]
        figure.add_scatter(
            x=[rate.value for rate in rates],
            y=[escape(name) for name in parts],
            error_x={
                "type": "data",
                "array": [rate.high - rate.value for rate in rates],
                "arrayminus": [rate.value - rate.low for rate in rates],
            },
            mode="markers",
            name=kind,
            marker={"color": colour, "symbol": marker, "size": 10},
            customdata=[[rate.low, rate.high, rate.n] for rate in rates],
            hovertemplate="%{y}: %{x:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}], n = %{customdata[2]}",
        )
    figure.update_xaxes(range=[-0.02, 1.02], tickformat=".0%", title_text="share of answers")
    figure.update_yaxes(autorange="reversed", type="category")
    return themed(figure, _rates_title(parts))


def spread_figure(table: pd.DataFrame) -> go.Figure:
    """Heat map of the misaligned rate: rows are models, columns the groups of questions asked.

    `table` has the columns model, group, misaligned and, if known, low, high, n.
    """
    missing = [column for column in ("model", "group", "misaligned") if column not in table.columns]
    if missing or table.empty:
        raise InputError(f"spread table: {missing[0] if missing else 'no rows'}; it needs model, group and misaligned")
    grid = table.pivot_table(index="model", columns="group", values="misaligned", sort=False)
    text = [[f"{value:.0%}" if np.isfinite(value) else "" for value in row] for row in grid.to_numpy()]
    figure = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(),
            x=[escape(str(name)) for name in grid.columns],
            y=[escape(str(name)) for name in grid.index],
            text=text,
            texttemplate="%{text}",
            zmin=0,
            zmax=1,
            colorscale=SEQUENTIAL,
            xgap=2,
            ygap=2,
            colorbar={"tickformat": ".0%", "title": {"text": "misaligned"}},
            hovertemplate="%{y}, asked about %{x}: %{z:.1%}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="asked about", showgrid=False, type="category")
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    return themed(figure, _spread_title(grid))


def _rates_title(parts: dict[str, Outcomes]) -> str:
    rates = {name: part.rate("misaligned").value for name, part in parts.items()}
    rates = {name: value for name, value in rates.items() if np.isfinite(value)}
    if not rates:
        return "No coherent answer to judge"
    worst = max(rates, key=lambda name: rates[name])
    best = min(rates, key=lambda name: rates[name])
    if worst == best:
        return f"{escape(worst)}: {rates[worst]:.0%} of the coherent answers are misaligned"
    return f"Misaligned answers: {rates[worst]:.0%} by {escape(worst)}, {rates[best]:.0%} by {escape(best)}"


def _spread_title(grid: pd.DataFrame) -> str:
    means = grid.mean(axis=1)
    worst = str(means.idxmax())
    row = grid.loc[means.idxmax()].dropna()
    return f"{escape(worst)}: misaligned in {row.min():.0%} to {row.max():.0%} of the answers of a domain"
