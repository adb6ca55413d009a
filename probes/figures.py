"""Figures of behaviour (rates with intervals, how far a harm spreads) and of probes (by block, by token, transfer)."""

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.errors import InputError
from probes.outcomes import Outcomes
from probes.theme import ALIGNED, CHOSEN, CONTROL, MISALIGNED, SEQUENTIAL, SHARED, themed

if TYPE_CHECKING:
    from probes.linear.calibrated import Calibration
    from probes.linear.sweep import LayerSweep
    from probes.linear.tokens import TokenReadout
    from probes.linear.transfer import TransferTable


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
    figure = _heat_map(grid, ".0%", zmin=0)
    figure.update_traces(
        colorbar={"tickformat": ".0%", "title": {"text": "misaligned"}},
        hovertemplate="%{y}, asked about %{x}: %{z:.1%}<extra></extra>",
    )
    figure.update_xaxes(title_text="asked about")
    return themed(figure, _spread_title(grid))


def sweep_figure(sweep: "LayerSweep") -> go.Figure:
    """AUROC on unseen groups by block, with 95 % intervals; the ranges of the baselines behind it."""
    table = sweep.table
    figure = go.Figure()
    baselines = (("shuffled", CONTROL, "dot"), ("random", SHARED, "dash"), ("covariance", CHOSEN, "dashdot"))
    for name, colour, dash in baselines:
        if bool(table[name].notna().any()):
            band = {column: table[f"{name}_{column}"] for column in ("low", "high")}
            spread = {"array": band["high"] - table[name], "arrayminus": table[name] - band["low"], "thickness": 1}
            label = {"shuffled": "shuffled labels"}.get(name, f"{name} directions")
            line = {"color": colour, "dash": dash}
            figure.add_scatter(x=table["layer"], y=table[name], error_y=spread, line=line, name=label, mode="lines")
    figure.add_scatter(
        x=table["layer"],
        y=table["auroc"],
        error_y={"array": table["high"] - table["auroc"], "arrayminus": table["auroc"] - table["low"]},
        mode="lines+markers",
        name=escape(sweep.estimator),
        line={"color": ALIGNED},
        customdata=table[["low", "high", "accuracy", "selectivity"]],
        hovertemplate="block %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<br>accuracy "
        "%{customdata[2]:.1%}, selectivity %{customdata[3]:+.1%}<extra></extra>",
    )
    figure.add_hline(y=0.5, line={"color": CONTROL, "width": 1})
    figure.update_xaxes(title_text=f"block ({sweep.site})", dtick=max(1, len(table) // 12))
    figure.update_yaxes(title_text="AUROC on unseen groups")
    best = table.set_index("layer").loc[sweep.best]
    return themed(
        figure, f"Best at block {sweep.best}: AUROC {best['auroc']:.3f} [{best['low']:.3f}, {best['high']:.3f}]"
    )


def probe_transfer_figure(transfer: "TransferTable") -> go.Figure:
    """Heat map of AUROC: rows are the domain that the probe learned, columns the one that it reads."""
    grid = transfer.table.pivot_table(index="train", columns="test", values="auroc", sort=False)
    figure = _heat_map(grid, ".2f", zmin=0.5)
    figure.update_traces(colorbar={"title": {"text": "AUROC"}}, hovertemplate="%{y} on %{x}: %{z:.3f}<extra></extra>")
    figure.update_xaxes(title_text="read")
    figure.update_yaxes(title_text="learned")
    away = transfer.table[transfer.table["train"] != transfer.table["test"]]["auroc"]
    away = f": AUROC {away.min():.2f} to {away.max():.2f} on other domains" if len(away) else ""
    return themed(figure, f"Probes of block {transfer.layer}{away}")


def calibration_figure(calibration: "Calibration") -> go.Figure:
    """Observed share by predicted probability, one point a bin, as large as its share of the samples."""
    table = calibration.table
    figure = go.Figure()
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": CONTROL, "dash": "dot"}, name="calibrated")
    figure.add_scatter(
        x=table["predicted"],
        y=table["observed"],
        mode="lines+markers",
        marker={"size": 6 + 24 * np.sqrt(table["n"] / table["n"].sum()), "color": ALIGNED},
        name="probe",
        customdata=table[["n"]],
        hovertemplate="predicted %{x:.1%}, observed %{y:.1%}, n = %{customdata[0]}<extra></extra>",
    )
    figure.update_xaxes(title_text="predicted probability", range=[-0.03, 1.03])
    figure.update_yaxes(title_text="observed share", range=[-0.03, 1.03])
    return themed(figure, f"Calibration error {calibration.ece:.1%}, Brier score {calibration.brier.value:.3f}")


def tokens_figure(readout: "TokenReadout") -> go.Figure:
    """Score by token, a line a conversation: the answer in full, the rest dotted; texts in the tooltips."""
    figure = go.Figure()
    colours = (ALIGNED, MISALIGNED, CHOSEN, SHARED, CONTROL)
    for number, row in enumerate(readout.rows):
        runs = groupby(range(len(row)), key=lambda place: bool(row.in_response[place]))
        for answer, run in runs:
            places = list(run)
            figure.add_scatter(
                x=places,
                y=row.scores[places].tolist(),
                mode="lines+markers" if answer else "lines",
                line={"color": colours[number % len(colours)], "dash": "solid" if answer else "dot", "width": 1.5},
                marker={"size": 4},
                name=f"conversation {row.conversation}",
                legendgroup=str(number),
                showlegend=places[0] == 0,
                text=[escape(row.texts[place]) for place in places],
                hovertemplate="%{text}: %{y:.3g}<extra></extra>",
            )
    figure.add_hline(y=0, line={"color": CONTROL, "width": 1})
    figure.update_xaxes(title_text="token")
    figure.update_yaxes(title_text=f"score (positive: {escape(readout.positive)})")
    return themed(figure, escape(readout.title))


def _heat_map(grid: pd.DataFrame, form: str, *, zmin: float | int) -> go.Figure:
    """Cells with their numbers in them, rows from the top; the darkest colour is 1."""
    figure = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(),
            x=[escape(str(name)) for name in grid.columns],
            y=[escape(str(name)) for name in grid.index],
            text=[[f"{value:{form}}" if np.isfinite(value) else "" for value in row] for row in grid.to_numpy()],
            texttemplate="%{text}",
            zmin=zmin,
            zmax=1,
            colorscale=SEQUENTIAL,
            xgap=2,
            ygap=2,
        )
    )
    figure.update_xaxes(showgrid=False, type="category")
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    return figure


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
