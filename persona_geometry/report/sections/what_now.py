"""What now? The vectors, and how to load each of them elsewhere."""

from __future__ import annotations

from typing import Any

from persona_geometry.report.html import Html, el
from persona_geometry.report.view import View
from persona_geometry.report.wording import count


def _vector(place: int, vector: dict[str, Any]) -> Html:
    file = el("code", vector.get("file"))
    key = f"command-{place}"
    command = vector.get("how_to_load")
    code = el(
        "div",
        el("pre", el("code", command, id=key), tabindex="0"),
        el(
            "button",
            "Copy",
            class_="copy",
            type="button",
            data_copies=key,
            aria_label=f"Copy the command for {vector.get('name')}",
        ),
        class_="command",
    )
    kind = el("span", vector.get("format"), class_="group") if vector.get("format") else None
    return el(
        "li",
        el("p", vector.get("name"), kind, class_="question"),
        el("p", file, class_="note"),
        code if command else None,
        class_="card",
    )


def vectors(view: View) -> Html:
    """A card for each exported vector."""
    found = view.need("vectors", "vectors")
    note = "Paths are relative to the study's folder. Layers are 0-based decoder blocks, and their output is meant."
    return el(
        "div",
        el("h3", f"{count(len(found), 'file')} that other programs load"),
        el("p", note, class_="note"),
        el("ul", [_vector(i, v) for i, v in enumerate(found)], class_="cards"),
    )


PARTS = (vectors,)
