"""What turns it off? The treatments, the dose curves, the layers, and who writes the direction."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from geometry.steering.figures import dose_figure, writers_figure
from persona_geometry.report.figures.common import label
from persona_geometry.report.figures.layers import LINES, layer_figure
from persona_geometry.report.figures.rates import TREATMENTS, cells, treatments_figure, with_controls
from persona_geometry.report.html import Html, data_table, join
from persona_geometry.report.plots import escape_plotly, plot
from persona_geometry.report.sections.became import rates_table
from persona_geometry.report.tables import Row, Table
from persona_geometry.report.view import LeftOut, View
from persona_geometry.report.wording import ABSENT, known, listing, name, number, percent, plain, span, whole

COLUMNS = ("strength", "kind", "on", "misaligned", "low", "high", "coherent", "n")
#: What doses 0 and 1 are, by the words of an operation.
SCALES = {
    "dose x (tuned - base)": "dose: 0 is the base's own level, 1 the tuned model's",
    "dose x (under the trait's prompts - base)": "dose: 0 is the base's own level, 1 that under the trait's prompts",
}
BUDGET = 0.95  # of the untreated coherence, where the study names no budget
LISTED = 60
_TOP: dict[str, Any] = {"row": 1, "col": 1}


def _chosen(view: View) -> str | None:
    chosen = view.value("chosen", {})
    if not chosen:
        return None
    layers = [str(layer) for layer in chosen.get("layers") or []]
    what = [str(chosen[key]) for key in ("vector", "operation") if chosen.get(key)]
    what += [f"{'block' if len(layers) == 1 else 'blocks'} {listing(layers)}"] if layers else []
    what += [f"dose {plain(chosen['dose'])}"] if known(chosen.get("dose")) else []
    return f"Chosen: {', '.join(what)}" + (f" ({chosen['why']})." if chosen.get("why") else ".")


def _cuts(cut: dict[str, Any]) -> str | None:
    words = {"ablated": "the vector taken out", "latents": "latents clamped", "realigned": "re-alignment"}
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
    rates, cut = with_controls(view.need("rates", "cut"), view.value("random", {})), view.value("cut", {})
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
    rings = " Rings: mean and 5\u201395\u00a0% range of random controls." if view.value("random") else None
    note = join(_chosen(view), _cuts(cut), rings)
    return plot("treatments", treatments_figure(rates, cut), alt=alt, table=tables, note=note)


def _picked(dose: Table) -> Table:
    return dose[dose["chosen"].fillna(False).astype(bool)] if "chosen" in dose else dose.head(0)


def _unit(view: View, on: str) -> str:
    operation = str(view.value("chosen.operation" if on == "tuned" else "chosen.induce.operation", ""))
    known_scales = (words for scale, words in SCALES.items() if scale in operation)
    return next(known_scales, str(view.value("chosen.unit", "dose")))


def _why(view: View, on: str) -> str:
    """Why no dose was tried on this model: the study's word about it, where there is one."""
    goal = {"tuned": "repair", "base": "induce"}[on]
    said = [str(entry.get("why")) for entry in view.value("left_out", []) if isinstance(entry, dict)]
    return next((why for why in said if goal in why), f"no dose was tried on the {on} model")


def _controls(part: Table, strength: float) -> str:
    """Mean and range of one kind of random control at a strength; ranges come with the table."""
    rows = part[part["strength"] == strength]
    if rows.empty:
        return ABSENT
    row = rows.iloc[0]
    return f"{percent(row['misaligned'])} ({span(row.get('low'), row.get('high'))})"


def _numbers(dose: Table) -> Html:
    curve = dose[dose["kind"] == "vector"].head(LISTED)
    columns = {
        "dose": [plain(float(s)) for s in curve["strength"]],
        "misaligned": [percent(v) for v in curve["misaligned"]],
        "95\u00a0% interval": [span(low, high) for low, high in zip(curve["low"], curve["high"], strict=True)],
        "coherent": [percent(v) for v in curve["coherent"]],
    }
    for kind, part in dose[dose["kind"] != "vector"].groupby("kind"):
        word = f"{str(kind).replace('_', ' ')}, mean and 5\u201395\u00a0%"
        columns[word] = [_controls(part, strength) for strength in curve["strength"]]
    columns["n"] = [whole(n) for n in curve["n"]]
    return data_table(columns, caption="By dose", numeric=list(columns))


def dose_finding(curve: Table, on: str, untreated: float | None) -> str:
    """What the chosen dose leaves or makes, and at what coherence, beside the model as it is."""
    picked = _picked(curve)
    if picked.empty:
        low, high = percent(curve["misaligned"].min()), percent(curve["misaligned"].max())
        return f"Over the doses tried, {low} to {high} of the {on} model's answers are misaligned"
    at = picked.iloc[0]
    dose = f"Dose {plain(at['strength'])} {'leaves' if on == 'tuned' else 'put into the base makes'}"
    plain_model = f"; untreated: {percent(untreated)}" if known(untreated) else ""
    return f"{dose} {percent(at['misaligned'])} misaligned, {percent(at['coherent'])} coherent{plain_model}"


