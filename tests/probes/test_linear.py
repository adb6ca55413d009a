"""The linear probe: scikit-learn's contract, invariances, and a known direction."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes import PersonaProbe


@parametrize_with_checks([PersonaProbe()])
def test_sklearn_contract(estimator, check):
    check(estimator)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.array(["good", "bad"] * 100)
    direction = np.zeros(8)
    direction[3] = 1
    return rng.normal(size=(200, 8)) + 3 * (y == "good")[:, None] * direction, y, direction


def test_direction_points_from_the_first_class_to_the_second(data):
    X, y, direction = data
    probe = PersonaProbe().fit(X, y)
    assert probe.classes_.tolist() == ["bad", "good"]
    assert probe.direction_ @ direction > 0.95 and np.linalg.norm(probe.direction_) == pytest.approx(1)
    assert PersonaProbe().fit(X, y == "bad").direction_ == pytest.approx(-probe.direction_)


def test_coefficients_live_in_raw_space(data):
    X, y, _ = data
    probe = PersonaProbe().fit(X, y)
    assert probe.decision_function(X) == pytest.approx(X @ probe.coef_[0] + probe.intercept_[0])
    scale, shift = np.linspace(0.1, 20, 8), np.arange(8.0)
    moved = PersonaProbe().fit(X * scale + shift, y)
    assert moved.predict_proba(X * scale + shift) == pytest.approx(probe.predict_proba(X), abs=1e-4)
    assert moved.coef_ * scale == pytest.approx(probe.coef_, abs=1e-3)


def test_dead_dimensions_are_harmless(data):
    X, y, _ = data
    probe = PersonaProbe().fit(np.column_stack([X, np.full(len(X), 7.0)]), y)
    assert np.isfinite(probe.coef_).all() and probe.coef_[0, -1] == 0
