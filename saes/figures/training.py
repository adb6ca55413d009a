"""The figure of a training: variance unexplained, active latents and silent latents, step by step."""

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probes.errors import InputError
from probes.theme import ALIGNED, CHOSEN, HARMFUL, MISALIGNED, SHARED, themed
from saes.train.record import TrainingRecord

COLOURS = (ALIGNED, MISALIGNED, CHOSEN, SHARED, HARMFUL)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
PANELS = {"fvu": ("unexplained", ".0%"), "l0": ("active a row", None), "dead": ("silent", None)}


def training_figure(records: Sequence[TrainingRecord]) -> go.Figure:
    """One line an SAE in three panels over the steps; a cross marks the variance unexplained on held out rows.

    The lines are figures of single batches. InputError for no records.
    """
    if not records:
        raise InputError("training figure: no records; give those of at least one trained SAE")
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for at, record in enumerate(records):
        colour, name = COLOURS[at % len(COLOURS)], escape(record.name)
        dash, table = DASHES[at // len(COLOURS) % len(DASHES)], record.table
        for row, column in enumerate(PANELS, 1):
            figure.add_scatter(
                x=table["step"],
                y=table[column],
                mode="lines" if len(table) > 1 else "markers",
                line={"color": colour, "dash": dash},
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                hovertemplate=f"{name}: %{{y:.3g}} after %{{x}} steps<extra></extra>",
                row=row,
                col=1,
            )
        if record.held_out is not None:
            figure.add_scatter(
                x=[table["step"].iloc[-1]],
                y=[record.held_out["fvu"]["value"]],
                mode="markers",
                marker={"symbol": "x", "size": 9, "color": colour},
                name=f"{name}, held out",
                showlegend=False,
                hovertemplate=f"{name}, held out: %{{y:.2%}}<extra></extra>",
                row=1,
                col=1,
            )
    for row, (words, form) in enumerate(PANELS.values(), 1):
        figure.update_yaxes(title_text=words, tickformat=form, rangemode="tozero", row=row, col=1)
    figure.update_xaxes(title_text="step", row=3, col=1)
    figure.update_layout(height=560, showlegend=len(records) > 1)
    return themed(figure, _title(records))


def _title(records: Sequence[TrainingRecord]) -> str:
    tested = [record.held_out["fvu"]["value"] for record in records if record.held_out is not None]
    if not tested:
        return f"{len(records)} trained; no rows held out" if len(records) > 1 else "No rows were held out"
    if len(tested) == 1:
        return f"{tested[0]:.1%} unexplained<br>on rows held out"
    return f"{min(tested):.1%} to {max(tested):.1%} unexplained<br>on rows held out"
