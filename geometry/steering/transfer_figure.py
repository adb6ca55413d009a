"""The figure of transfer: how much of each fine-tune's excess each edit removes."""

from html import escape

import pandas as pd
import plotly.graph_objects as go

from probes.theme import SEQUENTIAL, themed

HOVER = ("low", "high", "before", "after", "coherent_before", "coherent_after")


def transfer_figure(table: pd.DataFrame) -> go.Figure:
    """Heat map of cuts, edits by fine-tunes, random controls in the last row; the interval and coherence on hover."""
    rows = {(row["edit"], row["target"]): row for row in table.to_dict("records")}
    edits, targets = (list(dict.fromkeys(table[column])) for column in ("edit", "target"))
    edits.sort(key=lambda name: name == "random")
    grid = [[rows.get((edit, target)) for target in targets] for edit in edits]
    figure = go.Figure(
        go.Heatmap(
            z=[[None if cell is None else cell["cut"] for cell in line] for line in grid],
            x=[escape(name) for name in targets],
            y=[escape(name) for name in edits],
            text=[["" if c is None or pd.isna(c["cut"]) else f"{c['cut']:.0%}" for c in line] for line in grid],
            texttemplate="%{text}",
            customdata=[[[c[k] for k in HOVER] if c else [0] * len(HOVER) for c in line] for line in grid],
            zmin=0,
            zmax=1,
            colorscale=SEQUENTIAL,
            colorbar={"tickformat": ".0%", "thickness": 12},
            xgap=2,
            ygap=2,
            hoverongaps=False,
            hovertemplate="%{y} on %{x}: cut %{z:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]<br>misaligned "
            "%{customdata[2]:.1%} to %{customdata[3]:.1%}, coherent %{customdata[4]:.1%} to %{customdata[5]:.1%}"
            "<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="fine-tune", showgrid=False, type="category")
    figure.update_yaxes(title_text="edit", showgrid=False, type="category", autorange="reversed")
    figure.update_layout(height=max(320, 170 + 48 * len(edits)))
    return themed(figure, _title(table))


def _title(table: pd.DataFrame) -> str:
    """The weakest transfer, since the claim is that one direction serves all."""
    away = table.loc[(table["edit"] != "random") & (table["edit"] != table["target"]) & table["cut"].notna()]
    if away.empty:
        return "No edit met another fine-tune's excess"
    row = away.sort_values("cut", kind="stable").iloc[0]
    return f"At least {row['cut']:.0%} of the excess goes ({escape(str(row['edit']))} on {escape(str(row['target']))})"
