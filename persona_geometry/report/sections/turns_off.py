"""What turns it off? The treatments, the dose curves, the layers, and who writes the direction."""

from __future__ import annotations

from typing import Any

import pandas as pd

from persona_geometry.report.figures.doses import BUDGET, dose_figure, layer_figure, random_band
from persona_geometry.report.figures.rates import TREATMENTS, cells, treatments_figure
from persona_geometry.report.figures.writers import component_name, writers_figure
from persona_geometry.report.html import Html, data_table, join
from persona_geometry.report.plots import plot
from persona_geometry.report.sections.became import rates_table
from persona_geometry.report.tables import Table
from persona_geometry.report.view import LeftOut, View
from persona_geometry.report.wording import ABSENT, known, listing, name, number, percent, plain, span, whole

COLUMNS = ("strength", "kind", "on", "misaligned", "coherent", "n")
LISTED = 60


def _chosen(view: View) -> str | None:
    chosen = view.value("chosen", {})
    if not chosen:
        return None
    layers = [str(layer) for layer in chosen.get("layers") or []]
    what = [str(chosen[key]) for key in ("vector", "operation") if chosen.get(key)]
    what += [f"{'block' if len(layers) == 1 else 'blocks'} {' and '.join(layers)}"] if layers else []
    what += [f"dose {plain(chosen['dose'])}"] if known(chosen.get("dose")) else []
    return f"Chosen: {', '.join(what)}" + (f" ({chosen['why']})." if chosen.get("why") else ".")


def _cuts(cut: dict[str, Any]) -> str | None:
    words = {"ablated": "the vector taken out", "realigned": "re-alignment"}
    found = [(words.get(key, key), value) for key, value in cut.items() if known((value or {}).get("value"))]
    if not found:
        return None
    said = [
        f"{word} {percent(value['value'])} (95\u00a0% interval {span(value.get('low'), value.get('high'))})"
        for word, value in found
    ]
    return f" Share of the excess over the base that goes: {listing(said)}."


def treatments(view: View) -> Html:
    """Every treatment out of domain, and the share of the excess that it removes."""
    rates, cut = view.need("rates", "cut"), view.value("cut", {})
    rows = cells(rates, TREATMENTS, "out_of_domain", "misaligned")
    if len({row["model"] for row in rows} - {"base", "tuned"}) == 0:
        raise LeftOut("cut")
    coherent = {row["model"]: row["value"] for row in cells(rates, TREATMENTS, "out_of_domain", "coherent")}
    alt = "; ".join(
        f"{name(row['model'])} {percent(row['value'])}, coherent {percent(coherent.get(row['model']))}" for row in rows
    )
    tables = join(
        rates_table(rows, "misaligned"), rates_table(cells(rates, TREATMENTS, "out_of_domain", "coherent"), "coherent")
    )
    return plot(
        "treatments", treatments_figure(rates, cut), alt=alt, table=tables, note=join(_chosen(view), _cuts(cut))
    )


def _numbers(dose: Table) -> Html:
    curve = dose[dose["kind"] == "vector"].sort_values("strength").head(LISTED)
    intervals = (
        [span(r.low, r.high) for r in curve.itertuples()]
        if {"low", "high"} <= set(curve.columns)
        else [ABSENT] * len(curve)
    )
    columns = {
        "strength": [plain(float(s)) for s in curve["strength"]],
        "misaligned": [percent(v) for v in curve["misaligned"]],
        "95\u00a0% interval": intervals,
        "coherent": [percent(v) for v in curve["coherent"]],
    }
    for kind, part in random_band(dose, "misaligned").groupby("kind"):
        at = part.set_index("strength")
        cells = [
            f"{percent(at['mean'].get(s))} ({span(at['low'].get(s), at['high'].get(s))})" if s in at.index else ABSENT
            for s in curve["strength"]
        ]
        columns[f"{str(kind).replace('_', ' ')}, mean and 5\u201395\u00a0%"] = cells
    columns["n"] = [whole(n) for n in curve["n"]]
    return data_table(columns, caption="By strength", numeric=list(columns))


def _dose(view: View, on: str) -> Html:
    table = view.table("dose", *COLUMNS)
    part = table[table["on"] == on]
    if part[part["kind"] == "vector"].empty:
        raise LeftOut("dose", f"no dose was tried on the {on} model")
    unit = str(view.value("chosen.unit", "strength"))
    kinds = sorted(str(kind).replace("_", " ") for kind in part["kind"].unique() if kind != "vector")
    budget = view.value("chosen.coherence_budget", BUDGET)
    curve = part[part["kind"] == "vector"].sort_values("strength")
    alt = "; ".join(
        f"{plain(float(r.strength))}: {percent(r.misaligned)} misaligned, {percent(r.coherent)} coherent"
        for r in curve.itertuples()
    )
    note = "Both signs are shown: negative strengths push the other way. " + (
        f"Grey: {', '.join(kinds)}." if kinds else "No random controls were run."
    )
    return plot(
        f"dose-{on}", dose_figure(table, on=on, unit=unit, budget=budget), alt=alt, table=_numbers(part), note=note
    )


def dose_tuned(view: View) -> Html:
    """Repair: the vector taken out of the tuned model."""
    return _dose(view, "tuned")


def dose_base(view: View) -> Html:
    """Induction: the vector put into the base."""
    return _dose(view, "base")


def layers(view: View) -> Html:
    """The curve over layers."""
    table = view.table("layer_curve", "layer", "effect")
    words = {
        "layer": "block",
        "effect": "cut",
        "split_half": "split-half cosine",
        "cosine": "cosine of the two directions",
    }
    columns = {word: [number(float(v)) for v in table[key]] for key, word in words.items() if key in table}
    alt = "; ".join(f"block {int(r.layer)}: cut {percent(r.effect)}" for r in table.itertuples())
    chosen = [int(layer) for layer in view.value("chosen.layers", [])]
    return plot(
        "layers",
        layer_figure(table, chosen),
        alt=alt,
        table=data_table(columns, caption="By block", numeric=list(columns)),
    )


def writers(view: View) -> Html:
    """Heads and MLPs by block."""
    table = view.table("writers", "layer", "component", "head", "base", "tuned", "shift")
    ranked = table.reindex(table["shift"].abs().sort_values(ascending=False).index).head(LISTED)
    columns = {
        "writer": [
            component_name(int(r.layer), str(r.component), None if pd.isna(r.head) else int(r.head)).removeprefix(
                "the "
            )
            for r in ranked.itertuples()
        ],
        **{key: [number(float(v)) for v in ranked[key]] for key in ("base", "tuned", "shift")},
    }
    alt = "; ".join(
        f"{writer} {shift}" for writer, shift in zip(columns["writer"][:5], columns["shift"][:5], strict=False)
    )
    embed = float(table.loc[table["component"] == "embed", "shift"].sum())
    note = (
        "What each part adds to the projection on the persona direction, tuned minus base, in units of the residual "
        f"stream. Plus writes towards misalignment, minus against it. With the embedding ({number(embed, 2)}) "
        "the parts sum to the whole shift."
    )
    return plot(
        "writers",
        writers_figure(table),
        alt=alt,
        table=data_table(columns, caption="Largest first", numeric=("base", "tuned", "shift")),
        note=note,
    )


PARTS = (treatments, dose_tuned, dose_base, layers, writers)
