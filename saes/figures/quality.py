"""Figures of quality: sparsity against faithfulness, how often latents fire, how many another seed finds too."""

from collections.abc import Mapping
from html import escape
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from probes.errors import InputError
from probes.theme import ALIGNED, CHOSEN, CONTROL, HARMFUL, MISALIGNED, SHARED, themed
from saes.fidelity import DENSE

COLOURS = (ALIGNED, MISALIGNED, CHOSEN, SHARED, HARMFUL)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
Measure = Literal["explained", "recovered"]


def pareto_figure(table: pd.DataFrame, *, measure: Measure = "explained") -> go.Figure:
    """Active latents a row against the variance explained, or the cross-entropy recovered, one point an SAE.

    `table` is that of a `QualityTable`. A line joins the SAEs that no other beats in both. InputError for a table
    without rows or without the measure.
    """
    column = {"explained": "fvu", "recovered": "ce_recovered"}.get(measure, measure)
    if table.empty or column not in table:
        raise InputError(f"quality table: no {column if len(table) else 'rows'}; it needs {column}, l0 and name")
    value, low, high = (table[f"{column}{end}"] for end in ("", "_low", "_high"))
    if measure == "explained":
        value, low, high = 1 - value, 1 - high, 1 - low
    front = _front(table["l0"].to_numpy(), value.to_numpy())
    figure = go.Figure()
    figure.add_scatter(
        x=table["l0"].iloc[front],
        y=value.iloc[front],
        mode="lines",
        line={"color": CONTROL, "dash": "dot"},
        name="best",
    )
    for at, name in enumerate(table["name"]):
        figure.add_scatter(
            x=[table["l0"].iloc[at]],
            y=[value.iloc[at]],
            error_y={"array": [high.iloc[at] - value.iloc[at]], "arrayminus": [value.iloc[at] - low.iloc[at]]},
            mode="markers",
            marker={"size": 11, "color": COLOURS[at % len(COLOURS)]},
            name=escape(str(name)),
            hovertemplate=f"{escape(str(name))}: %{{y:.1%}} at %{{x:.3g}} a row<extra></extra>",
        )
    words = {"explained": "variance explained", "recovered": "cross-entropy recovered"}[measure]
    figure.update_xaxes(title_text="active latents a row", type="log")
    figure.update_yaxes(title_text=words, tickformat=".0%")
    figure.update_layout(showlegend=len(table) > 1)
    best = int(np.nanargmax(value))
    title = f"{escape(str(table['name'].iloc[best]))}: {value.iloc[best]:.1%}<br>at {table['l0'].iloc[best]:.3g} a row"
    return themed(figure, title)


def density_figure(freqs: Mapping[str, Float[Tensor, " d_sae"]]) -> go.Figure:
    """How many latents fire how often: a histogram of active shares over powers of ten, those never active apart."""
    if not freqs:
        raise InputError("density figure: no firing rates; give those of at least one SAE")
    figure = go.Figure()
    lowest = min(float(freq[freq > 0].min()) if bool((freq > 0).any()) else 0.1 for freq in freqs.values())
    edges = np.arange(np.floor(4 * np.log10(lowest)) / 4, 0.26, 0.25)
    for at, (name, freq) in enumerate(freqs.items()):
        shares = freq.numpy()
        counts, _ = np.histogram(np.log10(shares[shares > 0]), edges)
        figure.add_scatter(
            x=[edges[0] - 0.375, *(edges[:-1] + 0.125)],
            y=[(shares == 0).mean(), *(counts / len(shares))],
            mode="lines+markers",
            line={"shape": "hvh", "color": COLOURS[at % len(COLOURS)], "dash": DASHES[at % len(DASHES)]},
            name=escape(name),
            hovertemplate="%{y:.1%} of the latents<extra></extra>",
        )
    figure.add_vline(x=np.log10(DENSE), line={"color": CONTROL, "dash": "dot"}, annotation_text="dense")
    whole = np.arange(np.ceil(edges[0]), 1)
    ticks = {"tickvals": [edges[0] - 0.375, *whole], "ticktext": ["never", *(f"{10**power:.4g}" for power in whole)]}
    figure.update_xaxes(title_text="share of rows where active", **ticks)
    figure.update_yaxes(title_text="share of latents", tickformat=".0%", rangemode="tozero")
    figure.update_layout(showlegend=len(freqs) > 1)
    dead = np.mean([float((freq == 0).double().mean()) for freq in freqs.values()])
    dense = np.mean([float((freq > DENSE).double().mean()) for freq in freqs.values()])
    return themed(figure, f"{dead:.1%} of the latents never fire,<br>{dense:.1%} on more than {DENSE:.0%} of the rows")


def _front(cost: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Indices of the points that no other beats in both, by rising cost."""
    order = np.lexsort((-worth, cost))
    return order[worth[order] > np.concatenate([[-np.inf], np.maximum.accumulate(worth[order])[:-1]])]


def stability_figure(
    best: Mapping[tuple[str, str], Float[Tensor, " d_sae"]], random: Float[Tensor, " feature"]
) -> go.Figure:
    """Share of the latents of one SAE whose best partner in another is at least as near, beside random directions.

    `best` has the cosines by (SAE, other), NaN for latents that take no part; `random` those with random directions.
    """
    if not best:
        raise InputError("stability figure: no pair of SAEs; match at least two")
    figure = go.Figure()
    grid = np.linspace(0, 1, 101)
    for at, ((one, other), cosines) in enumerate(best.items()):
        _share_above(figure, cosines, grid, f"{one} in {other}", COLOURS[at % len(COLOURS)], DASHES[at % len(DASHES)])
    _share_above(figure, random, grid, "random directions", CONTROL, "dot")
    figure.update_xaxes(title_text="cosine with the nearest latent", range=[0, 1])
    figure.update_yaxes(title_text="latents at least as near", tickformat=".0%", rangemode="tozero")
    shares = [float((cosines >= 0.7).double().sum() / cosines.isfinite().sum()) for cosines in best.values()]
    return themed(figure, f"{np.mean(shares):.0%} of the latents come again<br>at a cosine of 0.7 or more")


def _share_above(figure: go.Figure, cosines: Tensor, grid: np.ndarray, name: str, colour: str, dash: str) -> None:
    known = np.sort(cosines[cosines.isfinite()].numpy())
    figure.add_scatter(
        x=grid,
        y=1 - np.searchsorted(known, grid) / max(len(known), 1),
        mode="lines",
        line={"color": colour, "dash": dash},
        name=escape(name),
        hovertemplate=f"{escape(name)}: %{{y:.1%}} at %{{x:.2f}}<extra></extra>",
    )
