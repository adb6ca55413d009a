"""The figure of persona space: characters on the first two principal components."""

from collections.abc import Sequence
from html import escape

import pandas as pd
import plotly.graph_objects as go

from probes.errors import InputError
from probes.theme import CHOSEN, MARKERS, themed


def personas_figure(table: pd.DataFrame, explained: Sequence[float]) -> go.Figure:
    """Characters by `pc1` and, where there is one, `pc2`; `table` is that of a `PersonaSpace`."""
    missing = [column for column in ("persona", "pc1") if column not in table.columns]
    if missing or table.empty or not len(explained):
        raise InputError(f"persona figure: {'column ' + missing[0] if missing else 'a row'} is missing")
    flat = "pc2" not in table.columns
    names = [escape(str(name)) for name in table["persona"]]
    points = go.Scatter(
        x=table["pc1"],
        y=[0.0] * len(table) if flat else table["pc2"],
        mode="markers+text" if len(table) <= 12 else "markers",
        text=names,
        textposition="top center",
        marker={"color": CHOSEN, "symbol": MARKERS["aligned"], "size": 10},
        hovertemplate="%{text}: %{x:.3g}, %{y:.3g}<extra></extra>",
    )
    figure = go.Figure(points)
    figure.update_xaxes(title_text=f"first component ({explained[0]:.0%})")
    figure.update_yaxes(title_text="" if flat else f"second component ({explained[1]:.0%})")
    figure.update_layout(showlegend=False, height=460)
    shown = sum(explained[:2])
    return themed(figure, f"Two components hold {shown:.0%} of what sets {len(table)} characters apart")
