"""Figures of steering: dose curves, what a screen found, who writes a direction, how strong a vector is by block."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probes.errors import InputError
from probes.theme import ALIGNED, CHOSEN, CONTROL, DIVERGING, MARKERS, MISALIGNED, themed

if TYPE_CHECKING:
    from geometry.steering.vectors import PersonaVector

BAND = "rgba(138, 143, 152, 0.2)"
Rows = Sequence[Mapping[str, Any]]


def dose_figure(
    table: pd.DataFrame,
    *,
    coherence_budget: float | None = None,
    capabilities: Sequence[str] = (),
    trait: str = "misaligned",
) -> go.Figure:
    """Misaligned rate and, below it, coherence against strength; random controls as a grey band, the chosen dose as a
    star.

    `table` is that of a `DoseCurve`; where it holds two models (`on`), each has its own line. The least coherence that
    will do is shaded if given; `capabilities` are further columns, a panel each; `trait` is what the first panel calls
    the misaligned rate. Raises InputError for a table without a vector's rows.
    """
    _columns(table, "strength", "kind", "misaligned", "low", "high", "coherent", "n", *capabilities)
    rows = table.sort_values("strength", kind="stable").to_dict("records")
    treated = [row for row in rows if row["kind"] == "vector"]
    if not treated:
        raise InputError("dose table without rows of the kind 'vector': nothing to draw")
    heights = [0.65, 0.35, *[0.35] * len(capabilities)]
    figure = make_subplots(len(heights), 1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.06)
    for kind in dict.fromkeys(row["kind"] for row in rows if row["kind"] != "vector"):
        for on in dict.fromkeys(row.get("on", "") for row in rows):
            _band(figure, [row for row in rows if row["kind"] == kind and row.get("on", "") == on], _words(kind, on))
    for on in dict.fromkeys(row.get("on", "") for row in treated):
        mine = [row for row in treated if row.get("on", "") == on]
        _dose_line(figure, mine, "misaligned", 1, f"{trait}, {on}" if on else trait)
        _dose_line(figure, mine, "coherent", 2, f"coherent, {on}" if on else "coherent")
    _stars(figure, [row for row in treated if row.get("chosen")])
    if coherence_budget is not None:
        figure.add_hrect(y0=0, y1=coherence_budget, fillcolor=BAND, line_width=0, row=2, col=1)  # type: ignore[arg-type]
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", title_text=escape(trait), row=1, col=1)
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02], title_text="coherent", row=2, col=1)
    for row, what in enumerate(capabilities, 3):
        _capability_lines(figure, rows, what, row)
    figure.update_xaxes(title_text="strength", row=len(heights), col=1)
    height = 520 + 150 * len(capabilities)
    below = -0.2 * 338 / (height - 182)  # as many pixels under the lowest panel, however many there are
    figure.update_layout(height=height, margin_b=110, legend={"y": below, "yanchor": "top"})
    return themed(figure, _dose_title(treated, trait))


def screen_figure(table: pd.DataFrame) -> go.Figure:
    """Each latent's cut of the excess in the tuned model against the rise that it causes in the base model.

    `table` is that of a `CausalScreen`. Latents in the upper right work both ways.
    """
    _columns(table, "latent", "induce", "repair")
    rows = [row for row in table.to_dict("records") if pd.notna(row["induce"]) and pd.notna(row["repair"])]
    figure = go.Figure(
        go.Scatter(
            x=[row["induce"] for row in rows],
            y=[row["repair"] for row in rows],
            text=[str(row["latent"]) for row in rows],
            mode="markers+text",
            textposition="top center",
            marker={"color": MISALIGNED, "symbol": MARKERS["misaligned"], "size": 10},
            hovertemplate="latent %{text}: rise %{x:+.1%}, cut %{y:.1%}<extra></extra>",
        )
    )
    right, low = max([0.5, *(r["induce"] for r in rows)]), min([0.0, *(r["repair"] for r in rows)])
    figure.update_xaxes(
        title_text="rise of the base model's misaligned rate", tickformat=".0%", range=[-0.1, right + 0.1]
    )
    figure.update_yaxes(title_text="cut of the tuned model's excess", tickformat=".0%", range=[low - 0.1, 1.15])
    return themed(figure, _screen_title(rows, len(table)))


def writers_figure(table: pd.DataFrame) -> go.Figure:
    """Heat map of what the fine-tune changed in each component's writing along the direction: blocks by heads and MLP.

    `table` is that of `Writers`; the embedding, which belongs to no block, is left to the title.
    """
    _columns(table, "layer", "component", "head", "base", "tuned", "shift")
    rows = [row for row in table.to_dict("records") if row["component"] != "embed"]
    if not rows:
        raise InputError("writers table without heads and MLPs: nothing to draw")
    blocks = sorted({row["layer"] for row in rows})
    names = list(dict.fromkeys(_component(row) for row in sorted(rows, key=_place)))
    cells = {(row["layer"], _component(row)): row for row in rows}
    grid = [[cells.get((block, name)) for name in names] for block in blocks]
    reach = max(abs(row["shift"]) for row in rows) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=[[None if cell is None else cell["shift"] for cell in line] for line in grid],
            x=names,
            y=[f"block {block}" for block in blocks],
            customdata=[[[c["base"], c["tuned"]] if c else [0, 0] for c in line] for line in grid],
            zmin=-reach,
            zmax=reach,
            colorscale=DIVERGING,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": "shift"}},
            hovertemplate="%{y}, %{x}: %{z:+.3g} (%{customdata[0]:.3g} to %{customdata[1]:.3g})<extra></extra>",
        )
    )
    figure.update_xaxes(showgrid=False, type="category")
    figure.update_yaxes(showgrid=False, type="category")
    return themed(figure, _writers_title(table.to_dict("records")))


def vector_figure(vector: "PersonaVector") -> go.Figure:
    """Norm of the direction by block, as a share of the residual norm where that is known, and split-half cosine."""
    known = all(layer in vector.resid_norms for layer in vector.layers)
    sizes = [vector.norm(layer) / (vector.resid_norms[layer] if known else 1.0) for layer in vector.layers]
    blocks, halves = list(vector.layers), [vector.split_half.get(layer) for layer in vector.layers]
    split = any(half is not None for half in halves)
    figure = make_subplots(rows=2 if split else 1, cols=1, shared_xaxes=True)
    figure.add_bar(x=blocks, y=sizes, marker_color=MISALIGNED, width=0.5, name="norm", row=1, col=1)
    figure.update_yaxes(title_text="norm / residual norm" if known else "norm", rangemode="tozero", row=1, col=1)
    if split:
        marker = {"color": ALIGNED, "symbol": MARKERS["aligned"], "size": 9}
        figure.add_scatter(x=blocks, y=halves, mode="lines+markers", marker=marker, name="cosine", row=2, col=1)
        lowest = min(0.0, *(half for half in halves if half is not None), 0.0)
        figure.update_yaxes(title_text="split-half cosine", range=[lowest - 0.05, 1.05], row=2, col=1)
    figure.update_xaxes(dtick=1).update_xaxes(title_text="block", row=2 if split else 1, col=1)
    figure.update_layout(showlegend=False)
    largest = blocks[max(range(len(sizes)), key=sizes.__getitem__)]
    return themed(figure, f"{escape(vector.method or 'Persona vector')}: largest at block {largest}")


def _band(figure: go.Figure, rows: Rows, name: str) -> None:
    """Mean and 5-95 % range of random controls; a single strength is drawn as a bar with whiskers."""
    for row, what, low, high in ((1, "misaligned", "low", "high"), (2, "coherent", "coherent", "coherent")):
        if not rows:
            continue
        x, middle = [r["strength"] for r in rows], [r[what] for r in rows]
        edges = {
            "type": "data",
            "array": [r[high] - r[what] for r in rows],
            "arrayminus": [r[what] - r[low] for r in rows],
        }
        if len(rows) > 1 and row == 1:
            around = [r[high] for r in rows] + [r[low] for r in reversed(rows)]
            figure.add_scatter(
                x=x + x[::-1], y=around, fill="toself", fillcolor=BAND, line_width=0, hoverinfo="skip",
                showlegend=False, mode="lines", row=1, col=1,
            )  # fmt: skip
        figure.add_scatter(
            x=x,
            y=middle,
            error_y=edges if row == 1 and len(rows) == 1 else None,
            mode="lines+markers",
            line={"color": CONTROL, "dash": "dot"},
            marker={"color": CONTROL, "symbol": MARKERS["control"]},
            name=name,
            showlegend=row == 1,
            hovertemplate="%{x}: %{y:.1%}",
            row=row,
            col=1,
        )


def _dose_line(figure: go.Figure, rows: Rows, what: str, row: int, name: str) -> None:
    colour, symbol = (MISALIGNED, "misaligned") if what == "misaligned" else (ALIGNED, "aligned")
    spread = {
        "type": "data",
        "array": [r["high"] - r["misaligned"] for r in rows],
        "arrayminus": [r["misaligned"] - r["low"] for r in rows],
    }
    figure.add_scatter(
        x=[r["strength"] for r in rows],
        y=[r[what] for r in rows],
        error_y=spread if what == "misaligned" else None,
        customdata=[r["n"] for r in rows],
        mode="lines+markers",
        line={"color": colour, "dash": "dash" if name.endswith("base") else "solid"},
        marker={"color": colour, "symbol": MARKERS[symbol], "size": 9},
        name=escape(name),
        hovertemplate="strength %{x}: %{y:.1%}, n = %{customdata}",
        row=row,
        col=1,
    )


def _capability_lines(figure: go.Figure, rows: Rows, what: str, row: int) -> None:
    """A capability against strength: the vector's line, and the means of the random kinds."""
    for kind, on in dict.fromkeys((r["kind"], r.get("on", "")) for r in rows):
        mine = [r for r in rows if (r["kind"], r.get("on", "")) == (kind, on)]
        own = kind == "vector"
        colour, symbol = (ALIGNED, "aligned") if own else (CONTROL, "control")
        figure.add_scatter(
            x=[r["strength"] for r in mine],
            y=[r[what] for r in mine],
            mode="lines+markers",
            line={"color": colour, "dash": ("dash" if on == "base" else "solid") if own else "dot"},
            marker={"color": colour, "symbol": MARKERS[symbol], "size": 9 if own else 6},
            name=escape(what) if own else _words(kind, on),
            showlegend=False,
            hovertemplate="strength %{x}: %{y:.4g}",
            row=row,
            col=1,
        )
    figure.update_yaxes(title_text=escape(what), row=row, col=1)


