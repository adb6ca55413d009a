"""What a probe's figure is worth: shuffled labels, random directions, and a control task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from probes.errors import InputError
from probes.linear.areas import codes
from probes.linear.estimators import LinearProbe
from probes.linear.folds import Fold, held_out, spread_folds


@dataclass(frozen=True)
class Baselines:
    """How many of each baseline stand beside a figure; 0 leaves one out.

    `shuffles`: probes of shuffled labels. `random`: random directions of either kind. `controls`: drawings of the
    control task.
    """

    shuffles: int = 5
    random: int = 20
    controls: int = 3

    def __post_init__(self) -> None:
        if min(self.shuffles, self.random, self.controls) < 0:
            raise InputError(f"{self}: give numbers of 0 or more")


class Spread(NamedTuple):
    """Mean and 5-95 % range over the draws of a baseline; NaN without draws."""

    mean: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float] | np.ndarray) -> "Spread":
        """Of some values; those that are NaN do not count."""
        values = np.asarray(values, dtype=float)
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(np.nan, np.nan, np.nan)
        return cls(float(values.mean()), *(float(v) for v in np.quantile(values, (0.05, 0.95))))


class Selectivity(NamedTuple):
    """Accuracy on the real task and on the control task, over the same folds; `value` is the difference."""

    accuracy: float
    control: float

    @property
    def value(self) -> float:
        """Accuracy less control accuracy: near 0, the probe may only have learned types by heart."""
        return self.accuracy - self.control


def shuffled(labels: np.ndarray, units: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The labels in another order, so that they keep their ties: whole units of one label each change places.

    `units` are tried in turn, coarse ones first: the first kind of unit that never mixes labels is shuffled. Where none
    is, single samples are.
    """
    for unit in units:
        place = codes(unit, len(labels), "units")
        n = np.bincount(place)
        sums = np.bincount(place, weights=labels)
        if np.isin(sums / n, (0, 1)).all():
            return rng.permutation(sums > 0)[place]
    return rng.permutation(labels)


def random_scores(
    X: np.ndarray, upper: np.ndarray, folds: Sequence[Fold], n: int, rng: np.random.Generator, *, like_data: bool
) -> np.ndarray:
    """Scores [n, sample] along random directions, each pointed, like a probe, to the upper class of the training folds.

    Directions are uniform over the sphere (equal norm; AUROC asks for no particular one), or drawn from the covariance
    of X (`like_data`: equal energy).
    """
    centred = X - X.mean(axis=0)
    if like_data:
        directions = rng.normal(size=(n, len(X))) @ centred / np.sqrt(len(X))
    else:
        directions = rng.normal(size=(n, X.shape[1]))
    along = directions @ centred.T
    scores = np.empty_like(along)
    for train, test in folds:
        gap = along[:, train[upper[train]]].mean(axis=1) - along[:, train[~upper[train]]].mean(axis=1)
        scores[:, test] = along[:, test] * np.sign(gap)[:, None]
    return scores


def selectivity(
    estimator: LinearProbe,
    X: np.ndarray,
    upper: np.ndarray,
    types: np.ndarray,
    units: np.ndarray,
    *,
    draws: int = 3,
    seed: int = 0,
) -> Selectivity:
    """Accuracy less the accuracy on a control task (Hewitt and Liang, arXiv 1909.03368).

    In the control task each type (a question, a token id) gets one random label, drawn at the rate of the real ones, so
    that only knowing the types by heart can help. Both tasks are tested on the same folds, where every type occurs in
    training too; `units` (conversations) stay whole. Samples of types that training lacks do not count.
    """
    rng, types = np.random.default_rng(seed), codes(types, len(X), "types")
    folds = spread_folds(types, units, seed=seed)
    known = np.zeros(len(X), dtype=bool)
    for train, test in folds:
        known[test] = np.isin(types[test], types[train])
    if not known.any() or not draws:
        return Selectivity(np.nan, np.nan)
    real = _accuracy(estimator, X, upper, folds, known)
    controls = [_accuracy(estimator, X, _control(upper, types, rng), folds, known) for _ in range(draws)]
    return Selectivity(real, float(np.nanmean(controls)))


def _control(upper: np.ndarray, types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random label for each type, never the same for all."""
    n = int(types.max()) + 1
    if n < 2:
        return np.zeros(len(types), dtype=bool)
    count = int(np.clip(rng.binomial(n, upper.mean()), 1, n - 1))
    return rng.permutation(np.arange(n) < count)[types]


def _accuracy(
    estimator: LinearProbe, X: np.ndarray, upper: np.ndarray, folds: Sequence[Fold], known: np.ndarray
) -> float:
    scores = held_out(estimator, X, upper, folds)
    counted = known & np.isfinite(scores)
    return float(((scores > 0) == upper)[counted].mean()) if counted.any() else float("nan")
