"""The linear probes: scikit-learn's contract, invariances, known directions, and independent formulas."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier, RidgeCV
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes import InputError, LdaProbe, LogisticProbe, MeanDifferenceProbe, PersonaProbe, RidgeProbe

PROBES = [LogisticProbe(), MeanDifferenceProbe(), LdaProbe(), RidgeProbe()]
each = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: type(probe).__name__)


@parametrize_with_checks(PROBES)
def test_sklearn_contract(estimator, check):
    check(estimator)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.array(["good", "bad"] * 100)
    direction = np.zeros(8)
    direction[3] = 1
    return rng.normal(size=(200, 8)) + 3 * (y == "good")[:, None] * direction, y, direction


@each
def test_direction_points_from_the_first_class_to_the_second(probe, data):
    X, y, direction = data
    probe = clone(probe).fit(X, y)
    gap = X[y == "good"].mean(axis=0) - X[y == "bad"].mean(axis=0)
    length = np.linalg.norm(probe.direction_)
    assert probe.classes_.tolist() == ["bad", "good"]
    assert probe.direction_ @ direction / length > 0.95
    assert gap @ probe.direction_ / length == pytest.approx(length) and 2.5 < length < 3.5
    assert clone(probe).fit(X, y == "bad").direction_ == pytest.approx(-probe.direction_)
    assert (probe.predict(X) == "good").tolist() == (probe.decision_function(X) > 0).tolist()


@each
def test_coefficients_live_in_raw_space(probe, data):
    X, y, _ = data
    probe = clone(probe).fit(X, y)
    assert probe.decision_function(X) == pytest.approx(X @ probe.coef_[0] + probe.intercept_[0])
    cosine = probe.coef_[0] @ probe.direction_ / np.linalg.norm(probe.coef_) / np.linalg.norm(probe.direction_)
    assert cosine == pytest.approx(1)
    scale, shift = np.linspace(0.1, 20, 8), np.arange(8.0)
    if isinstance(probe, MeanDifferenceProbe):  # which alone has no units of its own to hide in
        scale = np.full(8, 5.0)
        assert probe.direction_ == pytest.approx(X[y == "good"].mean(axis=0) - X[y == "bad"].mean(axis=0))
    moved = clone(probe).fit(X * scale + shift, y)
    same = probe.decision_function(X) * (5 if isinstance(probe, MeanDifferenceProbe) else 1)
    assert moved.decision_function(X * scale + shift) == pytest.approx(same, abs=2e-3)


@each
def test_dead_dimensions_are_harmless(probe, data):
    X, y, _ = data
    probe = clone(probe).fit(np.column_stack([X, np.full(len(X), 7.0)]), y)
    assert np.isfinite(probe.coef_).all() and probe.coef_[0, -1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("width", [5, 90])  # fewer dimensions than samples, and more
@pytest.mark.parametrize("amount", [0.05, 0.6, 1.0])
def test_lda_is_that_of_scikit_learn(width, amount):
    rng = np.random.default_rng(width)
    y = rng.random(60) < 0.3
    X = rng.normal(size=(60, width)) @ rng.normal(size=(width, width)) + y[:, None]
    Z = X / np.sqrt(sum((y == c).mean() * X[y == c].var(axis=0) for c in (False, True)))
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=amount).fit(Z, y)
    probe = LdaProbe(shrinkage=amount).fit(X, y)
    assert probe.decision_function(X) == pytest.approx(reference.decision_function(Z), rel=1e-6, abs=1e-8)
    assert probe.predict_proba(X) == pytest.approx(reference.predict_proba(Z), abs=1e-8)


def test_lda_shrinks_more_where_samples_are_few():
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    X = rng.normal(size=(400, 20)) @ np.diag(np.linspace(1, 5, 20)) @ rng.normal(size=(20, 20))
    few, many = (LdaProbe().fit(X[:n], y[:n]).shrinkage_ for n in (24, 400))
    assert 0 < many < few <= 1


@pytest.mark.parametrize("width", [5, 90])
def test_ridge_is_that_of_scikit_learn(width):
    rng = np.random.default_rng(width)
    y = rng.random(60) < 0.3
    X = 3 * rng.normal(size=(60, width)) + 2 + y[:, None]
    Z = StandardScaler().fit_transform(X)
    reference = RidgeClassifier(alpha=4.0).fit(Z, y)
    probe = RidgeProbe(alpha=4.0).fit(X, y)
    assert probe.decision_function(X) == pytest.approx(reference.decision_function(Z), abs=1e-8)


@pytest.mark.parametrize("width", [5, 90])
def test_ridge_takes_the_penalty_that_leaves_one_out_best(width):
    rng = np.random.default_rng(width)
    y = np.arange(50) % 2
    X = rng.normal(size=(50, width)) + 0.8 * y[:, None]
    Z = StandardScaler().fit_transform(X)
    reference = RidgeCV(alphas=50 * np.logspace(-4, 4, 17), gcv_mode="svd").fit(Z, 2.0 * y - 1)
    assert RidgeProbe().fit(X, y).alpha_ == pytest.approx(reference.alpha_)


def test_mean_difference_cuts_in_the_middle():
    X = np.array([[0.0, 0.0], [0.0, 2.0], [6.0, 1.0], [10.0, 1.0]])
    probe = MeanDifferenceProbe().fit(X, [0, 0, 1, 1])
    assert probe.direction_.tolist() == [8.0, 0.0]
    assert probe.decision_function([[4.0, 9.0], [7.0, -3.0]]).tolist() == [0.0, 3.0]


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        (LdaProbe(shrinkage=0), "shrinkage 0"),
        (LdaProbe(shrinkage="some"), "'some'"),
        (LdaProbe(shrinkage=1.5), "up to 1"),
        (RidgeProbe(alpha=-1), "alpha -1"),
        (RidgeProbe(alpha="some"), "'some'"),
    ],
)
def test_bad_settings(probe, said, data):
    X, y, _ = data
    with pytest.raises(InputError, match=said):
        probe.fit(X, y)


def test_the_probe_to_begin_with():
    assert PersonaProbe is LogisticProbe
