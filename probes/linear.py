"""Linear probes: what can be read off activations by one direction, as a scikit-learn estimator."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data


class PersonaProbe(ClassifierMixin, BaseEstimator):
    """Logistic regression on standardised activations, for two classes, told in the raw activation space.

    X is (n_samples, d_model). After `fit`: `coef_` (1, d_model) and `intercept_` (1,) give the decision function on raw
    activations, `direction_` (d_model,) is the unit vector of `coef_`: it points from `classes_[0]` to `classes_[1]`.
    `C` is the inverse strength of the L2 penalty on the standardised weights, `max_iter` the solver's limit.
    """

    def __init__(self, C=1.0, max_iter=1000) -> None:
        self.C = C
        self.max_iter = max_iter

    def fit(self, X, y) -> "PersonaProbe":
        """Learn the direction that tells the two classes of `y` apart."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        if type_of_target(y, input_name="y") != "binary":
            raise ValueError(f"Only binary classification is supported. The type of the target is {type_of_target(y)}.")
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: {self.classes_[0]!r}.")
        scaler = StandardScaler().fit(X)
        solver = LogisticRegression(C=self.C, max_iter=self.max_iter).fit(scaler.transform(X), y)
        self.n_iter_ = solver.n_iter_
        self.coef_ = solver.coef_ / scaler.scale_
        self.intercept_ = solver.intercept_ - self.coef_ @ scaler.mean_
        norm = np.linalg.norm(self.coef_)
        self.direction_ = self.coef_[0] / norm if norm > 0 else np.zeros_like(self.coef_[0])
        return self

    def decision_function(self, X) -> np.ndarray:
        """Log odds of `classes_[1]`, shape (n_samples,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_[0] + self.intercept_[0]

    def predict_proba(self, X) -> np.ndarray:
        """Probabilities of both classes, shape (n_samples, 2)."""
        odds = self.decision_function(X)
        upper = 0.5 * (1 + np.tanh(odds / 2))
        return np.column_stack([1 - upper, upper])

    def predict(self, X) -> np.ndarray:
        """The likelier class of each sample."""
        upper = self.decision_function(X) > 0
        return self.classes_[upper.astype(int)]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
