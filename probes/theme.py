"""One look for every figure: the colours that carry meaning, and the Plotly template, light and dark."""

from typing import Literal

import plotly.graph_objects as go

Mode = Literal["light", "dark"]

ALIGNED = "#0072B2"
MISALIGNED = "#D55E00"
CONTROL = "#8A8F98"
CHOSEN = "#009E73"
SHARED = "#CC79A7"
HARMFUL = "#E69F00"

MEANING = {
    "aligned": ALIGNED,
    "misaligned": MISALIGNED,
    "control": CONTROL,
    "chosen": CHOSEN,
    "shared": SHARED,
    "harmful": HARMFUL,
}
"""Colours of the Okabe-Ito palette, which stay apart in every common kind of colour blindness; grey for controls."""

MARKERS = {
    "aligned": "circle",
    "misaligned": "diamond",
    "control": "circle-open",
    "chosen": "star",
    "shared": "square",
    "harmful": "triangle-up",
}
"""A marker for each meaning, so that no figure rests on colour alone."""

DIVERGING = ((0.0, ALIGNED), (0.5, "#F4F1EC"), (1.0, MISALIGNED))
SEQUENTIAL = ((0.0, "#FBF3EC"), (0.5, "#EFA36B"), (1.0, "#A63E00"))

INK = {"light": "#1F2328", "dark": "#E6E8EB"}
PAPER = {"light": "#FFFFFF", "dark": "#15181C"}
GRID = {"light": "#E7E9EC", "dark": "#2C3138"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True, "displayModeBar": False}
"""What to pass as `config` when a figure is shown or written: no upload button, no logo."""


def template(mode: Mode = "light") -> go.layout.Template:
    """The Plotly template of all figures, on transparent paper so that it sits on any page."""
    axis = {
        "gridcolor": GRID[mode],
        "linecolor": GRID[mode],
        "zerolinecolor": GRID[mode],
        "tickcolor": GRID[mode],
        "ticks": "outside",
        "title": {"standoff": 8},
        "automargin": True,
    }
    layout = go.Layout(
        font={"family": FONT, "size": 13, "color": INK[mode]},
        title={"font": {"size": 16}, "x": 0, "xanchor": "left", "xref": "paper"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        colorway=[ALIGNED, MISALIGNED, CHOSEN, SHARED, HARMFUL, CONTROL],
        colorscale={"diverging": DIVERGING, "sequential": SEQUENTIAL},
        xaxis=axis,
        yaxis=axis,
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        hoverlabel={"align": "left", "font": {"family": FONT}},
        margin={"l": 56, "r": 16, "t": 72, "b": 48},
    )
    return go.layout.Template(layout=layout)


def themed(figure: go.Figure, title: str = "", *, mode: Mode = "light") -> go.Figure:
    """Return the figure with the template of the mode and, if given, a title; the original stays as it was."""
    figure = go.Figure(figure)
    figure.update_layout(template=template(mode))
    if title:
        figure.update_layout(title_text=title)
    return figure
