"""The page's colours, light and dark, built on the one theme."""

from __future__ import annotations

from typing import Any

from probes import theme

MEANINGS = tuple(theme.MEANING)
LIGHT = {
    **{meaning: colour.lower() for meaning, colour in theme.MEANING.items()},
    "ink": theme.INK["light"].lower(),
    "paper": theme.PAPER["light"].lower(),
    "line": theme.GRID["light"].lower(),
    "soft": "#5d6168",
    "wash": "#f4f4f1",
    "aligned-text": "#0065a0",
    "misaligned-text": "#a84a00",
    "chosen-text": "#007a58",
}
# The same hues, bright enough on a dark page.
DARK = {
    "aligned": "#4aa3e0",
    "misaligned": "#f5894a",
    "control": "#9aa0a8",
    "chosen": "#3ddc97",
    "shared": "#e39cc4",
    "harmful": "#f0b93a",
    "ink": theme.INK["dark"].lower(),
    "paper": theme.PAPER["dark"].lower(),
    "line": theme.GRID["dark"].lower(),
    "soft": "#a3a7ae",
    "wash": "#1e2126",
    "aligned-text": "#4aa3e1",
    "misaligned-text": "#f5894b",
    "chosen-text": "#3ddc98",
}
# Without "system-ui", which many Linux desktops give a wide face.
FONT = theme.FONT.replace("system-ui, ", "")


def _rgb(colour: str) -> str:
    return ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))


def rgba(meaning: str, alpha: float | int) -> str:
    """A meaning colour, see-through, in a form that the page can turn dark."""
    return f"rgba({_rgb(LIGHT[meaning])},{alpha:g})"


def template(mode: theme.Mode = "light") -> Any:
    """The theme's template with quieter axes: no grid, small soft labels, no legend unless asked for."""
    palette = LIGHT if mode == "light" else DARK
    found: Any = theme.template(mode)
    axis = {
        "showgrid": False,
        "zeroline": False,
        "showline": True,
        "ticklen": 4,
        "automargin": True,
        "tickfont": {"color": palette["soft"], "size": 12},
        "title": {"font": {"color": palette["soft"], "size": 12}, "standoff": 8},
    }
    hover = {"bgcolor": palette["paper"], "bordercolor": palette["line"], "font": {"color": palette["ink"], "size": 13}}
    found.layout.update(xaxis=axis, yaxis=axis, hoverlabel=hover, margin={"l": 4, "r": 12, "t": 12, "b": 46})
    found.layout.legend.update(font={"size": 12})
    return found


def css_variables() -> str:
    """The palettes and the font as CSS variables."""
    light, dark = ("".join(f"--{key}:{value};" for key, value in palette.items()) for palette in (LIGHT, DARK))
    forced = f"@media print{{:root{{color-scheme:light;{light}}}}}html.printing{{color-scheme:light;{light}}}"
    root = f":root{{color-scheme:light dark;--font:{FONT};{light}}}"
    return f"{root}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{forced}\n"


def _scale(steps: Any, dark: tuple[str | None, ...]) -> dict[str, str]:
    """A light scale's colours with their dark twins: what is faint on paper is faint on the dark page."""
    return {colour.lower(): DARK[key] if key else "#8f5330" for (_, colour), key in zip(steps, dark, strict=True)}


def page_theme() -> dict[str, Any]:
    """What the script needs: both templates, the figures' config, and each light colour with its dark twin."""
    scales = {
        **_scale(theme.SEQUENTIAL, ("wash", None, "misaligned")),
        **_scale(theme.DIVERGING, ("aligned", "wash", "misaligned")),
    }
    swap = {LIGHT[key]: DARK[key] for key in LIGHT} | {f"rgb({_rgb(LIGHT[key])})": _rgb(DARK[key]) for key in LIGHT}
    swap = scales | swap
    return {
        "light": template("light").to_plotly_json(),
        "dark": template("dark").to_plotly_json(),
        "config": theme.CONFIG | {"scrollZoom": False},
        "swap": swap,
    }
