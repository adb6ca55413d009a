"""How a study shows itself in a notebook: the verdict and the rates, without a script."""

from __future__ import annotations

from persona_geometry.report.figures.rates import MODELS, TREATMENTS, cells
from persona_geometry.report.html import data_table, el
from persona_geometry.report.sections.became import ANSWERS
from persona_geometry.report.wording import name, percent, span
from persona_geometry.results import Study


def study_html(study: Study) -> str:
    """The verdict, its sentence, and a table of rates out of domain."""
    verdict = study.summary.get("verdict") or {}
    rates = study.summary.get("rates") or {}
    word = ANSWERS.get(str(verdict.get("answer")), (str(verdict.get("answer", "No verdict")), ""))[0]
    names = tuple(dict.fromkeys((*MODELS, *TREATMENTS)))
    rows = cells(rates, names, "out_of_domain", "misaligned")
    coherent = {row["model"]: row["value"] for row in cells(rates, names, "out_of_domain", "coherent")}
    table = data_table(
        {
            "model": [name(row["model"]) for row in rows],
            "misaligned": [percent(row["value"]) for row in rows],
            "95\u00a0% interval": [span(row["low"], row["high"]) for row in rows],
            "coherent": [percent(coherent.get(row["model"])) for row in rows],
            "n": [f"{row['n']:,}" for row in rows],
        },
        caption="Out of domain, share of coherent answers",
    )
    return str(
        el(
            "div",
            el("p", el("strong", word), ". ", verdict.get("sentence")),
            table,
            el("p", el("code", str(study.folder))),
        )
    )