def _stars(figure: go.Figure, chosen: Rows) -> None:
    for row, what in ((1, "misaligned"), (2, "coherent")):
        figure.add_scatter(
            x=[r["strength"] for r in chosen],
            y=[r[what] for r in chosen],
            mode="markers",
            marker={"color": CHOSEN, "symbol": MARKERS["chosen"], "size": 16},
            name="chosen",
            showlegend=row == 1 and bool(chosen),
            hoverinfo="skip",
            row=row,
            col=1,
        )


def _dose_title(treated: Rows, trait: str) -> str:
    chosen = [row for row in treated if row.get("chosen")] or treated
    row = min(chosen, key=lambda r: r["misaligned"])
    return f"Strength {row['strength']:g}: {row['misaligned']:.0%} {escape(trait)}, {row['coherent']:.0%} coherent"


def _screen_title(rows: Rows, n: int) -> str:
    if not rows:
        return f"None of {n} latents could be judged in both models"
    best = max(rows, key=lambda row: row["repair"])
    return (
        f"Latent {best['latent']} removes {best['repair']:.0%} of the excess and adds {best['induce']:.0%} to the base"
    )


def _writers_title(rows: Rows) -> str:
    total = sum(row["shift"] for row in rows)
    top = max(rows, key=lambda row: abs(row["shift"]))
    where = "the embedding" if top["component"] == "embed" else f"{_component(top)} of block {top['layer']}"
    share = f", {top['shift'] / total:.0%} of the whole" if abs(total) > 1e-12 else ""
    return f"{where[0].upper()}{where[1:]} changed most: {top['shift']:+.2g}{share}"


def _component(row: Mapping[str, Any]) -> str:
    names = {"mlp": "MLP", "attn_bias": "bias", "embed": "embedding"}
    return f"head {row['head']}" if row["component"] == "head" else names.get(row["component"], str(row["component"]))


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    return ("head", "attn_bias", "mlp").index(row["component"]), row["head"]


def _words(kind: str, on: str) -> str:
    return escape(f"{kind.replace('_', ' ')}{', ' + on if on else ''}")


def _columns(table: pd.DataFrame, *wanted: str) -> None:
    missing = [column for column in wanted if column not in table.columns]
    if missing or table.empty:
        raise InputError(f"table: {missing[0] if missing else 'no rows'}; it needs the columns {', '.join(wanted)}")
