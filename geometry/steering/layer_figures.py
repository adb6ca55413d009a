"""The figure of a layer choice: what each strength does at each block."""

from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from probes.errors import InputError
from probes.theme import CHOSEN, CONTROL, MARKERS, SEQUENTIAL, themed

if TYPE_CHECKING:
    from geometry.steering.layers import Cell, LayerChoice


def layer_figure(choice: "LayerChoice") -> go.Figure:
    """Share of answers with the trait: a row a block, a column a strength.

    Cells that lose too much coherence are grey and their number stands in brackets; a star marks the best cell, and the
    title says what it does, or that there is none.
    """
    cells = {(cell.layer, cell.strength): cell for cell in choice.cells}
    kept = {key for key, row in zip(cells, choice.table["kept"], strict=True) if row}
    blocks, strengths = sorted({layer for layer, _ in cells}), sorted({strength for _, strength in cells})
    figure = go.Figure()
    for inside in (True, False):
        shown = [[cells.get((b, s)) if ((b, s) in kept) is inside else None for s in strengths] for b in blocks]
        figure.add_trace(_grid(shown, [str(b) for b in blocks], [f"{s:g}" for s in strengths], choice, inside=inside))
    best = _best(choice)
    if best is not None:
        figure.add_scatter(
            x=[f"{best.strength:g}"],
            y=[str(best.layer)],
            mode="markers+text",
            marker={"color": CHOSEN, "symbol": MARKERS["chosen"], "size": 14, "line": {"color": "white", "width": 1}},
            text=["chosen"],
            textposition="bottom center",
            hoverinfo="skip",
            showlegend=False,
        )
    figure.update_xaxes(title_text=f"strength, {choice.unit}", showgrid=False, type="category")
    figure.update_yaxes(title_text="block", showgrid=False, type="category")
    figure.update_layout(height=max(360, 150 + 44 * len(blocks)))
    return themed(figure, _title(choice, best))


def _grid(
    shown: "list[list[Cell | None]]", blocks: list[str], strengths: list[str], choice: "LayerChoice", *, inside: bool
) -> go.Heatmap:
    """The cells within the coherence budget in colour, or those beyond it in grey."""
    form = "{:.0%}" if inside else "({:.0%})"
    colours: dict[str, Any] = {"colorscale": SEQUENTIAL, "colorbar": {"tickformat": ".0%", "thickness": 12}}
    if not inside:
        colours = {"colorscale": ((0.0, CONTROL), (1.0, CONTROL)), "showscale": False, "opacity": 0.35}
    return go.Heatmap(
        z=[[None if cell is None else cell.trait for cell in line] for line in shown],
        x=strengths,
        y=blocks,
        text=[["" if cell is None or cell.n == 0 else form.format(cell.trait) for cell in line] for line in shown],
        texttemplate="%{text}",
        customdata=[[[0, 0, 0] if c is None else [c.coherent, c.n, c.change] for c in line] for line in shown],
        zmin=0,
        zmax=1,
        xgap=2,
        ygap=2,
        hoverongaps=False,
        hovertemplate=f"block %{{y}}, strength %{{x}}: %{{z:.1%}} {escape(choice.trait)} (%{{customdata[2]:+.1%}}), "
        "%{customdata[0]:.1%} coherent, n = %{customdata[1]}<extra></extra>",
        **colours,
    )


def _best(choice: "LayerChoice") -> "Cell | None":
    try:
        return choice.best
    except InputError:
        return None


def _title(choice: "LayerChoice", best: "Cell | None") -> str:
    word = escape(choice.trait)
    if best is None:
        return f"No block moves {choice.untreated.trait:.0%} {word} at a bearable price"
    change = f"{choice.untreated.trait:.0%} to {best.trait:.0%} {word}"
    return f"Block {best.layer} at {best.strength:g}: {change}, {best.coherent:.0%} coherent"
