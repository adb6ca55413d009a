"""The training rows: how their scores are spread, and where the worst begin."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from persona_geometry.report.figures.common import canvas, label
from persona_geometry.report.tables import Table
from persona_geometry.report.theming import LIGHT
from persona_geometry.report.wording import number, percent


def rows_finding(rows: Table, worst: int) -> str:
    """How much of the total positive score the worst rows hold."""
    score = rows["score"].sort_values(ascending=False)
    total = float(score.clip(lower=0).sum())
    if len(rows) <= worst or total <= 0:
        return f"Scores of {len(rows):,} training rows"
    share = float(score.head(worst).clip(lower=0).sum()) / total
    verdict = "stand out" if share > 2 * worst / len(rows) else "stand out little"
    held = f"{percent(share)} of the score in {percent(worst / len(rows))} of the data"
    return f"The {worst} worst of {len(rows):,} rows {verdict}: they hold {held}"


def rows_figure(rows: Table, worst: int = 20) -> go.Figure:
    """Histogram of the rows' scores, the `worst` rows in the colour of misalignment; `rows` has the column score."""
    score = rows["score"].to_numpy(float)
    edge = float(np.sort(score)[-min(worst, len(score))])
    bins = np.histogram_bin_edges(score, bins=min(50, max(8, len(score) // 8)))
    figure = canvas(rows_finding(rows, worst), height=220)
    for kind, part in (("control", score[score < edge]), ("misaligned", score[score >= edge])):
        counts, _ = np.histogram(part, bins=bins)
        figure.add_bar(
            x=(bins[:-1] + bins[1:]) / 2,
            y=counts,
            width=np.diff(bins) * 0.92,
            marker={"color": LIGHT[kind], "opacity": 0.6 if kind == "control" else 1},
            hovertemplate="score %{x:.2f}<br>%{y} rows<extra></extra>",
        )
    figure.add_annotation(
        label(
            edge, 0.62, f"the worst {min(worst, len(score))}, from {number(edge, 2)}", kind="misaligned", yref="paper"
        )
    )
    figure.update_layout(barmode="stack")
    return figure.update_xaxes(title={"text": "score (nearness to the harmful features)"}).update_yaxes(
        title={"text": "rows"}, nticks=4
    )
