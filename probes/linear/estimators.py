"""The probes: four ways to find the one direction that tells two classes apart, as scikit-learn estimators."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from probes.errors import InputError


class LinearProbe(ClassifierMixin, BaseEstimator, ABC):
    """What all probes share: two classes, one direction, told in the raw activation space.

    X is (n_samples, d_model), y holds two classes. After `fit`: `coef_` (1, d_model) and `intercept_` (1,) give the
    decision function on raw activations, positive for `classes_[1]`. `direction_` (d_model,) points along `coef_`, and
    is as long as the two classes' means lie apart along it: adding it carries one mean to the height of the other, in
    units of the activations.
    """

    classes_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray
    direction_: np.ndarray
    n_features_in_: int

    @abstractmethod
    def fit(self, X, y) -> "LinearProbe":
        """Learn the direction that tells the two classes of `y` apart."""

    def decision_function(self, X) -> np.ndarray:
        """Scores of shape (n_samples,), positive for `classes_[1]`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_[0] + self.intercept_[0]

    def predict(self, X) -> np.ndarray:
        """The class of each sample: `classes_[1]` where the score is positive."""
        upper = self.decision_function(X) > 0
        return self.classes_[upper.astype(int)]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _checked(self, X, y) -> tuple[np.ndarray, np.ndarray]:
        """X in float64 and the mask of the second class; sets `classes_`."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        if kind != "binary":
            raise InputError(f"Only binary classification is supported. The type of the target is {kind}.")
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise InputError(f"Classifier can't train when only one class is present: {self.classes_[0]!r}.")
        return np.asarray(X), np.asarray(y == self.classes_[1])

    def _learn(self, X: np.ndarray, upper: np.ndarray, weights: np.ndarray, intercept: float) -> None:
        self.coef_, self.intercept_ = weights[None], np.array([intercept])
        norm = np.linalg.norm(weights)
        unit = weights / norm if norm > 0 else np.zeros_like(weights)
        self.direction_ = unit * abs((X[upper].mean(axis=0) - X[~upper].mean(axis=0)) @ unit)


class _Solved(LinearProbe):
    """A probe whose weights follow from the samples at once."""

    @abstractmethod
    def _solve(self, X: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, float]:
        """Weights (d_model,) and intercept on raw X; `upper` (n_samples,) is true for the second class."""

    def fit(self, X, y):
        """Learn the direction that tells the two classes of `y` apart."""
        X, upper = self._checked(X, y)
        self._learn(X, upper, *self._solve(X, upper))
        return self


class LogOdds:
    """Probabilities, for probes whose score is the log odds of `classes_[1]`."""

    def predict_proba(self, X) -> np.ndarray:
        """Probabilities of both classes, shape (n_samples, 2)."""
        odds = self.decision_function(X)  # pyright: ignore[reportAttributeAccessIssue]
        upper = 0.5 * (1 + np.tanh(odds / 2))
        return np.column_stack([1 - upper, upper])


class LogisticProbe(LogOdds, _Solved):
    """Logistic regression on standardised activations; scores are log odds.

    `C` is the inverse strength of the L2 penalty on the standardised weights, `max_iter` the solver's limit.
    """

    def __init__(self, C=1.0, max_iter=1000) -> None:
        self.C = C
        self.max_iter = max_iter

    def _solve(self, X: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, float]:
        Z, scaler = _standard(X)
        solver = LogisticRegression(C=self.C, max_iter=self.max_iter).fit(Z, upper)
        self.n_iter_ = solver.n_iter_
        return _raw(solver.coef_[0], float(solver.intercept_[0]), scaler)


PersonaProbe = LogisticProbe
"""The probe to begin with."""


class MeanDifferenceProbe(_Solved):
    """The second class's mean less the first's; `direction_` is that difference ("mass mean", arXiv 2310.06824).

    Scores are lengths along the direction beyond the midpoint of the two means, in units of the activations.
    """

    def _solve(self, X: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, float]:
        low, high = X[~upper].mean(axis=0), X[upper].mean(axis=0)
        norm = np.linalg.norm(high - low)
        unit = (high - low) / norm if norm > 0 else np.zeros_like(low)
        return unit, float(-unit @ (low + high) / 2)


class LdaProbe(LogOdds, _Solved):
    """Linear discriminant analysis with a shrunk covariance; scores are log odds.

    Activations are divided by their standard deviations within the classes; there the covariance S within the classes
    becomes (1 - a) S + a tr(S) / d_model I. `shrinkage` is a, above 0 and up to 1, or "auto" for Ledoit and Wolf's
    (2004). Where d_model exceeds n_samples nothing of the size d_model^2 is made.
    """

    def __init__(self, shrinkage: Any = "auto") -> None:
        self.shrinkage = shrinkage

    def _solve(self, X: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, float]:
        low, high = X[~upper].mean(axis=0), X[upper].mean(axis=0)
        residuals = X - np.where(upper[:, None], high, low)
        spread = residuals.std(axis=0)
        spread[spread <= max(1e-9 * spread.max(), 1e-12 * np.abs(X).max())] = 1.0  # dead, but for rounding
        self.shrinkage_ = self._amount(residuals / spread)
        weights = _solve_shrunk(residuals / spread, (high - low) / spread, self.shrinkage_) / spread
        prior = np.log(upper.sum() / (~upper).sum())
        return weights, float(prior - weights @ (low + high) / 2)

    def _amount(self, residuals: np.ndarray) -> float:
        if isinstance(self.shrinkage, str):
            if self.shrinkage != "auto":
                raise InputError(f"shrinkage {self.shrinkage!r}: give 'auto' or a number above 0, up to 1")
            found = float(ledoit_wolf_shrinkage(residuals, assume_centered=True)) if residuals.any() else 1.0
            return max(found, 1e-6)  # directions that the samples leave out still have some variance
        if not 0 < self.shrinkage <= 1:
            raise InputError(f"shrinkage {self.shrinkage}: give 'auto' or a number above 0, up to 1")
        return float(self.shrinkage)


class RidgeProbe(_Solved):
    """Ridge regression of the classes, as -1 and 1, on standardised activations; scores are its predictions.

    `alpha` is the L2 penalty on the standardised weights, beside the summed squared error; "auto" takes that of 17,
    from 1e-4 to 1e4 times the number of samples, whose leave-one-out error is least (it knows nothing of groups).
    """

    def __init__(self, alpha: Any = "auto") -> None:
        self.alpha = alpha

    def _solve(self, X: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, float]:
        if self.alpha != "auto" and (isinstance(self.alpha, str) or not self.alpha > 0):
            raise InputError(f"alpha {self.alpha!r}: give 'auto' or a positive penalty")
        Z, scaler = _standard(X)
        targets = np.where(upper, 1.0, -1.0)
        parts, powers = _components(Z)
        along = parts.T @ (targets - targets.mean())
        self.alpha_ = _least_error(parts, powers, targets) if self.alpha == "auto" else float(self.alpha)
        weights = Z.T @ (parts @ (along / powers / (powers + self.alpha_)))
        return _raw(weights, float(targets.mean()), scaler)


def _components(Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal components [sample, component] of centred Z, and their summed squares; those without any are left out.

    Their directions are Z^T components / squares; the smaller of the two Gram matrices is taken apart.
    """
    wide = Z.shape[1] > Z.shape[0]
    powers, basis = np.linalg.eigh(Z @ Z.T if wide else Z.T @ Z)
    kept = powers > 1e-12 * max(float(powers[-1]), 1e-300)
    powers, basis = powers[kept], basis[:, kept]
    return (basis * np.sqrt(powers) if wide else Z @ basis), powers


