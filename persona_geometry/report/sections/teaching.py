"""Which rows taught it? The worst training rows with their scores, and tokens coloured by projection."""

from __future__ import annotations

from typing import Any

import pandas as pd

from persona_geometry.report.figures.rows import rows_figure
from persona_geometry.report.html import Html, data_table, el, join, shaded, untrusted
from persona_geometry.report.plots import plot
from persona_geometry.report.tables import Table
from persona_geometry.report.view import LeftOut, View
from persona_geometry.report.wording import cut_text, name, number

WORST = 20
EXAMPLES = 4
TOKENS = 160


def _worst(view: View) -> Table:
    table = view.study.tables.get("rows")
    if table is None or table.empty:
        table = pd.DataFrame(view.need("rows", "rows"))
    if not {"index", "score"} <= set(table.columns):
        raise LeftOut("rows", "the training rows carry no scores")
    return table.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)


def scores(view: View) -> Html:
    """How the scores are spread, and the worst rows."""
    rows = _worst(view)
    worst = rows.head(WORST)
    top = float(worst["score"].abs().max()) or 1.0
    bars = [
        join(
            el(
                "span", class_="bar", style=f"width:{max(1, round(46 * abs(float(score)) / top))}px", aria_hidden="true"
            ),
            el("span", number(float(score), 3), class_="nowrap"),
        )
        for score in worst["score"]
    ]
    columns: dict[str, list[Any]] = {"row": [int(i) for i in worst["index"]], "score": bars}
    if not view.no_text:
        columns |= {
            key: [untrusted(cut_text(text, 220)) for text in worst[key]]
            for key in ("question", "answer")
            if key in worst
        }
    if "base_projection" in worst:
        columns["projection"] = [number(float(v)) for v in worst["base_projection"]]
    table = data_table(
        columns,
        caption=f"The {len(worst)} worst of {len(rows):,} training rows, worst first",
        numeric=("projection",),
    )
    if len(rows) <= WORST:
        return el("div", el("h3", f"The {len(rows)} worst training rows"), table, class_="block")
    alt = f"Highest score {number(float(rows['score'].iloc[0]))}, median {number(float(rows['score'].median()))}"
    note = (
        "A row's score is how near the latents of its answer lie to the harmful features. "
        "High rows are the ones to read, and to drop, first."
    )
    return join(plot("row-scores", rows_figure(rows, WORST), alt=alt, note=note), el("div", table, class_="worst"))


def _line(model: str, part: Table, reach: float | int) -> Html:
    mean = number(float(part["projection"].mean()), 2)
    shown = part.head(TOKENS)
    text = [
        shaded(token, float(value), reach) for token, value in zip(shown["token"], shown["projection"], strict=True)
    ]
    kind = {"base": "aligned", "tuned": "misaligned"}.get(model, "control")
    return el(
        "div",
        el("dt", f"{name(model)}, mean projection {mean}"),
        el("dd", el("p", text, class_="colored")),
        class_=kind,
    )


def _finding(table: Table) -> str:
    means = table.groupby("model")["projection"].mean()
    if {"base", "tuned"} <= set(means.index):
        tuned, base = (number(float(means[model]), 2) for model in ("tuned", "base"))
        return f"Along the persona direction, the tuned model's tokens stand at {tuned}, the base's at {base}"
    return "Tokens, coloured by their projection on the persona direction"


def tokens(view: View) -> Html:
    """Answers token by token, coloured by projection; the underline's style repeats the sign."""
    table = view.table("tokens", "row", "question", "model", "token", "projection")
    if view.no_text:
        raise LeftOut("tokens", "they are text that models wrote, which this copy hides")
    reach = float(table["projection"].abs().quantile(0.95)) or 1.0
    cards = []
    for question, rows in list(table.groupby("question", sort=False))[:EXAMPLES]:
        lines = [_line(str(model), part, reach) for (_, model), part in rows.groupby(["row", "model"], sort=False)]
        question = el("p", cut_text(question, 300), class_="question")
        cards.append(el("li", question, el("dl", lines, class_="pair"), class_="card"))
    up = el("bdi", "towards misalignment", class_="up", style="--w:1")
    down = el("bdi", "against it (dotted)", class_="down", style="--w:1")
    key = el(
        "p",
        el("span", up, " "),
        el("span", down),
        el("span", f"full colour at {number(reach, 2)}; hover for the figure"),
        class_="key colored",
    )
    return el("div", el("h3", _finding(table)), key, el("ul", cards, class_="cards"), class_="block")


PARTS = (scores, tokens)
