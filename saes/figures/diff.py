"""Bars of a model diff: what a fine-tune raised and what it lowered."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from probes.errors import InputError
from probes.theme import ALIGNED, CHOSEN, CONTROL, MARKERS, MISALIGNED, themed

CONTROLS = {"control_delta": "control", "benign_delta": "benign control", "narrow_delta": "narrow twin"}


def latent_diff_figure(
    table: pd.DataFrame, *, n: int = 10, labels: Mapping[int, str] | None = None, chosen: Sequence[int] = ()
) -> go.Figure:
    """The `n` latents that rose and the `n` that fell most, tuned minus base, beside the same for control models.

    `table` has `latent` and `delta_mean`; `base_freq`, `tuned_freq` and the columns of `CONTROLS` are shown where they
    are. `labels` puts a few words behind a latent's number, `chosen` marks latents with a star. Raises InputError for
    a table without these columns or without rows.
    """
    missing = [column for column in ("latent", "delta_mean") if column not in table.columns]
    if missing or table.empty:
        raise InputError(f"latent table: {missing[0] if missing else 'no rows'}; it needs latent and delta_mean")
    rows = _ends(table, n)
    names = [_name(int(row["latent"]), labels or {}) for row in rows]
    deltas, colours = [row["delta_mean"] for row in rows], [_colour(row) for row in rows]
    figure = go.Figure()
    figure.add_bar(
        x=deltas, y=names, orientation="h", width=0.12, marker_color=colours, hoverinfo="skip", showlegend=False
    )
    controls = [column for column in CONTROLS if any(pd.notna(row.get(column)) for row in rows)]
    for column in controls:
        _add_control(figure, [row[column] for row in rows], names, CONTROLS[column])
    _add_tuned(figure, rows, names, set(chosen))
    figure.update_xaxes(title_text="change of the mean activation, tuned minus base", zeroline=True, zerolinewidth=2)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    figure.update_layout(
        showlegend=bool(controls),
        height=190 + 24 * max(len(rows), 4),
        margin={"t": 88, "b": 92},
        legend={"yref": "container", "y": 0.01, "yanchor": "bottom"},
    )
    return themed(figure, _title(rows))


def _ends(table: pd.DataFrame, n: int) -> list[dict[str, Any]]:
    """The rows that rose, most first, and then those that fell, most last; unchanged latents are left out."""
    rows = table.sort_values("delta_mean", ascending=False, kind="stable").to_dict("records")
    rose, fell = ([row for row in rows if sign * row["delta_mean"] > 0] for sign in (1, -1))
    return [*rose[:n], *fell[max(0, len(fell) - n) :]]


def _name(latent: int, labels: Mapping[int, str]) -> str:
    words = labels.get(latent, "")
    return f"{latent}  {escape(words[:60])}" if words else str(latent)


def _colour(row: Mapping[str, Any]) -> str:
    return MISALIGNED if row["delta_mean"] > 0 else ALIGNED


def _add_control(figure: go.Figure, values: list[float], names: list[str], word: str) -> None:
    symbol = "square-open" if word.startswith("narrow") else MARKERS["control"]
    figure.add_scatter(
        x=values,
        y=names,
        mode="markers",
        name=word,
        marker={"symbol": symbol, "color": CONTROL, "size": 8},
        hovertemplate=f"{word}: %{{x:+.3g}}<extra></extra>",
    )


def _add_tuned(figure: go.Figure, rows: Sequence[Mapping[str, Any]], names: list[str], chosen: set[int]) -> None:
    stars = [row["latent"] in chosen for row in rows]
    signs = ["misaligned" if row["delta_mean"] > 0 else "aligned" for row in rows]
    figure.add_scatter(
        x=[row["delta_mean"] for row in rows],
        y=names,
        mode="markers",
        name="tuned",
        marker={
            "symbol": [MARKERS["chosen" if star else sign] for star, sign in zip(stars, signs, strict=True)],
            "color": [CHOSEN if star else _colour(row) for star, row in zip(stars, rows, strict=True)],
            "size": [13 if star else 10 for star in stars],
            "opacity": 1,
        },
        text=[f"latent {row['latent']}: {row['delta_mean']:+.3g}{_activity(row)}" for row in rows],
        hovertemplate="%{text}<extra></extra>",
    )


def _activity(row: Mapping[str, Any]) -> str:
    if "base_freq" not in row or "tuned_freq" not in row:
        return ""
    return f", active on {row['base_freq']:.1%} of the tokens before and {row['tuned_freq']:.1%} after"


def _title(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the data shows: the latent that rose most and the one that fell most."""
    if not rows:
        return "No latent changed"
    first, last = rows[0], rows[-1]
    parts = []
    if first["delta_mean"] > 0:
        parts.append(f"Latent {first['latent']} rose most ({first['delta_mean']:+.3g}{_activity(first)})")
    if last["delta_mean"] < 0:
        verb = "latent {} fell most ({:+.3g})" if parts else "No latent rose; latent {} fell most ({:+.3g})"
        parts.append(verb.format(last["latent"], last["delta_mean"]))
    return ";<br>".join(parts)
