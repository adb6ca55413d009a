"""Figures that are functions of sums, with an interval from a bootstrap over the clusters that the sums belong to."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from probes.linear.areas import resamples
from probes.outcomes import Rate

Figures = Callable[[Float[np.ndarray, "draw column"]], Mapping[str, Float[np.ndarray, " draw"]]]


def rates_of(sums: Float[np.ndarray, "cluster column"], figures: Figures, *, n: int, seed: int) -> dict[str, Rate]:
    """Every figure of the sums over all clusters, with its 95 % percentile interval over resampled clusters.

    The limits are NaN where there are fewer than two clusters, and where a figure is undefined in more than one draw in
    40.
    """
    found = figures(sums.sum(0, keepdims=True))
    drawn = [figures(weights @ sums) for weights in resamples(np.arange(len(sums)), seed)] if len(sums) > 1 else []
    rates = {}
    for name, (value,) in found.items():
        draws = np.concatenate([part[name] for part in drawn]) if drawn else np.full(1, np.nan)
        known = draws[np.isfinite(draws)] if np.isfinite(value) else draws[:0]
        low, high = np.quantile(known, (0.025, 0.975)) if len(known) > 0.975 * len(draws) else (np.nan, np.nan)
        rates[name] = Rate(float(value), float(low), float(high), n)
    return rates
