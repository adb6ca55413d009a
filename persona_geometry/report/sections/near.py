"""How near is it to what was trained? Distances with their nulls, and the harmful neighbourhood on the map."""

from __future__ import annotations

from typing import Any

import pandas as pd

from geometry.features.figures import geometry_figure, map_figure
from persona_geometry.report.html import Html, data_table, join
from persona_geometry.report.plots import plot
from persona_geometry.report.tables import Table
from persona_geometry.report.view import LeftOut, View
from persona_geometry.report.wording import ABSENT, known, listing, number, probability

LISTED = 60
CLOUD = 100_000
INTERVAL = "95\u00a0% interval"


def _interval(ci: Any) -> str:
    return f"{number(ci[0])} to {number(ci[1])}" if ci and known(ci[0]) and known(ci[1]) else ABSENT


def _p(value: Any) -> str:
    return probability(value).removeprefix("p ").removeprefix("= ")


def _lines(geometry: dict[str, Any]) -> dict[str, list[str]]:
    found = [
        ("without shared latents (headline)", geometry),
        ("with shared latents", geometry.get("with_shared") or {}),
    ]
    found = [(label, entry) for label, entry in found if known(entry.get("effect"))]
    return {
        "latents": [label for label, _ in found],
        "inducing": [number(entry.get("inducing_to_harmful")) for _, entry in found],
        "benign": [number(entry.get("benign_to_harmful")) for _, entry in found],
        "difference": [number(entry["effect"]) for _, entry in found],
        INTERVAL: [_interval(entry.get("ci")) for _, entry in found],
        "p": [_p(entry.get("p")) for _, entry in found],
    }


def _nulls(view: View) -> Html | None:
    if view.study.tables.get("geometry") is None:
        return None
    table = view.table("geometry", "null", "effect", "low", "high", "p")
    shared = table["with_shared"] if "with_shared" in table else [False] * len(table)
    ends = zip(table["low"], table["high"], strict=True)
    measure = {"similarity": list(table["aggregate"])} if "aggregate" in table else {}
    columns = measure | {
        "null": [str(null).replace("_", " ") for null in table["null"]],
        "shared latents": ["with" if flag else "without" for flag in shared],
        "difference": [number(float(effect)) for effect in table["effect"]],
        INTERVAL: [_interval((float(low), float(high))) for low, high in ends],
        "p": [_p(float(p)) for p in table["p"]],
    }
    return data_table(columns, caption="The difference under each null", numeric=("difference", INTERVAL, "p"))


def distances(view: View) -> Html:
    """Each latent's cosine to the harmful features, and the difference between the sets against what chance gives."""
    geometry = view.need("geometry", "geometry")
    table = view.table("distances", "set", "latent", "similarity", part="geometry")
    draws = view.table("geometry_null", "null", "effect", part="geometry")
    missing = [key for key in ("effect", "ci", "p", "null") if geometry.get(key) is None]
    if missing or geometry["null"] not in set(draws["null"]):
        raise LeftOut("geometry", f"the study lacks {listing(missing) or 'the draws of its null'}")
    lines = _lines(geometry)
    said = zip(lines["latents"], lines["difference"], lines["p"], strict=True)
    alt = "; ".join(f"{label}: difference {value}, p {p}" for label, value, p in said)
    note = (
        "Inducing: latents of the training data. Benign: latents of the control's data. Harmful: latents of harmful "
        "text from elsewhere. Latents that sets share are left out here; the table has both."
    )
    means = data_table(lines, caption="Mean cosine to the harmful features", numeric=list(lines)[1:])
    figure = geometry_figure(table, draws, geometry)
    return plot("distances", figure, alt=alt, table=join(means, _nulls(view)), note=note)


def thin(cloud: Table, limit: int = CLOUD) -> Table:
    """At most `limit` latents outside the sets, taken at even steps."""
    other = cloud[cloud["group"] == "other"]
    if len(other) <= limit:
        return cloud
    kept = other.iloc[[round(i * (len(other) - 1) / (limit - 1)) for i in range(limit)]]
    return pd.concat([kept, cloud[cloud["group"] != "other"]])


def latent_map(view: View) -> Html:
    """The map, its trustworthiness beside it."""
    table = view.table("map", "latent", "x", "y", "group")
    trust = float(table["trustworthiness"].iloc[0]) if "trustworthiness" in table else None
    beside = "1 is the best trustworthiness. " if known(trust) else "The map's trustworthiness was not measured. "
    note = beside + "A map bends distances: trust the cosines above, and read the map for neighbourhoods only."
    sets = table[table["group"] != "other"].head(LISTED)
    numbers = {
        "latent": [int(latent) for latent in sets["latent"]],
        "set": list(sets["group"]),
        "x": [number(float(x)) for x in sets["x"]],
        "y": [number(float(y)) for y in sets["y"]],
    }
    alt = "; ".join(f"{len(part):,} {group}" for group, part in table.groupby("group"))
    shown = thin(table.drop(columns="label", errors="ignore") if view.no_text else table)
    figure = map_figure(shown, trust=trust if known(trust) else None)
    figure.update_layout(height=500).update_xaxes(showline=False).update_yaxes(showline=False)
    caption = f"Latents of the sets on the map (first {len(sets)})"
    return plot("map", figure, alt=alt, table=data_table(numbers, caption=caption, numeric=("x", "y")), note=note)


PARTS = (distances, latent_map)