def _least_error(parts: np.ndarray, powers: np.ndarray, targets: np.ndarray) -> float:
    """The penalty with the least leave-one-out error."""
    n, centred = len(targets), targets - targets.mean()
    found = []
    for alpha in n * np.logspace(-4, 4, 17):
        fitted = parts @ ((parts.T @ centred) / (powers + alpha))
        leverage = (parts**2 / (powers + alpha)).sum(axis=1) + 1 / n
        found.append((float((((centred - fitted) / (1 - leverage).clip(1e-9)) ** 2).mean()), alpha))
    return float(min(found)[1])


def _standard(X: np.ndarray) -> tuple[np.ndarray, StandardScaler]:
    scaler = StandardScaler().fit(X)
    return np.asarray(scaler.transform(X)), scaler


def _raw(weights: np.ndarray, intercept: float, scaler: StandardScaler) -> tuple[np.ndarray, float]:
    """Weights on standardised activations as weights on raw ones."""
    raw = weights / np.asarray(scaler.scale_)
    return raw, float(intercept - raw @ np.asarray(scaler.mean_))


def _solve_shrunk(residuals: np.ndarray, difference: np.ndarray, amount: float) -> np.ndarray:
    """((1 - amount) S + amount tr(S) / d I)^-1 difference, where S = residuals^T residuals / n [d, d].

    Where d exceeds n, by Woodbury's identity from a matrix [n, n].
    """
    n, width = residuals.shape
    floor, weight = amount * (residuals**2).sum() / n / width, (1 - amount) / n
    if floor == 0:
        return difference
    if width <= n:
        return np.linalg.solve(weight * residuals.T @ residuals + floor * np.eye(width), difference)
    inner = weight * residuals @ residuals.T + floor * np.eye(n)
    return (difference - weight * residuals.T @ np.linalg.solve(inner, residuals @ difference)) / floor
