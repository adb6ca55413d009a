"""What the sections see of a study: its values and tables, and a plain word for each part that is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from persona_geometry.report.html import Html, el, join, untrusted
from persona_geometry.report.tables import Table
from persona_geometry.report.wording import cut_text, sentence
from persona_geometry.results import Study

# part -> (what it is called, what it needs, words by which `left_out` may name it)
PARTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "verdict": ("the verdict", "the study holds no verdict", ("verdict",)),
    "rates": ("the rates by model", "the study holds no rates", ("rates", "outcomes", "judge")),
    "spread": ("the spread over question groups", "the study asked no grouped questions", ("spread",)),
    "samples": ("the answers side by side", "the study kept no sample answers", ("samples", "answers")),
    "latents": ("the latent diff", "it needs a sparse autoencoder", ("latents", "diff", "sae")),
    "features": (
        "the causal check of latents",
        "it needs a sparse autoencoder and a judge",
        ("features", "screen", "sae"),
    ),
    "geometry": (
        "the distances between feature sets",
        "they need a sparse autoencoder and the training file",
        ("geometry", "distances", "sae"),
    ),
    "map": ("the map of latents", "it needs a sparse autoencoder", ("map", "geometry", "sae")),
    "dose": ("the dose curves", "they need a judge", ("dose", "doses")),
    "dose_tuned": ("the dose curve of the tuned model", "no dose was tried on it", ()),
    "dose_base": ("the dose curve of the base", "no dose was tried on it", ()),
    "cut": ("the treatments", "none was measured", ("cut", "treatments", "dose")),
    "layer_curve": ("the choice of layer", "no curve over layers was kept", ("layer_curve", "layers")),
    "writers": ("who writes the direction", "heads and MLPs were not traced", ("writers",)),
    "rows": ("the training rows", "they need the training file", ("rows", "train")),
    "tokens": ("the coloured tokens", "no projections per token were kept", ("tokens", "rows")),
    "vectors": ("the vectors", "none was exported", ("vectors", "export")),
    "checks": ("the self-test", "it was not run", ("checks", "self-test", "verify")),
}


class LeftOut(Exception):
    """A part of the report that this study has nothing for."""

    def __init__(self, part: str, why: str | None = None) -> None:
        super().__init__(part)
        self.part, self.why = part, why


@dataclass(frozen=True)
class View:
    """A study as the report reads it; with `no_text`, model-written text is replaced by a word."""

    study: Study
    no_text: bool = False

    def value(self, path: str, default: Any = None) -> Any:
        """The entry of study.json at a dotted `path`, or `default`."""
        found: Any = self.study.summary
        for key in path.split("."):
            if not isinstance(found, dict) or found.get(key) is None:
                return default
            found = found[key]
        return found

    def need(self, path: str, part: str) -> Any:
        """The entry at `path`, where the part cannot be shown without it."""
        found = self.value(path)
        if found is None or found == [] or found == {}:
            raise LeftOut(part)
        return found

    def table(self, name: str, *columns: str, part: str | None = None) -> Table:
        """The table `name` with at least `columns` and one row."""
        table = self.study.tables.get(name)
        if table is None or table.empty:
            raise LeftOut(part or name)
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise LeftOut(part or name, f"the table {name} lacks {', '.join(missing)}")
        return table.reset_index(drop=True)

    def text(self, text: object, limit: int | None = None) -> Html:
        """Model-written text, escaped and isolated, or the word that stands for it."""
        if self.no_text:
            return el("span", "text hidden", class_="hidden-text")
        return untrusted(text if limit is None else cut_text(text, limit))

    def hover(self, text: object, instead: str) -> str:
        """Model-written text for a figure's hover, cut to 60 characters, or `instead` where text is hidden."""
        return instead if self.no_text else cut_text(text)


def reason(view: View, part: str, why: str | None = None) -> str:
    """Why `part` is missing: the study's own word where it has one."""
    _, default, aliases = PARTS[part]
    entries = [entry for entry in view.value("left_out", []) if isinstance(entry, dict)]
    for alias in aliases:
        for entry in entries:
            if alias in str(entry.get("part", "")).lower():
                return str(entry.get("why") or default)
    return why or default


def gather(view: View, *parts: Callable[[View], Html]) -> Html:
    """Draw the parts one after the other; those with nothing to show share one quiet line at the end."""
    blocks, missing = [], []
    for part in parts:
        try:
            blocks.append(part(view))
        except LeftOut as left:
            missing.append((PARTS[left.part][0], reason(view, left.part, left.why)))
    return join(blocks, _missing(list(dict.fromkeys(missing))))


def _missing(parts: list[tuple[str, str]]) -> Html | None:
    if not parts:
        return None
    lines = [el("li", sentence(title), " \u2013 ", why, ".") for title, why in parts]
    return el("div", el("strong", "Left out"), el("ul", lines), class_="left-out")
