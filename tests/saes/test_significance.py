"""Tests over conversations: against SciPy, and honest where nothing changed."""

import numpy as np
import pytest
import torch
from scipy import stats

from saes.pooling import Moments
from saes.significance import half_width, paired_change, q_values, unpaired_change


@pytest.fixture
def samples() -> tuple[np.ndarray, np.ndarray]:
    """Two samples of unlike size and spread, of five features, one of them alike."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(30, 5)), rng.normal(size=(41, 5)) * 2 + [0, 0.5, 1, 2, 0]


def moments(rows: np.ndarray) -> Moments:
    found = Moments()
    found.add(torch.tensor(rows), torch.ones(len(rows)))
    return found


def test_pairs_agree_with_scipy(samples):
    gaps = samples[1][:30] - samples[0]
    found, expected = paired_change(moments(gaps)), stats.ttest_rel(samples[1][:30], samples[0])
    np.testing.assert_allclose(found.p, expected.pvalue)
    np.testing.assert_allclose(found.effect, gaps.mean(0) / gaps.std(0, ddof=1))
    interval = expected.confidence_interval()
    np.testing.assert_allclose(half_width(moments(gaps)), (interval.high - interval.low) / 2)


def test_samples_agree_with_scipy(samples):
    before, after = samples
    found, expected = unpaired_change(*map(moments, samples)), stats.ttest_ind(after, before, equal_var=False)
    np.testing.assert_allclose(found.p, expected.pvalue)
    spread = np.sqrt((29 * before.var(0, ddof=1) + 40 * after.var(0, ddof=1)) / 69)
    np.testing.assert_allclose(found.effect, (after.mean(0) - before.mean(0)) / spread * (1 - 3 / (4 * 69 - 1)))


def test_q_values_agree_with_scipy_and_skip_what_was_not_tested():
    p = np.random.default_rng(0).uniform(size=40) ** 3
    np.testing.assert_allclose(q_values(p), stats.false_discovery_control(p))
    holes = np.insert(p, [3, 20], np.nan)
    np.testing.assert_allclose(q_values(holes)[~np.isnan(holes)], stats.false_discovery_control(p))
    assert np.isnan(q_values(np.full(3, np.nan))).all()


def test_the_edges():
    none, constant = moments(np.zeros((9, 1))), moments(np.ones((9, 1)))
    assert paired_change(none).p == 1 and paired_change(none).effect == 0
    assert paired_change(constant).p == 0 and np.isinf(paired_change(constant).effect)
    single = moments(np.ones((1, 1)))
    assert np.isnan(paired_change(single).p) and np.isnan(half_width(single))
    assert np.isnan(unpaired_change(single, single).p)
