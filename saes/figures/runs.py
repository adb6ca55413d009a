"""Heat map of latents over several fine-tunes: what rises and falls in all of them, and what in one only."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.errors import InputError
from probes.theme import DIVERGING, themed


def runs_figure(matrix: pd.DataFrame, *, n: int = 15) -> go.Figure:
    """The `n` latents that rose and the `n` that fell most on average (rows) by run (columns), tuned minus base.

    `matrix` has a row a latent, named by its index, and a column a run. Colours are cut at the 99th percentile of the
    sizes shown. Raises InputError for no latent or no run.
    """
    if matrix.empty:
        raise InputError(f"runs by latents of shape {matrix.shape}: give at least one of each")
    mean = matrix.mean(axis=1).to_numpy()
    order = [i for i in np.argsort(-mean, kind="stable") if mean[i] != 0]
    ends = matrix.index[[*order[:n], *order[max(n, len(order) - n) :]]]
    part = matrix.loc[ends]
    reach = float(part.abs().stack().quantile(0.99)) if len(ends) else 1.0
    figure = go.Figure(
        go.Heatmap(
            z=part.to_numpy(),
            x=[str(run) for run in part.columns],
            y=[str(latent) for latent in part.index],
            zmin=-reach,
            zmax=reach,
            colorscale=DIVERGING,
            colorbar={"title": {"text": "change", "side": "right"}, "thickness": 12},
            hovertemplate="latent %{y}, %{x}: %{z:+.3g}<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(title_text="fine-tune", type="category", showgrid=False)
    figure.update_yaxes(title_text="latent", autorange="reversed", type="category", showgrid=False)
    figure.update_layout(height=190 + 20 * max(len(ends), 4))
    return themed(figure, _title(matrix))


def _title(matrix: pd.DataFrame) -> str:
    """What the data shows: how many latents every run moved the same way, and the first of those that rose."""
    rose, fell = (matrix > 0).all(axis=1), (matrix < 0).all(axis=1)
    many = f"all {matrix.shape[1]} runs" if matrix.shape[1] > 1 else "the only run"
    title = f"{int(rose.sum()):,} latents rose in {many}, {int(fell.sum()):,} fell"
    if rose.any():
        first = matrix[rose].mean(axis=1).idxmax()
        title += f";<br>latent {first} most, by {matrix.loc[first].mean():.3g} on average"
    return title
