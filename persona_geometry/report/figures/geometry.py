"""Distances between feature sets with their null, and the map of decoder directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from persona_geometry.report.figures.common import SIZE, canvas, label, rows_axis, value_column
from persona_geometry.report.plots import escape_plotly
from persona_geometry.report.tables import Table
from persona_geometry.report.theming import LIGHT
from persona_geometry.report.wording import known, number, percent, probability

CLOUD = 20_000
WEBGL_ABOVE = 4_000
# group -> (colour's meaning, symbol, words)
GROUPS = {
    "other": ("control", "circle", "other latents"),
    "neutral": ("control", "circle-open", "neutral text"),
    "benign": ("aligned", "circle", "benign data"),
    "inducing": ("misaligned", "diamond", "what was trained"),
    "shared": ("shared", "square", "in both sets"),
    "harmful": ("harmful", "triangle-up", "harmful"),
}


def geometry_finding(geometry: Mapping[str, Any]) -> str:
    """Whether what was trained lies nearer to the harmful features than the control does."""
    effect, ci, p = geometry.get("effect"), geometry.get("ci") or (None, None), geometry.get("p")
    if not known(effect):
        return "Similarity to the harmful features, by set"
    tail = f"{number(effect, 2)} in cosine, {probability(p)}"
    if known(ci[0]) and ci[0] > 0 and (not known(p) or p < 0.05):
        return f"What was trained lies nearer to the harmful features than benign data does: by {tail}"
    if known(ci[1]) and ci[1] < 0:
        return f"What was trained lies farther from the harmful features than benign data does: by {tail}"
    return f"What was trained is about as near to the harmful features as benign data: difference {tail}"


def distances_figure(distances: Table, geometry: Mapping[str, Any]) -> go.Figure:
    """Each latent's cosine to the harmful set, by the set it belongs to; the tall tick is the set's mean.

    `distances` has the columns set, latent, similarity.
    """
    sets = [name for name in ("inducing", "benign", "neutral") if name in set(distances["set"])]
    sets += [name for name in distances["set"].unique() if name not in sets]
    figure = canvas(geometry_finding(geometry), height=86 + 50 * len(sets), margin={"l": 4, "r": 74, "t": 30, "b": 46})
    means = [float(distances.loc[distances["set"] == name, "similarity"].mean()) for name in sets]
    for place, (name, mean) in enumerate(zip(sets, means, strict=True)):
        part = distances[distances["set"] == name]
        kind, symbol, word = GROUPS.get(name, ("control", "square", name))
        scatter = np.random.default_rng(place).uniform(-0.2, 0.2, len(part))
        figure.add_scatter(
            x=part["similarity"],
            y=place + scatter,
            mode="markers",
            marker={"symbol": symbol, "color": LIGHT[kind], "size": 8, "opacity": 0.75},
            customdata=part["latent"],
            name=escape_plotly(word),
            cliponaxis=False,
            hovertemplate="latent %{customdata}<br>cosine %{x:.3f}<extra></extra>",
        )
        figure.add_shape(
            type="line", x0=mean, x1=mean, y0=place - 0.34, y1=place + 0.34, line={"color": LIGHT["ink"], "width": 2.5}
        )
    value_column(figure, [number(mean, 2) for mean in means], shift=14, head="mean")
    words = [
        escape_plotly(f"{GROUPS.get(name, ('', '', name))[2]} ({int((distances['set'] == name).sum())})")
        for name in sets
    ]
    figure.update_xaxes(title={"text": "cosine to the harmful features"}, zeroline=True, zerolinecolor=LIGHT["line"])
    return figure.update_yaxes(rows_axis(words))


def null_figure(null: Table, geometry: Mapping[str, Any]) -> go.Figure:
    """The effects that chance gives under the named null, and the effect that was found with its interval."""
    effect, ci, kind = geometry.get("effect"), geometry.get("ci") or (None, None), geometry.get("null")
    chosen = null[null["null"] == kind] if kind in set(null["null"]) else null[null["null"] == null["null"].iloc[0]]
    values = chosen["effect"].to_numpy(float)
    figure = canvas(_null_finding(values, effect), height=230)
    counts, edges = np.histogram(values, bins=min(40, max(10, len(values) // 15)))
    figure.add_bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=counts / max(1, counts.sum()),
        width=np.diff(edges) * 0.92,
        marker={"color": LIGHT["control"], "opacity": 0.6},
        hovertemplate="%{x:.3f}<br>%{y:.1%} of the draws<extra></extra>",
    )
    top = float(counts.max() / max(1, counts.sum()))
    if known(effect):
        low, high = (ci[0], ci[1]) if known(ci[0]) and known(ci[1]) else (effect, effect)
        error = {
            "type": "data",
            "symmetric": False,
            "array": [high - effect],
            "arrayminus": [effect - low],
            "color": LIGHT["misaligned"],
            "width": 0,
            "thickness": 3,
        }
        figure.add_scatter(
            x=[effect],
            y=[top * 0.5],
            mode="markers",
            marker={"symbol": "diamond", "color": LIGHT["misaligned"], "size": SIZE["misaligned"]},
            error_x=error,
            hovertemplate=f"found: {number(effect)}, 95 % interval {number(low)} to {number(high)}<extra></extra>",
        )
        figure.add_annotation(
            label(effect, top * 0.5, f"found: {number(effect, 2)}", kind="misaligned", yshift=16, xanchor="center")
        )
    figure.add_annotation(
        label(
            float(np.median(values)),
            top,
            f"chance, {len(values):,} draws",
            kind="control",
            yanchor="bottom",
            xanchor="center",
        )
    )
    figure.update_yaxes(visible=False, range=[0, top * 1.25])
    return figure.update_xaxes(title={"text": "difference in cosine: what was trained, minus benign data"})


def _null_finding(values: np.ndarray, effect: float | None) -> str:
    if not known(effect):
        return "What chance gives"
    above = int((values >= effect).sum()) if effect >= 0 else int((values <= effect).sum())
    if above == 0:
        return f"None of {len(values):,} chance draws reaches the difference that was found"
    return f"{percent(above / len(values))} of {len(values):,} chance draws reach the difference that was found"


def thin(cloud: Table, limit: int = CLOUD) -> Table:
    """At most `limit` latents outside the sets, taken at even steps."""
    other = cloud[cloud["group"] == "other"]
    if len(other) <= limit:
        return cloud
    kept = other.iloc[np.linspace(0, len(other) - 1, limit).astype(int)]
    return pd.concat([kept, cloud[cloud["group"] != "other"]])


def map_figure(cloud: Table, trustworthiness: float | None = None, *, hover: bool = True) -> go.Figure:
    """The map of decoder directions, the sets drawn over the rest; `cloud` has latent, x, y, group, label.

    Text stands only on points of the sets; above a few thousand points the rest is drawn with WebGL.
    """
    figure = canvas(map_finding(cloud), height=480, margin={"l": 4, "r": 4, "t": 40, "b": 4})
    cloud = thin(cloud)
    for name in sorted(cloud["group"].unique(), key=lambda group: list(GROUPS).index(group) if group in GROUPS else -1):
        part = cloud[cloud["group"] == name]
        kind, symbol, word = GROUPS.get(name, ("control", "circle", name))
        draw = figure.add_scattergl if len(part) > WEBGL_ABOVE else figure.add_scatter
        quiet = name == "other" or kind == "control"
        texts = None if quiet or not hover else [escape_plotly(str(text)[:60]) for text in part["label"]]
        draw(
            x=part["x"].to_numpy("float32"),
            y=part["y"].to_numpy("float32"),
            mode="markers",
            name=f"{escape_plotly(word)} ({len(part):,})",
            text=texts,
            customdata=part["latent"].to_numpy("int32"),
            marker={
                "symbol": symbol,
                "color": LIGHT[kind],
                "size": 4 if quiet else 9,
                "opacity": 0.35 if quiet else 0.9,
            },
            hovertemplate="latent %{customdata}"
            + ("<br>%{text}" if texts else "")
            + f"<extra>{escape_plotly(word)}</extra>",
        )
    bare = {"showline": False, "ticks": "", "showticklabels": False}
    figure.update_xaxes(**bare).update_yaxes(**bare, scaleanchor="x")
    return figure.update_layout(
        showlegend=True,
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.0,
            "yanchor": "bottom",
            "font": {"size": 12},
            "itemsizing": "constant",
        },
    )


def map_finding(cloud: Table) -> str:
    """How many of the latents nearest to the harmful ones on the map come from each set."""
    harmful, rest = (cloud[cloud["group"].isin(names)] for names in (("harmful", "shared"), ("inducing", "benign")))
    if harmful.empty or rest.empty or rest["group"].nunique() < 2:
        return "The map of decoder directions"
    gaps = np.linalg.norm(
        rest[["x", "y"]].to_numpy(float)[:, None] - harmful[["x", "y"]].to_numpy(float)[None], axis=2
    ).min(axis=1)
    every = cloud.loc[~cloud.index.isin(harmful.index), ["x", "y"]].to_numpy(float)
    usual = (
        float(np.median(np.linalg.norm(every[:, None] - harmful[["x", "y"]].to_numpy(float)[None], axis=2).min(axis=1)))
        if len(every) < 50_000
        else float(np.median(gaps))
    )
    near: Table = pd.Series(gaps < 0.25 * usual, index=rest["group"].to_numpy())
    shares = near.groupby(level=0).mean()
    bad, good = percent(shares["inducing"]), percent(shares["benign"])
    return f"Near the harmful features on the map: {bad} of what was trained, {good} of the benign data"
