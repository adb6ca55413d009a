"""The report: one offline HTML file drawn from a study folder, in the order of a reader's questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LIMIT = 8_000_000


def write_report(study: Any, path: str | Path, *, no_text: bool = False) -> Path:
    """Draw `study` (a `Study`) into one HTML file at `path` and return the path.

    `no_text` leaves out every text that a model wrote, and the training rows.
    """
    from persona_geometry.report.page import render_page
    from persona_geometry.report.view import View
    from probes.io import atomic_file

    path = Path(path)
    page = render_page(View(study, no_text))
    with atomic_file(path) as scratch:
        scratch.write_text(page, encoding="utf-8", newline="\n")
    return path


__all__ = ["LIMIT", "write_report"]
