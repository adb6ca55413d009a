"""How well scores tell two classes apart: AUROC, with an interval from a bootstrap clustered by group."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from probes.errors import InputError
from probes.outcomes import Rate

RESAMPLES = 2000
_CELLS = 2_000_000  # weights held at a time


def auroc(scores: Any, labels: Any, *, groups: Any = None, folds: Any = None, seed: int = 0) -> Rate:
    """The chance that a sample of the upper class outscores one of the lower class; ties count half.

    All are of shape (n_samples,). `labels` hold two classes, of which the upper is the one that sorts last. With
    `folds`, pairs count only within a fold: both were then scored by one and the same probe. The interval (95 %) is the
    percentile bootstrap over whole `groups` (2,000 resamples); without groups each sample is its own. Where every
    resample agrees, as at AUROC 1, the exact binomial limit over the number of groups is given. `n` counts the samples.
    NaN where no pair can be made. Raises InputError for labels or shapes that do not fit, or scores that are not
    finite.
    """
    scores = np.asarray(scores, dtype=float)
    upper = upper_class(labels, len(scores))
    if not np.isfinite(scores).all():
        raise InputError("AUROC: a score is not finite; look for activations that are not")
    clusters = codes(np.arange(len(scores)) if groups is None else groups, len(scores), "groups")
    parts = codes(np.zeros(len(scores)) if folds is None else folds, len(scores), "folds")
    value = auroc_value(scores, upper, parts)
    draws = [_weighted(scores, upper, parts, weights[:, clusters]) for weights in resamples(clusters, seed)]
    return Rate(value, *limits(value, np.concatenate(draws), int(clusters.max()) + 1), len(scores))


def auroc_value(scores: np.ndarray, upper: np.ndarray, folds: np.ndarray) -> float:
    """The figure of `auroc` alone, without an interval."""
    return float(_weighted(scores, upper, folds, np.ones((1, len(scores))))[0])


def mean_rate(values: Any, *, groups: Any = None, seed: int = 0) -> Rate:
    """The mean of values between 0 and 1, shape (n_samples,), with the same interval as `auroc`."""
    values = np.asarray(values, dtype=float)
    clusters = codes(np.arange(len(values)) if groups is None else groups, len(values), "groups")
    sums, counts = (np.bincount(clusters, weights=w) for w in (values, np.ones(len(values))))
    draws = [(weights @ sums) / (weights @ counts) for weights in resamples(clusters, seed)]
    return Rate(float(values.mean()), *limits(float(values.mean()), np.concatenate(draws), len(sums)), len(values))


def resamples(clusters: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster was drawn, [resamples, clusters] at a time, 2,000 in all."""
    n = int(clusters.max()) + 1
    rng, step = np.random.default_rng(seed), max(1, _CELLS // max(len(clusters), 1))
    for start in range(0, RESAMPLES, step):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(step, RESAMPLES - start)).astype(float)


def limits(value: float, draws: np.ndarray, n_clusters: int) -> tuple[float, float]:
    """The middle 95 % of the draws; where they are all the same, the exact binomial limit; NaN where many fail."""
    finite = draws[np.isfinite(draws)]
    if not math.isfinite(value) or len(finite) < 0.975 * len(draws):
        return math.nan, math.nan
    if np.ptp(finite) > 1e-12:
        return float(np.quantile(finite, 0.025)), float(np.quantile(finite, 0.975))
    slack = 1 - 0.025 ** (1 / n_clusters)
    return max(0.0, value - slack), min(1.0, value + slack)


def upper_class(labels: Any, n: int) -> np.ndarray:
    """Mask of the samples of the class that sorts last. Raises InputError unless there are two, one label a sample."""
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise InputError(f"labels of shape {labels.shape} for {n} samples: give one for each")
    classes = np.unique(labels)
    if len(classes) != 2:
        shown = ", ".join(repr(one.item()) for one in classes[:4])
        raise InputError(f"labels hold {len(classes)} classes ({shown}): a probe tells two apart")
    return labels == classes[1]


def codes(values: Any, n: int, what: str) -> np.ndarray:
    """Whole numbers from 0 that stand for the values (any that compare equal), one a sample."""
    values = np.asarray(values)
    if values.shape != (n,):
        raise InputError(f"{what} of shape {values.shape} for {n} samples: give one for each")
    return np.unique(values, return_inverse=True)[1]


def _weighted(scores: np.ndarray, upper: np.ndarray, folds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC [resample] under the weights [resample, sample]."""
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in np.unique(folds):
        inside = np.flatnonzero(folds == fold)
        inside = inside[np.argsort(scores[inside], kind="stable")]
        starts = np.flatnonzero(np.diff(scores[inside], prepend=-np.inf) > 0)  # where a new score begins
        high, low = (np.add.reduceat(weights[:, inside] * side[inside], starts, axis=1) for side in (upper, ~upper))
        won += (high * (low.cumsum(axis=1) - low / 2)).sum(axis=1)
        pairs += high.sum(axis=1) * low.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1), np.nan)
