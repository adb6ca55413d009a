"""The figures that no package below draws: each takes tables and gives a Plotly figure whose title is its finding."""

from persona_geometry.report.figures.latents import causal_figure
from persona_geometry.report.figures.layers import layer_figure
from persona_geometry.report.figures.rates import rates_figure, treatments_figure
from persona_geometry.report.figures.rows import rows_figure
from persona_geometry.report.figures.spread import spread_figure

__all__ = [
    "causal_figure",
    "layer_figure",
    "rates_figure",
    "rows_figure",
    "spread_figure",
    "treatments_figure",
]
