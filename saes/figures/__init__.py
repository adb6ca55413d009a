"""Figures of SAE tables, one file a table."""

from saes.figures.attribution import attribution_figure as attribution_figure
from saes.figures.diff import latent_diff_figure as latent_diff_figure
from saes.figures.quality import density_figure as density_figure
from saes.figures.quality import pareto_figure as pareto_figure
from saes.figures.quality import stability_figure as stability_figure
from saes.figures.runs import runs_figure as runs_figure
