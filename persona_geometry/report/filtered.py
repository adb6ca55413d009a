"""A filtered file as a page of its own: how the scores are spread, what they hang on, and rows to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from geometry.features.filtering import Filtered, agreement_figure, row_scores_figure, scores_agree
from geometry.features.filtering.files import numbered_rows
from persona_geometry.report.html import Html, data_table, el, join, script_json, untrusted
from persona_geometry.report.page import _asset, _head, _plotly
from persona_geometry.report.plots import plot
from persona_geometry.report.theming import page_theme
from persona_geometry.report.wording import cut_text, number
from probes.conversations import Conversation
from probes.io import atomic_file
from probes.outcomes import Rate

SHOWN, CHARACTERS = 12, 320
CAVEATS = (
    "A score is no verdict: read the rows below before you throw any away.",
    "A dropped share is not a cut of harm. What a filter is worth shows in a model trained on what it keeps, beside "
    "one trained on as many rows kept at random.",
    "A score that hangs on the answer's length drops long (or short) answers, whatever they say; equal lengths take "
    "that out (--match-length).",
)


def write_filtered(made: Filtered, source: Path, *, told: Mapping[str, Any], auroc: Mapping[str, Rate]) -> Path:
    """Write report.html beside the filtered files and return its path.

    `told` are lines of what was done (heading -> text), `auroc` each score against the truth, where that is known. The
    rows' text stands escaped; nothing is fetched.
    """
    title, scripts = f"{source.name}, filtered", [_plotly(), _asset("script.js")]
    parts = [_spread(made), _scores(made, auroc), _agreement(made), _examples(made, source)]
    header = el(
        "header",
        el("p", "Persona Geometry \u00b7 a filter", class_="brand"),
        el("h1", untrusted(title)),
        el("p", _finding(made)),
        [el("p", caveat, class_="caveat") for caveat in CAVEATS],
        data_table({"": list(told), "what": [untrusted(v) for v in told.values()]}, caption="What was done"),
    )
    body = el(
        "body",
        el("div", el("main", header, el("section", parts), id="content"), class_="page"),
        el("script", script_json(page_theme()), type="application/json", id="theme"),
        [el("script", Html(script)) for script in scripts],
    )
    page = join(Html("<!doctype html>\n"), el("html", _head(title, scripts, webgl=False), body, lang="en"), Html("\n"))
    path = made.folder / "report.html"
    with atomic_file(path) as scratch:
        scratch.write_text(str(page), encoding="utf-8", newline="\n")
    return path


def _finding(made: Filtered) -> str:
    found = made.summary
    lengths = found["mean_answer_tokens"]
    words = f"{found['dropped']:,} of {found['rows']:,} rows were dropped: {made.scores[0].name}, {found['rule']}."
    if None not in lengths.values():
        words += f" Dropped answers hold {lengths['dropped']:.1f} tokens on average, kept ones {lengths['kept']:.1f}."
    if found["without_score"]:
        words += f" {found['without_score']:,} rows have no score and were kept."
    return words


def _spread(made: Filtered) -> Html:
    scores = made.scores[0]
    known = scores.values[scores.scored]
    places = {"lowest": 0.0, "lower quarter": 0.25, "median": 0.5, "upper quarter": 0.75, "highest": 1.0}
    values = [number(float(np.quantile(known.numpy(), place)), 3) for place in places.values()]
    numbers = data_table({"": list(places), scores.name: values}, caption=f"The scores, in {scores.unit}")
    alt = f"Lowest score {values[0]}, median {values[2]}, highest {values[-1]}"
    note = f"High means: {scores.high}."
    return plot("row-scores", row_scores_figure(scores, made.split), alt=alt, note=note, table=numbers)


def _scores(made: Filtered, auroc: Mapping[str, Rate]) -> Html:
    columns: dict[str, list[Any]] = {
        "score": [one.name for one in made.scores],
        "unit": [one.unit for one in made.scores],
        "high means": [one.high for one in made.scores],
        "with length (Spearman)": [_rate(one.with_length()) if len(one.scored) > 2 else "" for one in made.scores],
    }
    if auroc:
        columns["AUROC against the truth"] = [_rate(auroc[one.name]) for one in made.scores]
    return el("div", el("h3", "The scores"), data_table(columns, caption="95 % intervals in brackets"), class_="block")


def _rate(rate: Rate) -> str:
    return f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


def _agreement(made: Filtered) -> Html | None:
    share = len(made.split.dropped) / len(made.scores[0])
    if len(made.scores) < 2 or not 0 < share < 1:
        return None
    table = scores_agree(made.scores, fraction=share)
    numbers = data_table(
        {name: [v if isinstance(v, str) else number(float(v), 2) for v in table[name]] for name in table.columns},
        caption="Pairs of scores; shared: of the rows that one drops, what the other drops too",
    )
    return plot("agreement", agreement_figure(table), alt="Rank correlations of the scores", table=numbers)


def _examples(made: Filtered, source: Path) -> Html:
    """The worst rows dropped, those on either side of the cut, and the best rows kept."""
    order = made.scores[0].worst_first.tolist()
    gone = [row for row in order if row in set(made.split.dropped.tolist())]
    kept = [row for row in order if row in set(made.split.kept.tolist())]
    groups = {
        f"Dropped first ({min(SHOWN, len(gone))} rows)": gone[:SHOWN],
        "Dropped last, next to the cut": gone[SHOWN:][-SHOWN:],
        "Kept, next to the cut": kept[:SHOWN],
        "Kept, farthest from the cut": kept[SHOWN:][-SHOWN:],
    }
    texts = _texts(source, {made.lines[row] for rows in groups.values() for row in rows})
    shown = [_rows(made, name, rows, texts) for name, rows in groups.items() if rows]
    return el("div", el("h3", "Rows to read"), shown, class_="block worst")


def _texts(source: Path, wanted: set[int]) -> dict[int, Conversation]:
    return {line: row for line, row in numbered_rows(source) if line in wanted}


def _rows(made: Filtered, name: str, rows: list[int], texts: Mapping[int, Conversation]) -> Html:
    found = [texts[made.lines[row]] for row in rows]
    columns: dict[str, list[Any]] = {
        "line": [made.lines[row] for row in rows],
        "score": [number(float(made.scores[0].values[row]), 3) for row in rows],
        "asked": [untrusted(cut_text(row.prompt.messages[-1]["content"], CHARACTERS)) for row in found],
        "answer": [untrusted(cut_text(row.answer or "", CHARACTERS)) for row in found],
    }
    return data_table(columns, caption=name, numeric=("line", "score"))
