"""The curve over layers: where the fine-tune moves the residual stream, and how sure the direction is."""

from __future__ import annotations

from collections.abc import Collection

import plotly.graph_objects as go

from persona_geometry.report.figures.common import canvas, marker
from persona_geometry.report.tables import Table
from persona_geometry.report.theming import LIGHT
from persona_geometry.report.wording import listing, percent

# column, words, meaning, dash
LINES = (
    ("effect", "shift, share of the residual norm", "misaligned", "solid"),
    ("split_half", "split-half cosine of the shift", "control", "dash"),
    ("cosine", "cosine of the shift to the prompted vector", "aligned", "dot"),
)


def layer_finding(curve: Table, chosen: Collection[int]) -> str:
    """Where the fine-tune moves the residual stream most, and what was chosen."""
    most = curve.loc[curve["effect"].idxmax()]
    named = (
        f"; treated: {'block' if len(chosen) == 1 else 'blocks'} {listing(list(map(str, chosen)))}" if chosen else ""
    )
    size = percent(most["effect"])
    return f"The fine-tune moves the residual stream most at block {int(most['layer'])}, by {size} of its norm{named}"


def layer_figure(curve: Table, chosen: Collection[int] = ()) -> go.Figure:
    """Per block: size of the shift, its split-half cosine, its cosine to the prompted vector; treated blocks shaded."""
    figure = canvas(layer_finding(curve, chosen), height=270, margin={"l": 4, "r": 12, "t": 34, "b": 46})
    curve = curve.sort_values("layer")
    for block in chosen:
        figure.add_vrect(x0=block - 0.5, x1=block + 0.5, fillcolor=LIGHT["chosen"], opacity=0.12, line_width=0)
    for column, word, kind, dash in LINES:
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
        range=[min(0.0, float(curve["effect"].min())) - 0.04, 1.04], title={"text": "share, cosine"}
    )
