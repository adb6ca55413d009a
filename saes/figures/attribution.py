"""Bars of an attribution: which latents make answers likelier, and which speak against them."""

import pandas as pd
import plotly.graph_objects as go

from probes.errors import InputError
from probes.theme import ALIGNED, MARKERS, MISALIGNED, themed


def attribution_figure(table: pd.DataFrame, *, n: int = 10, contrast: bool = True) -> go.Figure:
    """The `n` largest and the `n` smallest attributions with their 95 % intervals, in nats per answer token.

    `table` has `latent`, `attribution`, `low` and `high`. With `contrast` positive stands for undesired answers. Raises
    InputError for a table without these columns or without rows.
    """
    missing = [column for column in ("latent", "attribution", "low", "high") if column not in table.columns]
    if missing or table.empty:
        raise InputError(f"attributions: no {missing[0] if missing else 'rows'}; give the table of an Attribution")
    ranked = table.sort_values(by="attribution", ascending=False, kind="stable").to_dict("records")
    rows = [*[r for r in ranked[:n] if r["attribution"] > 0], *[r for r in ranked[-n:] if r["attribution"] < 0]]
    figure = go.Figure()
    for sign, colour, marker in ((1, MISALIGNED, MARKERS["misaligned"]), (-1, ALIGNED, MARKERS["aligned"])):
        part = [row for row in rows if sign * row["attribution"] > 0]
        values = [row["attribution"] for row in part]
        figure.add_scatter(
            x=values,
            y=[str(int(row["latent"])) for row in part],
            mode="markers",
            marker={"color": colour, "symbol": marker, "size": 10},
            error_x={
                "array": [row["high"] - row["attribution"] for row in part],
                "arrayminus": [row["attribution"] - row["low"] for row in part],
                "color": colour,
                "thickness": 1.5,
            },
            showlegend=False,
            hovertemplate="latent %{y}: %{x:+.3g} nats<extra></extra>",
        )
    figure.update_xaxes(title_text="attribution, nats per answer token", zeroline=True, zerolinewidth=2)
    figure.update_yaxes(title_text="latent", autorange="reversed", type="category", showgrid=False)
    figure.update_layout(height=190 + 24 * max(len(rows), 4))
    return themed(figure, _title(rows, contrast))


def _title(rows: list, contrast: bool) -> str:
    """What the data shows: the latent at either end."""
    if not rows:
        return "No latent has an attribution"
    which = "undesired answers" if contrast else "the answers"
    first, last = rows[0], rows[-1]
    parts = [f"Latent {int(first['latent'])} supports {which} most"] if first["attribution"] > 0 else []
    if last["attribution"] < 0:
        parts.append(f"{'l' if parts else 'L'}atent {int(last['latent'])} speaks against them most")
    return ";<br>".join(parts)
