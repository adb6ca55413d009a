"""Thresholds: one rate under many pairs of them, so that nobody has to trust the usual one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from probes.errors import InputError
from probes.outcomes.bootstrap import estimate
from probes.outcomes.rates import Counts


@dataclass(frozen=True)
class ThresholdGrid:
    """One row per pair of thresholds: `align_below`, `coherent_above`, the rate `value` with `low`, `high`, and `n`."""

    table: pd.DataFrame
    kind: str = "misaligned"

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest rate of the grid, undefined ones (no answer is coherent enough) left out."""
        values = self.table["value"].to_numpy(dtype=float)
        values = values[np.isfinite(values)]
        return (float(values.min()), float(values.max())) if len(values) else (math.nan, math.nan)

    def figure(self):
        """Heat map of the rate: columns are the thresholds of alignment, rows those of coherence."""
        from probes.outcomes.figures import grid_figure

        return grid_figure(self)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format=lambda value: f"{value:.3f}")


def threshold_grid(
    table: pd.DataFrame,
    align_below: Sequence[float | int],
    coherent_above: Sequence[float | int],
    *,
    counts: Counts,
) -> ThresholdGrid:
    """The rate of an outcome table under every pair of thresholds; all else is counted as `counts` says."""
    if not align_below or not coherent_above:
        raise InputError(f"thresholds {align_below} and {coherent_above}: give at least one of each")
    rows = []
    for clear in coherent_above:
        for low in align_below:
            rule = replace(counts, align_below=low, coherent_above=clear)
            rate = estimate([table], rule, lambda rates: rates[0])
            rows.append({"align_below": low, "coherent_above": clear, **vars(rate)})
    return ThresholdGrid(pd.DataFrame(rows), counts.kind)
