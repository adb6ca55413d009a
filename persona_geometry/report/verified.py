"""The self-test as a page of its own: every check, and the conversations with each token in the colour of its mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_geometry.report.html import Html, data_table, el, join
from persona_geometry.report.theming import css_variables
from persona_geometry.report.wording import number
from probes.io import atomic_file

#: What the colours mean, in the order of a conversation.
MEANINGS = {
    "prompt": "prompt",
    "last_prompt": "its last token, which predicts the answer's first",
    "reasoning": "thought",
    "response": "answer, with its end token",
    "beyond": "of no mask",
}
STYLE = """
body { max-width: 66rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 var(--font, sans-serif);
  color: var(--ink); background: var(--paper); }
table { border-collapse: collapse; } th, td { text-align: left; padding: .2rem .8rem .2rem 0; }
th { border-bottom: 1px solid var(--line); } .n { text-align: right; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); } .scroll { overflow-x: auto; }
.pass { color: var(--chosen-text); } .fail { color: var(--misaligned-text); font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--wash); padding: .8rem; }
.prompt { color: var(--soft); } .last_prompt { color: var(--paper); background: var(--aligned-text); }
.reasoning { color: var(--misaligned-text); font-style: italic; } .response { color: var(--chosen-text); }
.beyond { color: var(--soft); text-decoration: line-through; }
"""


def write_verified(path: str | Path, found: dict[str, Any]) -> Path:
    """Write what `persona-geometry verify` found as one HTML file without scripts, and return its path.

    `found` holds the title, a sentence, the checks and the rows, each a list of stretches with their kind.
    """
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", f"Self-test of {found['model']}"),
        el("style", Html(css_variables() + STYLE)),
    )
    legend = [join(el("span", name.replace("_", " "), class_=name), f" ({told}) ") for name, told in MEANINGS.items()]
    body = el(
        "body",
        el("h1", f"Self-test of {found['model']}"),
        el("p", found["sentence"]),
        _table(found["checks"]),
        el("h2", "What the model reads"),
        el("p", legend),
        [el("pre", [el("span", text, class_=kind) for kind, text in row]) for row in found["rows"]],
    )
    path = Path(path)
    with atomic_file(path) as scratch:
        page = Html(f"<!doctype html>\n{el('html', head, body, lang='en')}\n")
        scratch.write_text(page, encoding="utf-8", newline="\n")
    return path


def _table(checks: Sequence[dict[str, Any]]) -> Html:
    marks = {True: el("span", "\u2713 passed", class_="pass"), False: el("span", "\u2717 failed", class_="fail")}
    columns = {
        "check": [check["name"] for check in checks],
        "result": [
            join(marks[check["passed"]], f" ({check['detail']})" if check["detail"] else "") for check in checks
        ],
        "figure": [number(check["figure"], 2) for check in checks],
        "limit": [number(check["limit"], 2) for check in checks],
        "guards against": [check["guards"] for check in checks],
    }
    return data_table(columns, caption="Figures are counts, or errors relative to a norm", numeric=("figure", "limit"))
