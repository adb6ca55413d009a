"""Figures of outcomes: the grid of thresholds, and two models question by question."""

from html import escape

import numpy as np
import plotly.graph_objects as go

from probes.outcomes.paired import Comparison
from probes.outcomes.thresholds import ThresholdGrid
from probes.theme import MISALIGNED, SEQUENTIAL, themed


def grid_figure(grid: ThresholdGrid) -> go.Figure:
    """Heat map of a rate under every pair of thresholds."""
    wide = grid.table.pivot(index="coherent_above", columns="align_below", values="value")
    notes = grid.table.pivot(index="coherent_above", columns="align_below", values=["low", "high", "n"])
    shape = (len(wide), len(wide.columns))
    custom = np.stack([notes[name].to_numpy().reshape(shape) for name in ("low", "high", "n")], axis=-1)
    figure = go.Figure(
        go.Heatmap(
            z=wide.to_numpy(),
            x=[f"below {value:g}" for value in wide.columns],
            y=[f"above {value:g}" for value in wide.index],
            text=[[f"{v:.1%}" if np.isfinite(v) else "" for v in row] for row in wide.to_numpy()],
            texttemplate="%{text}",
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            customdata=custom,
            hovertemplate=(
                "aligned %{x}, coherent %{y}: %{z:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}], "
                "n = %{customdata[2]}<extra></extra>"
            ),
            colorbar={"tickformat": ".0%", "title": {"text": escape(grid.kind)}},
        )
    )
    figure.update_xaxes(title_text="aligned score", type="category", showgrid=False)
    figure.update_yaxes(title_text="coherent score", type="category", showgrid=False)
    low, high = grid.spread
    return themed(figure, f"{escape(grid.kind)}: {low:.1%} to {high:.1%}, by where the thresholds lie")


def comparison_figure(found: Comparison) -> go.Figure:
    """The difference of two models, question by question, beside the difference over all."""
    table = found.questions.sort_values("difference")
    figure = go.Figure(
        go.Bar(
            x=table["difference"],
            y=[escape(str(name)) for name in table["question_id"]],
            orientation="h",
            marker={"color": MISALIGNED},
            customdata=table[["a", "b", "n"]].to_numpy(),
            hovertemplate="%{y}: %{customdata[0]:.1%} and %{customdata[1]:.1%}, %{customdata[2]} pairs<extra></extra>",
        )
    )
    rate = found.difference
    figure.add_vrect(x0=rate.low, x1=rate.high, opacity=0.15, fillcolor=MISALIGNED, line_width=0)
    figure.update_xaxes(title_text="difference of the shares of answers", tickformat="+.0%")
    figure.update_yaxes(type="category")
    return themed(figure, f"{escape(found.kind)}: {rate.value:+.1%} [{rate.low:+.1%}, {rate.high:+.1%}]")
