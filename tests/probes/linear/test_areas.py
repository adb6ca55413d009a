"""AUROC and its interval: pair by pair, resample by resample, and covering what it says."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from probes import InputError, auroc
from probes.linear.areas import mean_rate


def pairs(scores, labels, folds, weights):
    """Every pair of the same fold, one by one."""
    won = total = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero((labels == 0) & (folds == folds[i])):
            total += weights[i] * weights[j]
            won += weights[i] * weights[j] * (float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j]))
    return won / total


@pytest.fixture
def scored():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 60)
    scores = np.round(rng.normal(size=60) + labels, 1)  # with ties
    groups = rng.integers(0, 12, 60)
    return scores, labels, groups


def test_figure_is_that_of_scikit_learn_and_of_all_pairs(scored):
    scores, labels, groups = scored
    assert auroc(scores, labels).value == pytest.approx(roc_auc_score(labels, scores))
    folds = groups % 3
    expected = pairs(scores, labels, folds, np.ones(60))
    assert auroc(scores, labels, folds=folds).value == pytest.approx(expected)
    assert auroc(scores + 10 * folds, labels, folds=folds).value == pytest.approx(expected)
    assert auroc(scores + 10 * folds, labels).value != pytest.approx(expected, abs=0.02)


def test_interval_resamples_whole_groups(scored):
    scores, labels, groups = scored
    rng, draws = np.random.default_rng(0), []
    for _ in range(250):
        taken = rng.integers(0, 12, 12)
        draws.append(pairs(scores, labels, np.zeros(60), np.bincount(taken, minlength=12)[groups]))
    rate = auroc(scores, labels, groups=groups, seed=3)
    assert [rate.low, rate.high] == pytest.approx(np.quantile(draws, (0.025, 0.975)), abs=0.03)
    names = np.array([f"group {g}" for g in groups])
    assert auroc(scores, labels, groups=names, seed=3).low == pytest.approx(rate.low, abs=0.03)


def test_copies_of_a_sample_bring_no_certainty(scored):
    scores, labels, groups = scored
    once = auroc(scores, labels, groups=groups)
    often = auroc(np.tile(scores, 20), np.tile(labels, 20), groups=np.tile(groups, 20))
    naive = auroc(np.tile(scores, 20), np.tile(labels, 20))
    assert often.value == pytest.approx(once.value) and often.n == 20 * once.n
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=1e-6)
    assert naive.high - naive.low < 0.4 * (once.high - once.low)


def test_intervals_cover():
    """Of 200 samples with a known AUROC, 95 % hold it, give or take: a normal shift of 1 has Phi(1 / sqrt 2)."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        group = rng.normal(size=40)  # a group's samples share half of their variance: clusters matter
        scores = (group[:, None] + rng.normal(size=(40, 5))).ravel() / np.sqrt(2)
        labels = np.tile([0, 1, 0, 1, 0], 40)
        rate = auroc(scores + labels, labels, groups=np.repeat(np.arange(40), 5))
        hits += rate.low <= 0.76025 <= rate.high
    assert 0.9 < hits / 200 <= 0.99


def test_where_every_resample_agrees():
    rate = auroc([0, 1, 2, 3, 4, 5], list("aaabbb"), groups=[0, 1, 2, 0, 1, 2])
    assert (rate.value, rate.high) == (1, 1) and rate.low == pytest.approx(0.025 ** (1 / 3))
    alone = auroc([0.0, 1.0], [0, 1], folds=[0, 1])
    assert np.isnan([alone.value, alone.low, alone.high]).all()


def test_mean_rate(scored):
    _, labels, groups = scored
    rate = mean_rate(labels, groups=groups)
    assert rate.value == labels.mean() and rate.low < rate.value < rate.high


@pytest.mark.parametrize(
    ("scores", "labels", "more", "said"),
    [
        ([1.0, np.nan], [0, 1], {}, "not finite"),
        ([1.0, 2.0], [1, 1], {}, "1 classes"),
        ([1.0, 2.0, 3.0], [0, 1, 2], {}, "3 classes"),
        ([1.0, 2.0], [0, 1, 0], {}, r"labels of shape \(3,\)"),
        ([1.0, 2.0], [0, 1], {"groups": [1]}, r"groups of shape \(1,\)"),
    ],
)
def test_refusals(scores, labels, more, said):
    with pytest.raises(InputError, match=said):
        auroc(scores, labels, **more)
