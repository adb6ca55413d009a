"""Who writes the direction: heads and MLPs by layer."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from persona_geometry.report.figures.common import canvas
from persona_geometry.report.tables import Table
from persona_geometry.report.theming import LIGHT
from persona_geometry.report.wording import listing, number, percent

_NAMED = {"mlp": "MLP", "embed": "embedding", "attn_bias": "bias"}


def component_name(layer: int, component: str, head: int | None) -> str:
    """How a writer is called in a sentence."""
    if component == "embed":
        return "the embedding"
    if component == "head":
        return f"head {layer}.{int(head or 0)}"
    return f"the {_NAMED.get(component, component)} of block {layer}"


def writers_finding(writers: Table) -> str:
    """The largest writers of the shift and their share of the whole."""
    total = float(writers["shift"].sum())
    if abs(total) < 1e-9:
        return "No head or MLP writes a net shift along the direction"
    ranked = writers.assign(share=writers["shift"] / total).sort_values("share", ascending=False)
    kept = ranked[ranked["share"] >= 0.1].head(3)
    kept = ranked.head(1) if kept.empty else kept
    named = [
        f"{component_name(int(r.layer), str(r.component), r.head)} ({percent(r.share)})" for r in kept.itertuples()
    ]
    verb = "writes" if len(named) == 1 else "write"
    text = (
        f"{listing(named)} {verb} most of the shift"
        if kept["share"].sum() > 0.5
        else f"Many parts write the shift; the largest: {listing(named)}"
    )
    return text[:1].upper() + text[1:]


def _grid(writers: Table, value: str) -> Table:
    """Blocks by components; the bias column only where it holds something, the embedding left to the table."""
    table = writers[writers["component"] != "embed"]
    names = [
        f"head {int(h)}" if c == "head" else _NAMED.get(c, c)
        for c, h in zip(table["component"], table["head"].fillna(-1), strict=True)
    ]
    grid = table.assign(column=names).pivot_table(index="layer", columns="column", values=value, aggfunc="sum")
    heads = sorted((name for name in grid.columns if name.startswith("head ")), key=lambda name: int(name.split()[1]))
    others = [name for name in grid.columns if name not in heads and grid[name].abs().max() > 1e-12]
    return grid[[*heads, *sorted(others, key=lambda name: name != "MLP")]]


def writers_figure(writers: Table, value: str = "shift") -> go.Figure:
    """Contribution of each head and MLP (columns) by block (rows, the last on top) to the projection.

    `writers` has the columns layer, component, head, base, tuned, shift, in the units of the residual stream.
    """
    grid = _grid(writers, value)
    values, rows = grid.to_numpy(), [f"block {int(layer)}" for layer in grid.index]
    reach, few = float(grid.abs().max().max()) or 1.0, grid.size <= 60
    text = [["" if pd.isna(v) or not few else number(float(v), 2) for v in row] for row in values]
    tall = max(16, min(40, 620 // max(1, len(rows))))
    figure = canvas(writers_finding(writers), height=46 + tall * len(rows), margin={"t": 34, "b": 8, "l": 4, "r": 4})
    figure.add_heatmap(
        z=values,
        x=list(grid.columns),
        y=rows,
        text=text,
        texttemplate="%{text}" if few else None,
        zmin=-reach,
        zmax=reach,
        showscale=False,
        hoverongaps=False,
        textfont={"size": 13},
        xgap=3 if few else 1,
        ygap=3 if few else 1,
        colorscale=[[0, LIGHT["aligned"]], [0.5, LIGHT["wash"]], [1, LIGHT["misaligned"]]],
        hovertemplate="%{y}, %{x}<br>%{z:+.3f}<extra></extra>",
    )
    figure.update_xaxes(side="top", showline=False, ticks="", tickfont={"color": LIGHT["ink"], "size": 12})
    return figure.update_yaxes(showline=False, ticks="", tickfont={"color": LIGHT["ink"], "size": 12})
