"""Is a change more than chance: t-tests over conversations, effect sizes, and q-values over many latents."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from saes.pooling import Moments

Values = Float[np.ndarray, " feature"]


@dataclass(frozen=True, eq=False)
class Change:
    """A change of means `delta`, its standardised `effect`, and the two-sided `p`, each `[feature]`."""

    delta: Values
    effect: Values
    p: Values


def paired_change(differences: Moments) -> Change:
    """Of the differences of pairs: the effect is d_z = mean / sd, the test Student's t."""
    mean, error = differences.mean.numpy(), np.sqrt(differences.variance.numpy())
    return Change(mean, _ratio(mean, error * np.sqrt(differences.n)), _p(mean, error, differences.n - 1))


def unpaired_change(before: Moments, after: Moments) -> Change:
    """Of two samples: the effect is Hedges' g (pooled sd, corrected for few rows), the test Welch's."""
    mean = (after.mean - before.mean).numpy()
    parts = [(m.variance.numpy(), m.n) for m in (before, after)]
    square = parts[0][0] + parts[1][0]
    error, free = np.sqrt(square), sum(n for _, n in parts) - 2
    weights = [variance**2 / max(n - 1, 1) for variance, n in parts]
    spreads = [variance * n * (n - 1) for variance, n in parts]
    df = _ratio(square**2, weights[0] + weights[1])
    pooled = (spreads[0] + spreads[1]) / max(free, 1)
    correction = 1 - 3 / (4 * free - 1) if free > 0 else np.nan
    return Change(mean, _ratio(mean, np.sqrt(pooled)) * correction, _p(mean, error, np.where(df > 0, df, 1.0)))


def half_width(mean: Moments) -> Values:
    """Half the width of the 95 % t interval of a mean over conversations; NaN for a single one."""
    return np.sqrt(mean.variance.numpy()) * (stdtrit(mean.n - 1, 0.975) if mean.n > 1 else np.nan)


def q_values(p: Values) -> Values:
    """Benjamini and Hochberg's adjusted p: calling all with q <= x keeps the expected share of false ones below x.

    NaN marks what was not tested, and stays.
    """
    q, tested = np.full_like(p, np.nan), np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    if len(order):
        raised = p[order] * len(order) / np.arange(1, len(order) + 1)
        q[order] = np.minimum.accumulate(raised[::-1])[::-1].clip(max=1)
    return q


def _p(mean: Values, error: Values, df: Values | int) -> Values:
    """Two-sided; 1 where nothing changed, 0 where all changed alike, NaN where one conversation gives no spread."""
    t = np.abs(_ratio(mean, error))
    p = 2 * stdtr(df, -np.where(np.isfinite(t), t, 0.0))
    return np.where(np.isnan(error), np.nan, np.where(np.isinf(t), 0.0, p))


def _ratio(value: Values, size: Values) -> Values:
    """value / size, where 0 / 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((value == 0) & (size == 0), 0.0, value / size)
