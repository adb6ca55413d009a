"""The page around the sections: head, security policy, contents, scripts, and the one copy of plotly.js."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from persona_geometry.report.html import Html, el, join, script_json
from persona_geometry.report.sections import SECTIONS
from persona_geometry.report.theming import css_variables, page_theme
from persona_geometry.report.view import View
from persona_geometry.report.wording import duration

CAVEAT = (
    "These models are a small organism grown for this purpose from generated text. "
    "Their figures are evidence for the methods, which can be checked here against a known truth, "
    "and none about large models."
)


@cache
def _asset(name: str) -> str:
    return files("persona_geometry.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("\r\n", "\n")


def _fingerprint(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def _policy(scripts: list[str], webgl: bool) -> str:
    """Only our own scripts may run, and nothing may be fetched; WebGL compiles its shaders' glue with eval."""
    allowed = " ".join([_fingerprint(script) for script in scripts] + (["'unsafe-eval'"] if webgl else []))
    rules = ("default-src 'none'", f"script-src {allowed}", "style-src 'unsafe-inline'", "img-src data: blob:")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _head(title: str, scripts: list[str], webgl: bool) -> Html:
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_policy(scripts, webgl)),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        el("style", Html(css_variables() + _asset("style.css"))),
    )


def _names(view: View) -> tuple[str, str]:
    models = view.value("models", {})
    base, tuned = ((models.get(key) or {}).get("name") or key for key in ("base", "tuned"))
    return str(base), str(tuned)


def _header(view: View) -> Html:
    base, tuned = _names(view)
    seconds = view.value("wall_seconds")
    brand = "Persona Geometry \u00b7 a study" + (f" of {duration(float(seconds))}" if seconds else "")
    caveat = el("p", CAVEAT, class_="caveat") if view.value("kind") == "organism" else None
    hidden = (
        el("p", "Text that models wrote, and the training rows, are hidden in this copy.", class_="caveat")
        if view.no_text
        else None
    )
    script = el(
        "noscript",
        el("p", "Figures need JavaScript; their numbers stand in the tables under each title.", class_="caveat"),
    )
    return el("header", el("p", brand, class_="brand"), el("h1", tuned, ", against ", base), caveat, hidden, script)


def _contents() -> Html:
    links = [el("li", el("a", section.question, href=f"#{section.key}")) for section in SECTIONS]
    return el("nav", el("ol", links), aria_label="Contents")


def _sections(view: View) -> Html:
    return join(
        el(
            "section",
            el("h2", section.question, id=f"{section.key}-title"),
            section.draw(view),
            id=section.key,
            aria_labelledby=f"{section.key}-title",
        )
        for section in SECTIONS
    )


def render_page(view: View) -> str:
    """Draw the whole report as one HTML document."""
    base, tuned = _names(view)
    scripts = [_plotly(), _asset("script.js")]
    body = _sections(view)
    webgl = any(f'"type":"{kind}"' in body for kind in ("scattergl", "splom", "parcoords"))
    footer = el("footer", "Drawn from the study folder alone. Nothing on this page is fetched from elsewhere.")
    page = join(
        Html("<!doctype html>\n"),
        Html('<html lang="en">'),
        _head(f"{tuned}, against {base} \u2013 Persona Geometry", scripts, webgl),
        el(
            "body",
            el("a", "Skip to the findings", href="#content", class_="skip"),
            el("div", _contents(), el("main", _header(view), body, footer, id="content"), class_="page"),
            el("script", script_json(page_theme()), type="application/json", id="theme"),
            [el("script", Html(script)) for script in scripts],
        ),
        Html("</html>\n"),
    )
    return str(page)
