"""The SAE claims as a figure: what taking one latent away repairs, cell by cell, beside random latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from persona_geometry.organism.claims.causal import CUT
from probes.theme import ALIGNED, CHOSEN, CONTROL, themed


def claims_figure(data: Mapping[str, Any]) -> go.Figure:
    """One row a cell: the cut of its leading latent with its 95 % interval, of switching it off, of random latents.

    `data` is what `sae_claims` returns. The dotted line is the cut from which a repair counts.
    """
    cells = [(name_of(cell), leading(cell)) for cell in data["cells"]]
    figure = go.Figure()
    tried = [(name, t["repair"]["best"]) for name, t in cells if t["repair"]["best"]]
    random = [(name, x) for name, best in tried for x in best["random"].values()]
    figure.add_scatter(
        **_marks(random, "random latents, same step", CONTROL, "circle-open", 6),
        opacity=0.7,
    )
    off = [(name, t["repair"]["off"]["effect"]["value"]) for name, t in cells]
    figure.add_scatter(**_marks(off, "switched off", ALIGNED, "square", 9))
    effects = [(name, best["effect"]) for name, best in tried]
    figure.add_scatter(
        **_marks([(name, e["value"]) for name, e in effects], "steered down", CHOSEN, "star", 12),
        error_x={
            "array": [(e["high"] or e["value"]) - e["value"] for _, e in effects],
            "arrayminus": [e["value"] - (e["low"] or e["value"]) for _, e in effects],
        },
    )
    figure.add_vline(x=CUT, line_dash="dot", line_color=CONTROL)
    figure.update_xaxes(title_text="share of the excess removed", range=[-0.55, 1.05])
    figure.update_yaxes(type="category", autorange="reversed", categoryarray=[name for name, _ in cells])
    figure.update_layout(height=190 + 26 * max(4, len(cells)), margin={"t": 84, "b": 100})
    figure.update_layout(legend={"yref": "container", "y": 0.01, "yanchor": "bottom"})
    held = sum(t["repair"]["counts"] for _, t in cells)
    return themed(figure, f"One latent taken away repairs<br>in {held} of {len(cells)} cells")


def name_of(cell: Mapping[str, Any]) -> str:
    """A cell in a few words."""
    return f"{cell['domain']} {cell['seed']}, SAE {cell['sae']}"


def leading(cell: Mapping[str, Any]) -> Mapping[str, Any]:
    """The causal latent that stands first in the diff, or the first latent where none is."""
    tried = cell["diff"]["tried"]
    return next(t for t in tried if t["rank"] == (cell["diff"]["rank"] or tried[0]["rank"]))


def _marks(points: Sequence[tuple[str, float]], name: str, colour: str, symbol: str, size: int) -> dict[str, Any]:
    return {
        "x": [x for _, x in points],
        "y": [y for y, _ in points],
        "mode": "markers",
        "name": name,
        "marker": {"color": colour, "symbol": symbol, "size": size},
        "hovertemplate": f"{name}: %{{x:.2f}}<extra>%{{y}}</extra>",
    }
