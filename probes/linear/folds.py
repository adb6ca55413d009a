"""Folds that never split a group, and what probes say of the samples that they have not seen."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import StratifiedGroupKFold

from probes.errors import InputError
from probes.linear.areas import codes, upper_class
from probes.linear.estimators import LinearProbe

Fold = tuple[np.ndarray, np.ndarray]


def grouped_folds(labels: Any, groups: Any, *, n_folds: int = 5, seed: int = 0) -> list[Fold]:
    """Indices (train, test) of folds that keep each group whole and the classes balanced, as far as groups allow.

    `labels` and `groups` have the shape (n_samples,). There are at most as many folds as groups hold either class.
    Raises InputError where a class lies in fewer than two groups: no probe could then be tested on it.
    """
    upper = upper_class(labels, np.asarray(labels).size)
    groups = codes(groups, len(upper), "groups")
    if n_folds < 2:
        raise InputError(f"n_folds {n_folds}: give 2 or more")
    held = [len(np.unique(groups[side])) for side in (upper, ~upper)]
    if min(held) < 2:
        raise InputError(f"the classes lie in {held[0]} and {held[1]} groups: each needs two, to train and to test")
    splitter = StratifiedGroupKFold(n_splits=min(n_folds, *held), shuffle=True, random_state=seed)
    folds = list(splitter.split(np.zeros((len(upper), 1)), upper, groups))
    for train, _ in folds:
        if upper[train].all() or not upper[train].any():
            raise InputError("a fold would train on one class only: give groups that are less unequal, or fewer folds")
    return [(train, test) for train, test in folds if len(test)]


def spread_folds(types: Any, units: Any, *, n_folds: int = 5, seed: int = 0) -> list[Fold]:
    """Folds that spread every type over train and test, and keep each unit (a conversation) whole."""
    units = np.asarray(units)
    types = codes(types, len(units), "types")
    _, first, place = np.unique(units, return_index=True, return_inverse=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(first)), types[first]))
    fold = np.empty(len(first), dtype=int)
    fold[order] = np.arange(len(first)) % n_folds
    tests = [np.flatnonzero(fold[place] == i) for i in range(n_folds)]
    return [(np.setdiff1d(np.arange(len(units)), test), test) for test in tests if 0 < len(test) < len(units)]


def held_out(estimator: LinearProbe, X: np.ndarray, upper: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:
    """Scores (n_samples,) of each sample by a fresh probe that was fitted without its fold; NaN where none could be."""
    scores = np.full(len(X), np.nan)
    for train, test in folds:
        if 0 < upper[train].sum() < len(train):
            scores[test] = fresh(estimator).fit(X[train], upper[train]).decision_function(X[test])
    return scores


def fresh(estimator: LinearProbe) -> LinearProbe:
    """A probe of the same settings that is not fitted."""
    return cast(LinearProbe, clone(estimator))


def fold_of(folds: Sequence[Fold], n: int) -> np.ndarray:
    """The number of the fold that tests each of `n` samples."""
    place = np.zeros(n, dtype=int)
    for number, (_, test) in enumerate(folds):
        place[test] = number
    return place
