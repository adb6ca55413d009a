"""The figure of several comparisons: effects with intervals over the band of their null."""

from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from probes.errors import InputError
from probes.theme import CHOSEN, CONTROL, MARKERS, themed


def panel_figure(table: pd.DataFrame, *, kind: str, note: str = "") -> go.Figure:
    """Effect of each comparison with its 95 % interval over the 5-95 % band of the null; filled where p_holm < .05.

    `table` is that of a `GeometryPanel`. Blocks run from left to right, data sets from top to bottom.
    """
    needed = ("name", "effect", "low", "high", "null_low", "null_high", "p", "p_holm")
    missing = [column for column in needed if column not in table.columns]
    if missing or table.empty:
        raise InputError(f"panel figure: {'column ' + missing[0] if missing else 'a row'} is missing")
    upright = kind == "block"
    names = table["name"] if upright else [escape(str(name)) for name in table["name"]]
    value, place = ("y", "x") if upright else ("x", "y")
    band: dict[str, Any] = {
        "base": table["null_low"],
        value: table["null_high"] - table["null_low"],
        place: names,
        "marker": {"color": CONTROL, "opacity": 0.35, "line": {"width": 0}},
    }
    sure = [p < 0.05 for p in table["p_holm"].tolist()]
    words = [f"p = {p:.2g}, corrected {h:.2g}" for p, h in zip(table["p"], table["p_holm"], strict=True)]
    bars = {"array": table["high"] - table["effect"], "arrayminus": table["effect"] - table["low"]}
    symbols = [MARKERS["chosen"] if one else f"{MARKERS['chosen']}-open" for one in sure]
    points: dict[str, Any] = {value: table["effect"], place: names, f"error_{value}": {"type": "data", **bars}}
    figure = go.Figure(
        [
            go.Bar(**band, orientation="v" if upright else "h", name="null, 5-95 %", hoverinfo="skip"),
            go.Scatter(
                **points,
                mode="markers",
                marker={"color": CHOSEN, "size": 11, "symbol": symbols},
                name="effect",
                text=words,
                hovertemplate=f"%{{{place}}}: %{{{value}:.3f}}, %{{text}}<extra></extra>",
            ),
        ]
    )
    effect, across = "inducing less benign (cosine)", {"title_text": kind}
    if upright:
        figure.update_yaxes(title_text=effect).update_xaxes(across)
    else:
        figure.update_xaxes(title_text=effect).update_yaxes(across | {"type": "category", "autorange": "reversed"})
    figure.update_layout(showlegend=False, height=420 if upright else 160 + 44 * len(table))
    head = f"{sum(sure)} of {len(table)} {kind}s lie nearer to harm than benign data does"
    return themed(figure, f"{head}<br><sub>{escape(note)}</sub>" if note else head)
