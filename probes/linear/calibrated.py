"""Probabilities that mean what they say: Platt scaling over held-out folds, and how far a forecast is off."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from probes.errors import InputError
from probes.linear.areas import mean_rate, upper_class
from probes.linear.estimators import LinearProbe, LogisticProbe, LogOdds
from probes.linear.folds import fresh, grouped_folds, held_out
from probes.outcomes import Rate

if TYPE_CHECKING:
    import plotly.graph_objects as go


class CalibratedProbe(LogOdds, LinearProbe):
    """Another probe with its scores turned into log odds by Platt's scaling, so that it has honest probabilities.

    The scaling (two numbers, with Platt's 1999 smoothed targets) is fitted to scores of samples that the probe had not
    seen, in `n_folds` folds that keep `groups` whole; the probe itself is then fitted to all samples. The result is a
    linear probe again. `estimator` is a LogisticProbe by default; `seed` draws the folds. After `fit`: `estimator_`,
    `slope_` and `shift_`, with log odds = slope_ * score + shift_.
    """

    def __init__(self, estimator=None, n_folds=5, seed=0) -> None:
        self.estimator = estimator
        self.n_folds = n_folds
        self.seed = seed

    def fit(self, X, y, groups=None):
        """Learn the direction and the scaling; `groups` (n_samples,) are conversations, questions or domains."""
        X, upper = self._checked(X, y)
        inner = self.estimator or LogisticProbe()
        units = np.arange(len(X)) if groups is None else groups
        folds = grouped_folds(upper, units, n_folds=self.n_folds, seed=self.seed)
        self.slope_, self.shift_ = platt(held_out(inner, X, upper, folds), upper)
        self.estimator_ = fresh(inner).fit(X, upper)
        weights = self.slope_ * self.estimator_.coef_[0]
        self._learn(X, upper, weights, self.slope_ * float(self.estimator_.intercept_[0]) + self.shift_)
        return self


@dataclass(frozen=True)
class Calibration:
    """How well probabilities agree with what happened.

    `table` has one row per bin that holds samples: its limits `above` and `upto`, mean probability `predicted`, share
    of the upper class `observed`, and `n`. `ece` is the expected calibration error: the mean of |predicted - observed|
    over samples, bin by bin (it is above 0 by chance alone where bins are small). `brier` is the mean squared error of
    the probabilities with its 95 % interval, `brier_of_rate` that of saying the overall share every time.
    """

    table: pd.DataFrame
    ece: float
    brier: Rate
    brier_of_rate: float

    def figure(self) -> "go.Figure":
        """Observed share against predicted probability, with the diagonal."""
        from probes.figures import calibration_figure

        return calibration_figure(self)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, escape=True, float_format="{:.3f}".format)


def calibration(probabilities: Any, labels: Any, *, groups: Any = None, bins: int = 10, seed: int = 0) -> Calibration:
    """Compare probabilities of the upper class (of two `labels`, the one that sorts last) with what was the case.

    All have the shape (n_samples,). Bins are equally wide; the Brier score's interval is clustered by `groups`. Give
    samples that neither the probe nor its scaling has seen. Raises InputError for probabilities outside 0 to 1.
    """
    forecast = np.asarray(probabilities, dtype=float)
    upper = upper_class(labels, len(forecast))
    if not ((forecast >= 0) & (forecast <= 1)).all():
        raise InputError("calibration: a probability is not between 0 and 1; give column 1 of predict_proba")
    if bins < 1:
        raise InputError(f"bins {bins}: give 1 or more")
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, forecast, side="left") - 1, 0, bins - 1)
    rows = []
    for number in np.unique(place):
        inside = place == number
        row = {"above": edges[number], "upto": edges[number + 1], "predicted": forecast[inside].mean()}
        rows.append(row | {"observed": upper[inside].mean(), "n": int(inside.sum())})
    table = pd.DataFrame(rows)
    ece = np.average((table["predicted"] - table["observed"]).abs(), weights=table["n"])
    brier = mean_rate((forecast - upper) ** 2, groups=groups, seed=seed)
    return Calibration(table, float(ece), brier, float(upper.mean() * (1 - upper.mean())))


def platt(scores: np.ndarray, upper: np.ndarray) -> tuple[float, float]:
    """Slope and shift that turn scores (n_samples,) into log odds of the upper class, by Platt's smoothed targets."""
    high, low = int(upper.sum()), int((~upper).sum())
    targets = np.where(upper, (high + 1) / (high + 2), 1 / (low + 2))
    centre, spread = float(scores.mean()), float(scores.std())
    if spread <= 1e-12 * abs(centre):
        return 0.0, float(np.log(targets.mean() / (1 - targets.mean())))
    x = np.tile((scores - centre) / spread, 2)[:, None]
    sides, weights = np.repeat([True, False], len(scores)), np.concatenate([targets, 1 - targets])
    solver = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(x, sides, sample_weight=weights)
    slope = float(solver.coef_[0, 0]) / spread
    return slope, float(solver.intercept_[0]) - slope * centre
