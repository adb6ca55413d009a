"""Calibrated probabilities: scikit-learn's own scaling as the reference, folds that keep groups, a known forecaster."""

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes import CalibratedProbe, InputError, LdaProbe, LogisticProbe, MeanDifferenceProbe, calibration, grouped_folds
from probes.linear.calibrated import platt


@parametrize_with_checks([CalibratedProbe(MeanDifferenceProbe())])
def test_sklearn_contract(estimator, check):
    check(estimator)


def noisy(n: int, width: int = 30, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    return rng.normal(size=(n, width)) + 0.5 * labels[:, None] * (np.arange(width) < 6), labels


@pytest.mark.parametrize("inner", [MeanDifferenceProbe(), LdaProbe()], ids=lambda inner: type(inner).__name__)
def test_scaling_is_that_of_scikit_learn(inner):
    X, y = noisy(160)
    groups = np.arange(160) // 4
    folds = grouped_folds(y, groups)
    reference = CalibratedClassifierCV(inner, cv=folds, method="sigmoid", ensemble=False).fit(X, y)
    probe = CalibratedProbe(inner).fit(X, y, groups=groups)
    assert probe.predict_proba(X) == pytest.approx(reference.predict_proba(X), abs=2e-3)
    inside = probe.slope_ * probe.estimator_.decision_function(X) + probe.shift_
    assert probe.decision_function(X) == pytest.approx(inside)
    assert probe.direction_ == pytest.approx(probe.estimator_.direction_)


def test_it_mends_a_probe_that_is_too_sure():
    (X, y), (fresh, truth) = noisy(80, 60), noisy(2000, 60, seed=1)
    bold = LogisticProbe(C=100.0)
    before = calibration(bold.fit(X, y).predict_proba(fresh)[:, 1], truth)
    after = calibration(CalibratedProbe(bold).fit(X, y).predict_proba(fresh)[:, 1], truth)
    assert after.ece < 0.5 * before.ece and after.brier.high < before.brier.low


def test_groups_are_kept_whole():
    """Copies of a sample in another fold make any probe look sure of itself."""
    X, y = noisy(60, 50)
    X, y, groups = np.tile(X, (4, 1)), np.tile(y, 4), np.tile(np.arange(60), 4)
    bold = LogisticProbe(C=100.0)
    assert CalibratedProbe(bold).fit(X, y, groups=groups).slope_ < 0.3 * CalibratedProbe(bold).fit(X, y).slope_


def test_scores_that_say_nothing():
    labels = np.arange(40) % 4 == 0
    slope, shift = platt(np.full(40, 3.0), labels)
    assert slope == 0 and 1 / (1 + np.exp(-shift)) == pytest.approx(0.25, abs=0.03)


def test_figures_of_a_known_forecaster():
    p = np.repeat([0.2, 0.6], 50)
    labels = np.concatenate([np.arange(50) < 10, np.arange(50) < 45])  # 20 % and 90 %
    found = calibration(p, labels, bins=5)
    assert found.table["n"].tolist() == [50, 50] and found.table["observed"].tolist() == [0.2, 0.9]
    assert found.table[["above", "upto"]].to_numpy().ravel() == pytest.approx([0, 0.2, 0.4, 0.6])
    assert found.ece == pytest.approx(0.15)
    brier = (10 * 0.64 + 40 * 0.04 + 45 * 0.16 + 5 * 0.36) / 100
    assert found.brier.value == pytest.approx(brier) and found.brier.low < brier < found.brier.high
    assert found.brier_of_rate == pytest.approx(0.55 * 0.45)
    figure = found.figure()
    assert list(figure.data[1].y) == [0.2, 0.9] and "15.0%" in figure.layout.title.text
    assert "0.900" in found._repr_html_()


def test_a_true_forecaster_has_no_error():
    rng = np.random.default_rng(0)
    p = rng.random(5000)
    found = calibration(p, rng.random(5000) < p)
    assert found.ece < 0.03 and found.brier.value == pytest.approx(1 / 6, abs=0.01)


@pytest.mark.parametrize(("p", "bins", "said"), [([0.5, 1.2], 10, "between 0 and 1"), ([0.5, 0.2], 0, "bins 0")])
def test_refusals(p, bins, said):
    with pytest.raises(InputError, match=said):
        calibration(p, [0, 1], bins=bins)