def _dose(view: View, on: str) -> Html:
    table = view.table("dose", *COLUMNS)
    part = table[table["on"] == on].sort_values("strength", kind="stable")
    curve = part[part["kind"] == "vector"]
    if curve.empty:
        raise LeftOut(f"dose_{on}", _why(view, on))
    before = view.value(f"rates.{on}.out_of_domain", {})
    whole_model = before.get("coherent") if known(before.get("coherent")) else float(curve["coherent"].max())
    budget = float(view.value("chosen.coherence_budget", BUDGET * whole_model))
    kinds = sorted(str(kind).replace("_", " ") for kind in part["kind"].unique() if kind != "vector")
    said = [
        f"{plain(row.strength)}: {percent(row.misaligned)} misaligned, {percent(row.coherent)} coherent"
        for row in curve.itertuples()
    ]
    controls = (
        f"Grey: {listing(kinds)}, mean and 5\u201395\u00a0% range. " if kinds else "No random controls were run. "
    )
    note = (
        "Doses were tried on selection questions; the untreated figure is that of the test questions. "
        f"{controls}Shaded: below {percent(budget)} coherent."
    )
    finding = dose_finding(curve, on, before.get("misaligned"))
    figure = _arranged(part, budget, _unit(view, on))
    return plot(f"dose-{on}", figure, alt="; ".join(said), table=_numbers(part), note=note, finding=finding)


def _arranged(dose: Table, budget: float, unit: str) -> go.Figure:
    """The dose figure for this page: labels instead of a legend, the lower panel zoomed to where coherence moves."""
    figure = dose_figure(dose.drop(columns="on"), coherence_budget=budget)
    floor = max(0.0, min(budget, float(dose["coherent"].min())) - 0.08)
    figure.update_yaxes(range=[floor, 1.01], tickformat=".0%", row=2, col=1)
    figure.update_xaxes(title_text=escape_plotly(unit), row=2, col=1)
    for strength in _picked(dose)["strength"]:
        word = label(strength, 1, f"chosen: {plain(strength)}", kind="chosen", xanchor="center", yanchor="bottom")
        figure.add_annotation(word | {"yref": "y domain"}, row=1, col=1)
    random, curve = dose[dose["kind"] != "vector"], dose[dose["kind"] == "vector"]
    if not random.empty:  # at the end that is far from the chosen dose
        middle, ends = float(curve["strength"].median()), (random["strength"].min(), random["strength"].max())
        right = bool((_picked(dose)["strength"] <= middle).all())
        top = random.loc[random["strength"] == ends[right], "high"].max()
        side = "right" if right else "left"
        figure.add_annotation(
            label(ends[right], top, "random controls", kind="control", xanchor=side, yshift=12), **_TOP
        )
    return figure.update_layout(height=440, showlegend=False, margin={"t": 28, "b": 46})


def dose_tuned(view: View) -> Html:
    """Repair: the vector taken out of the tuned model."""
    return _dose(view, "tuned")


def dose_base(view: View) -> Html:
    """Induction: the vector put into the base."""
    return _dose(view, "base")


def layers(view: View) -> Html:
    """The curve over layers."""
    table = view.table("layer_curve", "layer", "effect")
    words = {"layer": "block", **{column: word for column, word, _, _ in LINES}}
    columns = {word: [number(float(v)) for v in table[key]] for key, word in words.items() if key in table}
    alt = "; ".join(f"block {int(row.layer)}: shift {percent(row.effect)}" for row in table.itertuples())
    chosen = [int(layer) for layer in view.value("chosen.layers", [])]
    numbers = data_table(columns, caption="By block", numeric=list(columns))
    return plot("layers", layer_figure(table, chosen), alt=alt, table=numbers)


def _writer(row: Row) -> str:
    layer = int(row.layer)
    names = {"mlp": f"MLP {layer}", "attn_bias": f"attention bias {layer}", "embed": "embedding"}
    return f"head {layer}.{int(row.head)}" if row.component == "head" else str(names.get(row.component, row.component))


def writers(view: View) -> Html:
    """Heads and MLPs by block."""
    table = view.table("writers", "layer", "component", "head", "base", "tuned", "shift")
    ranked = table.reindex(table["shift"].abs().sort_values(ascending=False).index).head(LISTED)
    columns = {
        "writer": [_writer(row) for row in ranked.itertuples()],
        **{key: [number(float(value)) for value in ranked[key]] for key in ("base", "tuned", "shift")},
    }
    alt = "; ".join(f"{who} {shift}" for who, shift in list(zip(columns["writer"], columns["shift"], strict=True))[:5])
    embed = float(table.loc[table["component"] == "embed", "shift"].sum())
    note = (
        "What each part adds to the projection on the persona direction, tuned minus base, in units of the residual "
        f"stream. Plus writes towards misalignment, minus against it. With the embedding ({number(embed, 2)}) "
        "the parts sum to the whole shift."
    )
    silent = (table["component"] == "attn_bias") & (table["shift"].abs() < 1e-12)
    figure, blocks = writers_figure(table[~silent]), table["layer"].nunique()
    figure.update_layout(height=70 + max(16, min(40, 640 // blocks)) * blocks)
    if len(table) <= 60:
        figure.update_traces(texttemplate="%{z:.2f}", showscale=False, textfont={"size": 13})
    numbers = data_table(columns, caption="Largest first", numeric=("base", "tuned", "shift"))
    return plot("writers", figure, alt=alt, table=numbers, note=note)


PARTS = (treatments, dose_tuned, dose_base, layers, writers)
