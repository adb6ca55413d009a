"""Can I trust it? The self-test, questions, seeds, versions, what was left out, and every table to download."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import pandas as pd

from persona_geometry.report.html import Html, data_table, el, join
from persona_geometry.report.tables import Table
from persona_geometry.report.view import View
from persona_geometry.report.wording import count, duration, known, number, sentence

BUDGET = 1_600_000  # bytes of tables inside the page; larger ones stay beside it
# columns that hold text written by models, or training text
HIDDEN = {
    "outcomes": ("answer", "prompt"),
    "samples": ("base", "tuned", "ablated"),
    "tokens": ("token",),
    "rows": ("question", "answer"),
    "map": ("label",),
}


def checks(view: View) -> Html:
    """The self-test: every check with its figure and its limit."""
    found = view.need("checks", "checks")
    failed = [check.get("name") for check in found if not check.get("passed")]
    title = (
        f"All {len(found)} checks of the self-test passed"
        if not failed
        else f"{count(len(failed), 'check')} of {len(found)} failed: {', '.join(map(str, failed))}"
    )
    columns = {
        "check": [check.get("name") for check in found],
        "result": [
            el("span", "\u2713 passed", class_="pass")
            if check.get("passed")
            else el("span", "\u2717 failed", class_="fail")
            for check in found
        ],
        "figure": [number(check["figure"], 2) if known(check.get("figure")) else "" for check in found],
        "limit": [number(check["limit"], 2) if known(check.get("limit")) else "" for check in found],
    }
    return el(
        "div",
        el("h3", title),
        data_table(columns, caption="The self-test on these models", numeric=("figure", "limit")),
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _pairs(title: str, pairs: dict[str, Any]) -> Html | None:
    if not pairs:
        return None
    lines = [el("div", el("dt", key), el("dd", _plain(value))) for key, value in pairs.items()]
    return el("div", el("h4", title), el("dl", lines, class_="pairs"))


def provenance(view: View) -> Html:
    """Models, seeds, versions, time, template."""
    models = view.value("models", {})
    columns = {
        "role": list(models),
        "name": [model.get("name") for model in models.values()],
        "fingerprint": [el("code", model.get("fingerprint")) for model in models.values()],
        "blocks": [model.get("layers") for model in models.values()],
        "width": [model.get("d_model") for model in models.values()],
    }
    stages = {key: duration(value) for key, value in view.value("stage_seconds", {}).items()}
    if known(view.value("wall_seconds")):
        stages["in all"] = duration(view.value("wall_seconds"))
    template = view.value("template_hash")
    return el(
        "div",
        el("h3", "What it was made from"),
        data_table(columns, caption="Models", numeric=("blocks", "width")) if models else None,
        el("p", "Chat template ", el("code", template), ": every rate depends on it.", class_="note")
        if template
        else None,
        el(
            "div",
            _pairs("Seeds", view.value("seeds", {})),
            _pairs("Versions", view.value("versions", {})),
            _pairs("Time", stages),
            class_="grid2",
        ),
        class_="block",
    )


def questions(view: View) -> Html | None:
    """Which questions chose, and which were measured."""
    ids = view.value("question_ids", {})
    if not ids:
        return None
    selection, test = list(ids.get("selection") or []), list(ids.get("test") or [])
    shared = set(map(str, selection)) & set(map(str, test))
    verdict = "have none in common" if not shared else f"have {len(shared)} in common, which spoils the choice"
    lists = [
        el("details", el("summary", f"{sentence(kind)} questions"), el("p", ", ".join(map(str, found)), class_="ids"))
        for kind, found in (("selection", selection), ("test", test))
        if found
    ]
    return el(
        "div",
        el("h3", f"{count(len(selection), 'selection question')} and {count(len(test), 'test question')} {verdict}"),
        el(
            "p",
            "Layers, doses and latents were chosen on the first; every figure is quoted on the second.",
            class_="note",
        ),
        lists,
        class_="block",
    )


def left_out(view: View) -> Html | None:
    """Everything that this study did without, and why."""
    entries = [entry for entry in view.value("left_out", []) if isinstance(entry, dict)]
    if not entries:
        return None
    items = [el("li", el("strong", str(entry.get("part"))), " \u2013 ", str(entry.get("why"))) for entry in entries]
    return el("div", el("h3", f"{count(len(entries), 'part')} left out"), el("ul", items), class_="block")


def harmless(table: Table) -> Table:
    """Copy a table for a spreadsheet: text that would be read as a formula gets a leading apostrophe."""
    copy = table.copy()
    for column in copy.columns:
        if not pd.api.types.is_numeric_dtype(copy[column]) and not pd.api.types.is_bool_dtype(copy[column]):
            copy[column] = [
                f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
                for value in copy[column]
            ]
    return copy


def _file(table: Table) -> bytes:
    text = harmless(table).to_csv(index=False, lineterminator="\n", float_format="%.6g")
    return gzip.compress(text.encode("utf-8", "replace"), compresslevel=9, mtime=0)


def downloads(view: View) -> Html:
    """Every table as compressed CSV inside the page, the smallest first while there is room; the rest beside it."""
    files = {}
    for name, table in view.study.tables.items():
        hidden = [column for column in HIDDEN.get(name, ()) if column in table.columns] if view.no_text else []
        files[name] = base64.b64encode(_file(table.drop(columns=hidden))).decode()
    room, links = BUDGET, {}
    for name, data in sorted(files.items(), key=lambda item: len(item[1])):
        inside = len(data) <= room
        room -= len(data) if inside else 0
        label = f"{name}.csv.gz"
        links[name] = (
            el("a", label, href=f"data:application/gzip;base64,{data}", download=label)
            if inside
            else el("a", f"tables/{name}.parquet", href=f"tables/{name}.parquet")
        )
    if not files:
        return el("p", "This study wrote no tables.", class_="left-out")
    names = sorted(files)
    columns = {
        "table": names,
        "rows": [f"{len(view.study.tables[name]):,}" for name in names],
        "columns": [", ".join(str(c) for c in view.study.tables[name].columns) for name in names],
        "file": [links[name] for name in names],
    }
    return el(
        "div",
        el("h3", f"{count(len(names), 'table')} to take away"),
        data_table(columns, caption="The same tables stand as Parquet in the study's folder", numeric=("rows",)),
        class_="block",
    )


def _or_nothing(part: Any) -> Any:
    return lambda view: part(view) or join()


PARTS = (checks, provenance, _or_nothing(questions), _or_nothing(left_out), downloads)
