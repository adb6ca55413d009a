"""Figures of what latents do: how strongly one fires, which fire together."""

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from probes.errors import InputError
from probes.theme import DIVERGING, MISALIGNED, themed

if TYPE_CHECKING:
    from saes.inspect.density import Density
    from saes.inspect.together import Coactivation, Measure


def density_figure(density: "Density | None", latent: int | None = None) -> go.Figure:
    """Bars of the active tokens by height. Raises InputError where the latent was never active, or not counted."""
    if density is None or not density.n_active:
        raise InputError("no active token to draw: count the latent on more rows with feature_cards")
    middles = [(i + 0.5) * density.width for i in range(len(density.counts))]
    figure = go.Figure()
    figure.add_bar(
        x=middles,
        y=list(density.counts),
        width=0.9 * density.width,
        marker_color=MISALIGNED,
        hovertemplate="%{x:.3g}: %{y:,} tokens<extra></extra>",
    )
    figure.update_xaxes(title_text="activation", rangemode="tozero")
    figure.update_yaxes(title_text="active tokens")
    who = "" if latent is None else f"Latent {latent} "
    fires = f"{who}fires on {density.share:.2%} of {density.n_tokens:,} tokens"
    return themed(figure, f"{fires},<br>in {density.share_conversations:.0%} of the texts")


def coactivation_figure(found: "Coactivation", *, by: "Measure" = "phi") -> go.Figure:
    """Heat map of how the chosen latents fire together; each latent with itself is left blank."""
    names = [str(latent) for latent in found.latents]
    grid = getattr(found, by)[:, list(found.latents)].double().tolist()
    for i in range(len(names)):
        grid[i][i] = None
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            x=names,
            y=names,
            zmid=0,
            zmin=-1,
            zmax=1,
            colorscale=[list(step) for step in DIVERGING],
            hoverongaps=False,
            hovertemplate="%{y} and %{x}: %{z:.2f}<extra></extra>",
            colorbar={"title": {"text": by}},
        )
    )
    figure.update_xaxes(type="category", title_text="latent")
    figure.update_yaxes(type="category", autorange="reversed", title_text="latent")
    pairs = [(grid[i][j], names[i], names[j]) for i in range(len(names)) for j in range(i)]
    best = max(pairs, default=None)
    title = "One latent only" if best is None else f"{best[1]} and {best[2]} fire together most: {by} {best[0]:.2f}"
    return themed(figure, title)
