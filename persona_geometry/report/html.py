"""Markup that is escaped unless it says that it is markup: elements, tables, and text nobody vouches for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape as _escape
from typing import Any

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
_SHOWN = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A, 0x0D)} | {0x7F: "\u2421"}


class Html(str):
    """Text that is already markup; every other text is escaped where it is used."""

    __slots__ = ()


def clean(text: object) -> str:
    """Make `text` encodable and visible: lone surrogates and control characters become printable signs."""
    return str(text).translate(_SHOWN).encode("utf-8", "replace").decode("utf-8")


def escape(text: object) -> Html:
    """Escape `text` for element content and quoted attributes; `Html` passes as it is."""
    return text if isinstance(text, Html) else Html(_escape(clean(text), quote=True))


def _flat(children: Iterable[Any]) -> Iterable[Html]:
    for child in children:
        if child is None or child is False:
            continue
        if isinstance(child, str) or not isinstance(child, Iterable):
            yield escape(child)
        else:
            yield from _flat(child)


def join(*children: Any) -> Html:
    """Concatenate children: text is escaped, `Html` is kept, None is skipped, iterables are flattened."""
    return Html("".join(_flat(children)))


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{_escape(clean(value), quote=True)}"'


def el(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Build one element; attribute names lose a trailing underscore (`class_`), None and False leave one out."""
    opening = "".join(_attribute(key, value) for key, value in attributes.items() if value not in (None, False))
    if name in _VOID:
        return Html(f"<{name}{opening}>")
    return Html(f"<{name}{opening}>{join(*children)}</{name}>")


def script_json(value: object) -> Html:
    """Serialise `value` so that it can stand inside a script element: no `<`, `>`, `&`, U+2028 or U+2029 remains."""
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Html(text.encode("utf-8", "replace").decode("utf-8"))


def untrusted(text: object, *, class_: str | None = None) -> Html:
    """Text that a model wrote: escaped, and isolated so that writing-direction marks cannot reorder the page."""
    return el("bdi", text, class_=class_)


def shaded(token: object, value: float | int, reach: float | int) -> Html:
    """A token under a colour as strong as `value` is against `reach`; the underline's style repeats the sign."""
    text = clean(token)
    body = text.lstrip()
    weight = min(1.0, abs(value) / reach) if reach > 0 else 0.0
    kind = "up" if value > 0 else "down"
    return join(
        text[: len(text) - len(body)],
        el("bdi", body, class_=kind, style=f"--w:{weight:.2f}", title=f"{value:.3g}") if body else None,
    )


def data_table(columns: Mapping[str, Sequence[object]], *, caption: str, numeric: Iterable[str] = ()) -> Html:
    """Build a table from `columns` (heading -> cells); headings in `numeric` are set right, in tabular figures."""
    right = set(numeric)
    heads = [el("th", name, scope="col", class_="n" if name in right else None) for name in columns]
    rows = [
        el(
            "tr",
            [el("td", cell, class_="n" if name in right else None) for name, cell in zip(columns, row, strict=True)],
        )
        for row in zip(*columns.values(), strict=True)
    ]
    table = el("table", el("caption", caption), el("thead", el("tr", heads)), el("tbody", rows))
    return el("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)
