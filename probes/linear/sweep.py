"""A probe at every block, under grouped cross-validation, with its baselines beside it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from probes.activations import Activations, Site
from probes.errors import InputError
from probes.linear.areas import auroc, auroc_value, codes, upper_class
from probes.linear.baselines import Baselines, Spread, random_scores, selectivity, shuffled
from probes.linear.estimators import LinearProbe, LogisticProbe
from probes.linear.folds import Fold, fold_of, grouped_folds, held_out

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class LayerSweep:
    """How well each block tells two classes apart, on groups that the probe has not seen.

    `table` has one row per block: `auroc` with its 95 % interval `low` to `high` (clustered by group) and `accuracy`,
    both on unseen groups; `shuffled`, `random` and `covariance` are the mean AUROC of probes of shuffled labels, of
    random directions, and of directions drawn from the activations' covariance, each with `_low` and `_high`, its
    5-95 % range; `seen_accuracy`, `control_accuracy` and their difference `selectivity` belong to the control task;
    `n` and `groups` count samples and groups. Baselines that were left out are NaN.
    """

    table: pd.DataFrame
    estimator: str
    site: Site = "resid_post"

    @property
    def best(self) -> int:
        """The block with the highest AUROC, the earliest among equals.

        Its AUROC is the best of several: quote the figure of other samples.
        """
        return int(self.table["layer"].iloc[int(np.argmax(self.table["auroc"].round(9)))])

    def figure(self) -> "go.Figure":
        """AUROC by block with intervals, baselines behind it."""
        from probes.figures import sweep_figure

        return sweep_figure(self)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, escape=True, float_format="{:.3f}".format)


def sweep_layers(
    activations: Activations,
    labels: Any,
    *,
    groups: Any = None,
    estimator: LinearProbe | None = None,
    n_folds: int = 5,
    baselines: Baselines | None = None,
    seed: int = 0,
) -> LayerSweep:
    """Fit `estimator` (a LogisticProbe by default) at every captured block and test it on groups that it has not seen.

    `labels` and `groups` have the shape (n_samples,); a label is one of two values, the upper class is the one that
    sorts last. A group (a conversation by default; a question, a domain) is never split between training and test.
    Scores are compared within a fold only. Raises InputError for shapes that do not fit, a conversation in two groups,
    or a class that lies in fewer than two groups.
    """
    estimator, chosen = estimator or LogisticProbe(), baselines or Baselines()
    upper = upper_class(labels, len(activations))
    conversations = activations.conversation_index.cpu().numpy()
    clusters = grouped(groups, conversations)
    folds = grouped_folds(upper, clusters, n_folds=n_folds, seed=seed)
    rows = []
    for layer in activations.layers:
        X = samples(activations, layer)
        scores = held_out(estimator, X, upper, folds)
        rate = auroc(scores, upper, groups=clusters, folds=fold_of(folds, len(X)), seed=seed)
        row = {"layer": layer, "auroc": rate.value, "low": rate.low, "high": rate.high}
        row["accuracy"] = float(((scores > 0) == upper).mean())
        row |= _shuffles(estimator, X, upper, (clusters, conversations), n_folds, (chosen.shuffles, seed))
        row |= _randoms(X, upper, folds, chosen.random, seed)
        task = selectivity(estimator, X, upper, clusters, conversations, draws=chosen.controls, seed=seed)
        row |= {"seen_accuracy": task.accuracy, "control_accuracy": task.control, "selectivity": task.value}
        rows.append(row | {"n": len(X), "groups": int(clusters.max()) + 1})
    return LayerSweep(pd.DataFrame(rows), type(estimator).__name__, activations.site)


def samples(activations: Activations, layer: int) -> np.ndarray:
    """The activations of one block as scikit-learn wants them: float64 [sample, d_model]."""
    return activations.at(layer).detach().cpu().double().numpy()


def grouped(groups: Any, conversations: np.ndarray) -> np.ndarray:
    """The number of each sample's group, conversations by default. Raises InputError where one lies in two groups."""
    if groups is None:
        return codes(conversations, len(conversations), "groups")
    clusters = codes(groups, len(conversations), "groups")
    pairs = np.unique(np.column_stack([conversations, clusters]), axis=0)
    twice = pairs[1:][pairs[1:, 0] == pairs[:-1, 0]]
    if len(twice):
        raise InputError(f"conversation {twice[0, 0]} lies in two groups: give one group for all of its samples")
    return clusters


def _shuffles(
    estimator: LinearProbe,
    X: np.ndarray,
    upper: np.ndarray,
    units: tuple[np.ndarray, np.ndarray],
    n_folds: int,
    drawn: tuple[int, int],
) -> dict[str, float]:
    """AUROC of probes that learned shuffled labels, against those labels."""
    (n, seed), found = drawn, []
    rng = np.random.default_rng(seed)
    for number in range(n):
        labels = shuffled(upper, units, rng)
        folds = grouped_folds(labels, units[0], n_folds=n_folds, seed=seed + number)
        found.append(_area(held_out(estimator, X, labels, folds), labels, folds))
    return _named("shuffled", found)


def _randoms(X: np.ndarray, upper: np.ndarray, folds: list[Fold], n: int, seed: int) -> dict[str, float]:
    rng, row = np.random.default_rng(seed), {}
    for name, like_data in (("random", False), ("covariance", True)):
        scores = random_scores(X, upper, folds, n, rng, like_data=like_data)
        row |= _named(name, [_area(each, upper, folds) for each in scores])
    return row


def _area(scores: np.ndarray, upper: np.ndarray, folds: list[Fold]) -> float:
    return auroc_value(scores, upper, fold_of(folds, len(scores)))


def _named(name: str, values: list[float]) -> dict[str, float]:
    spread = Spread.over(values)
    return {name: spread.mean, f"{name}_low": spread.low, f"{name}_high": spread.high}
