"""How near is it to what was trained? Distances with their nulls, and the harmful neighbourhood on the map."""

from __future__ import annotations

from typing import Any

from persona_geometry.report.figures.geometry import GROUPS, distances_figure, map_figure, null_figure
from persona_geometry.report.html import Html, data_table
from persona_geometry.report.plots import plot
from persona_geometry.report.view import View
from persona_geometry.report.wording import ABSENT, known, number, probability

LISTED = 60


def _interval(ci: Any) -> str:
    return f"{number(ci[0])} to {number(ci[1])}" if ci and known(ci[0]) and known(ci[1]) else ABSENT


def _lines(geometry: dict[str, Any]) -> dict[str, list[str]]:
    found = [
        ("without shared latents (headline)", geometry),
        ("with shared latents", geometry.get("with_shared") or {}),
    ]
    found = [(label, entry) for label, entry in found if known(entry.get("effect"))]
    return {
        "latents": [label for label, _ in found],
        "what was trained": [number(entry.get("inducing_to_harmful")) for _, entry in found],
        "benign data": [number(entry.get("benign_to_harmful")) for _, entry in found],
        "difference": [number(entry["effect"]) for _, entry in found],
        "95\u00a0% interval": [_interval(entry.get("ci")) for _, entry in found],
        "p": [probability(entry.get("p")).removeprefix("p ").removeprefix("= ") for _, entry in found],
    }


def distances(view: View) -> Html:
    """Cosine to the harmful features by set, with and without shared latents."""
    geometry = view.need("geometry", "geometry")
    table = view.table("distances", "set", "latent", "similarity", part="geometry")
    lines = _lines(geometry)
    alt = "; ".join(
        f"{label}: difference {value}, p {p}"
        for label, value, p in zip(lines["latents"], lines["difference"], lines["p"], strict=True)
    )
    note = "Cosine between decoder directions. Latents that both sets share are left out here; the table has both."
    return plot(
        "distances",
        distances_figure(table, geometry),
        alt=alt,
        table=data_table(lines, caption="Mean cosine to the harmful features", numeric=list(lines)[1:]),
        note=note,
    )


def null(view: View) -> Html:
    """The difference that was found, against what chance gives."""
    geometry = view.need("geometry", "geometry")
    draws = view.table("geometry_null", "null", "effect", part="geometry")
    kind = str(geometry.get("null", draws["null"].iloc[0])).replace("_", " ")
    numbers = None
    if "geometry" in view.study.tables:
        table = view.table("geometry", "null", "effect", "low", "high", "p", part="geometry")
        shared = table["with_shared"] if "with_shared" in table else [False] * len(table)
        columns = {
            "null": [str(n).replace("_", " ") for n in table["null"]],
            "shared latents": ["with" if flag else "without" for flag in shared],
            "difference": [number(float(v)) for v in table["effect"]],
            "95\u00a0% interval": [
                _interval((float(a), float(b))) for a, b in zip(table["low"], table["high"], strict=True)
            ],
            "p": [probability(float(v)).removeprefix("p ").removeprefix("= ") for v in table["p"]],
        }
        numbers = data_table(
            columns, caption="The difference under each null", numeric=("difference", "95\u00a0% interval", "p")
        )
    alt = f"Found: {number(geometry.get('effect'))}, interval {_interval(geometry.get('ci'))}"
    return plot("null", null_figure(draws, geometry), alt=alt, table=numbers, note=f"Chance: {kind}.")


def latent_map(view: View) -> Html:
    """The map, its trustworthiness beside it."""
    table = view.table("map", "latent", "x", "y", "group")
    if "label" not in table:
        table = table.assign(label="")
    trust = view.value("geometry.trustworthiness", view.value("map.trustworthiness"))
    beside = (
        f"Trustworthiness {number(trust, 2)} (1 is best). "
        if known(trust)
        else "The map's trustworthiness was not measured. "
    )
    note = beside + "A map bends distances: trust the cosines above, and read the map for neighbourhoods only."
    sets = table[table["group"] != "other"].head(LISTED)
    numbers = {
        "latent": [int(n) for n in sets["latent"]],
        "set": [GROUPS.get(g, ("", "", g))[2] for g in sets["group"]],
        "x": [number(float(v)) for v in sets["x"]],
        "y": [number(float(v)) for v in sets["y"]],
    }
    alt = "; ".join(f"{len(part):,} {GROUPS.get(group, ('', '', group))[2]}" for group, part in table.groupby("group"))
    figure = map_figure(table, hover=not view.no_text)
    return plot(
        "map",
        figure,
        alt=alt,
        table=data_table(numbers, caption=f"Latents of the sets on the map (first {len(sets)})", numeric=("x", "y")),
        note=note,
    )


PARTS = (distances, null, latent_map)
