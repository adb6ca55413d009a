"""Where? The spread over groups of questions, and answers before and after, side by side."""

from __future__ import annotations

import pandas as pd

from persona_geometry.report.figures.common import GLYPH
from persona_geometry.report.figures.spread import spread_figure
from persona_geometry.report.html import Html, data_table, el, join
from persona_geometry.report.plots import plot
from persona_geometry.report.tables import Row
from persona_geometry.report.view import LeftOut, View
from persona_geometry.report.wording import cut_text, name, percent, span, whole

SHOWN = 12


def _trained(view: View) -> list[str]:
    found = view.value("spread.trained", [])
    return [found] if isinstance(found, str) else [str(item) for item in found]


def spread(view: View) -> Html:
    """The matrix: groups by models."""
    table = view.table("spread", "model", "group", "misaligned", "low", "high", "n")
    trained = _trained(view)
    tuned = table[table["model"] == "tuned"]
    alt = "Tuned model: " + "; ".join(f"{row.group} {percent(row.misaligned)}" for row in tuned.itertuples())
    numbers = {
        "asked": list(table["group"]),
        "model": [name(model) for model in table["model"]],
        "misaligned": [percent(value) for value in table["misaligned"]],
        "95\u00a0% interval": [span(low, high) for low, high in zip(table["low"], table["high"], strict=True)],
        "n": [whole(n) for n in table["n"]],
    }
    caption = data_table(
        numbers, caption="Misaligned share of coherent answers", numeric=("misaligned", "95\u00a0% interval", "n")
    )
    note = "Each cell: percent of coherent answers that are misaligned." + (
        " \u2605 marks what was trained." if trained else ""
    )
    return plot("spread", spread_figure(table, trained), alt=alt, table=caption, note=note)


def _answer(view: View, kind: str, who: str, text: object) -> Html:
    mark = el("span", GLYPH[kind], class_="mark", aria_hidden="true")
    return el("div", el("dt", mark, who), el("dd", view.text(text)), class_=kind)


def _sample(view: View, row: Row) -> Html:
    columns = (
        ("base", "aligned", "base"),
        ("tuned", "misaligned", "tuned"),
        ("ablated", "chosen", "tuned, vector out"),
    )
    answers = [
        _answer(view, kind, who, row[key]) for key, kind, who in columns if key in row.index and pd.notna(row[key])
    ]
    question = el("p", cut_text(row["question"], 300), el("span", row["group"], class_="group"), class_="question")
    return el("li", question, el("dl", answers, class_="pair"), class_="card")


def samples(view: View) -> Html:
    """Answers of the models to the same questions, chosen by the rule that the study states."""
    table = view.table("samples", "question", "group", "base", "tuned").head(SHOWN)
    if view.no_text:
        raise LeftOut("samples", "they are text that models wrote, which this copy hides")
    rule = str(table["rule"].iloc[0]) if "rule" in table else "as the study stored them"
    head = join(
        el("h3", "The same questions, before and after"),
        el("p", f"Chosen by rule, not by taste: {rule}.", class_="note"),
    )
    return el(
        "div", head, el("ul", [_sample(view, row) for _, row in table.iterrows()], class_="cards"), class_="block"
    )


PARTS = (spread, samples)
