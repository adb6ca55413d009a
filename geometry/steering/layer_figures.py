"""The figure of a layer choice: what each strength does at each block."""

from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from probes.errors import InputError
from probes.theme import CHOSEN, SEQUENTIAL, themed

if TYPE_CHECKING:
    from geometry.steering.layers import Cell, LayerChoice

#: Cells beyond the coherence budget: a light grey on which numbers stay readable.
LOST = "#D5D8DC"


def layer_figure(choice: "LayerChoice") -> go.Figure:
    """Share of answers with the trait: a row a block, a column a strength.

    Cells that lose too much coherence are grey and their number stands in brackets; a star and a frame mark the best
    cell, and the title says what it does, or that there is none.
    """
    cells = {(cell.layer, cell.strength): cell for cell in choice.cells}
    kept = {key for key, row in zip(cells, choice.table["kept"], strict=True) if row}
    blocks, strengths = sorted({layer for layer, _ in cells}), sorted({strength for _, strength in cells})
    best, figure = _best(choice), go.Figure()
    for inside in (True, False):
        shown = [[cells.get((b, s)) if ((b, s) in kept) is inside else None for s in strengths] for b in blocks]
        text = [[_number(cell, best, inside=inside) for cell in line] for line in shown]
        grid = _grid(shown, text, choice, inside=inside)
        figure.add_trace(grid.update(x=[f"{s:g}" for s in strengths], y=[str(b) for b in blocks]))
    if best is not None:
        x, y = strengths.index(best.strength), blocks.index(best.layer)
        frame = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
        figure.add_shape(type="rect", line={"color": CHOSEN, "width": 3}, **frame)
    figure.update_xaxes(title_text=f"strength, {choice.unit}", showgrid=False, type="category")
    figure.update_yaxes(title_text="block", showgrid=False, type="category")
    figure.update_layout(height=max(360, 150 + 44 * len(blocks)))
    return themed(figure, _title(choice, best))


def _grid(
    shown: "list[list[Cell | None]]", text: list[list[str]], choice: "LayerChoice", *, inside: bool
) -> go.Heatmap:
    """The cells within the coherence budget in colour, or those beyond it in grey."""
    colours: dict[str, Any] = {"colorscale": SEQUENTIAL, "colorbar": {"tickformat": ".0%", "thickness": 12}}
    if not inside:
        colours = {"colorscale": ((0.0, LOST), (1.0, LOST)), "showscale": False}
    within = choice.table.loc[choice.table["kept"], "trait"].max()
    return go.Heatmap(
        z=[[None if cell is None else cell.trait for cell in line] for line in shown],
        text=text,
        texttemplate="%{text}",
        customdata=[[[0, 0, 0] if c is None else [c.coherent, c.n, c.change] for c in line] for line in shown],
        zmin=0,
        zmax=within if within > 0.1 else 0.1,
        xgap=2,
        ygap=2,
        hoverongaps=False,
        hovertemplate=f"block %{{y}}, strength %{{x}}: %{{z:.1%}} {escape(choice.trait)} (%{{customdata[2]:+.1%}}), "
        "%{customdata[0]:.1%} coherent, n = %{customdata[1]}<extra></extra>",
        **colours,
    )


def _number(cell: "Cell | None", best: "Cell | None", *, inside: bool) -> str:
    if cell is None or cell.n == 0:
        return ""
    return f"{'★ ' if cell == best else ''}{cell.trait:.0%}" if inside else f"({cell.trait:.0%})"


def _best(choice: "LayerChoice") -> "Cell | None":
    try:
        return choice.best
    except InputError:
        return None


def _title(choice: "LayerChoice", best: "Cell | None") -> str:
    word, before = escape(choice.trait), f"{choice.untreated.trait:.0%}"
    if best is None:
        return f"No block moves {before} {word}"
    return f"Block {best.layer} at {best.strength:g}: {before} to {best.trait:.0%} {word}"
