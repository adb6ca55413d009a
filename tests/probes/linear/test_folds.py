"""Folds keep groups whole, spread types, and let no probe see what it is tested on."""

import numpy as np
import pytest

from probes import InputError, MeanDifferenceProbe, grouped_folds
from probes.linear.folds import fold_of, held_out, spread_folds


@pytest.mark.parametrize("mixed", [True, False])
def test_no_group_is_split(mixed):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 17, 300)
    labels = rng.integers(0, 2, 300) if mixed else groups % 2
    folds = grouped_folds(labels, groups, n_folds=4, seed=1)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(300)) and len(folds) == 4
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test]) and set(labels[train]) == {0, 1}
        assert len(train) + len(test) == 300
    again = grouped_folds(labels, [f"g{g}" for g in groups], n_folds=4, seed=1)
    assert [len(test) for _, test in again] == pytest.approx([len(test) for _, test in folds], abs=40)


def test_as_many_folds_as_either_class_has_groups():
    assert len(grouped_folds([0, 1, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5], n_folds=5)) == 2
    with pytest.raises(InputError, match="lie in 1 and 3 groups"):
        grouped_folds([0, 1, 0, 1, 0, 0], [0, 1, 2, 1, 0, 4])
    with pytest.raises(InputError, match="n_folds 1"):
        grouped_folds([0, 1, 0, 1], [0, 1, 2, 3], n_folds=1)


def test_types_lie_in_training_and_test_and_units_stay_whole():
    units = np.repeat(np.arange(40), 3)
    types = units % 8
    folds = spread_folds(types, units, n_folds=4)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(120))
    for train, test in folds:
        assert not set(units[train]) & set(units[test]) and set(types[test]) <= set(types[train])


def test_a_sample_is_scored_by_a_probe_that_has_not_seen_it():
    """Each sample alone on its axis: a probe that saw it would know it, one that did not must say the same of all."""
    labels = np.arange(12) % 2 == 1
    folds = grouped_folds(labels, np.arange(12) // 2, n_folds=3)
    scores = held_out(MeanDifferenceProbe(), np.eye(12), labels, folds)
    place = fold_of(folds, 12)
    for fold in range(3):
        assert np.ptp(scores[place == fold]) < 1e-9
    seen = MeanDifferenceProbe().fit(np.eye(12), labels).decision_function(np.eye(12))
    assert ((seen > 0) == labels).all()
