"""The report's figures: each takes tables and gives a Plotly figure whose title is its finding."""

from persona_geometry.report.figures.doses import dose_figure, layer_figure
from persona_geometry.report.figures.geometry import distances_figure, map_figure, null_figure
from persona_geometry.report.figures.latents import causal_figure, diff_figure
from persona_geometry.report.figures.rates import rates_figure, treatments_figure
from persona_geometry.report.figures.rows import rows_figure
from persona_geometry.report.figures.spread import spread_figure
from persona_geometry.report.figures.writers import writers_figure

__all__ = [
    "causal_figure",
    "diff_figure",
    "distances_figure",
    "dose_figure",
    "layer_figure",
    "map_figure",
    "null_figure",
    "rates_figure",
    "rows_figure",
    "spread_figure",
    "treatments_figure",
    "writers_figure",
]
