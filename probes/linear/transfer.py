"""Whether a probe of one domain reads another: every domain's probe tested on every domain."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from probes.activations import Activations
from probes.errors import InputError
from probes.linear.areas import auroc, codes, upper_class
from probes.linear.estimators import LinearProbe, LogisticProbe
from probes.linear.folds import fold_of, fresh, grouped_folds, held_out
from probes.linear.sweep import grouped, samples
from probes.outcomes import Rate

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class TransferTable:
    """AUROC of the probe of one domain (`train`) on the samples of another (`test`), with its 95 % interval.

    `table` has one row per pair: `train`, `test`, `auroc`, `low`, `high`, `n` (samples tested). Where both are the
    same, the figure is that of unseen groups within the domain (cross-validation).
    """

    table: pd.DataFrame
    layer: int
    estimator: str

    def figure(self) -> "go.Figure":
        """Heat map: rows are what was trained on, columns what was tested on."""
        from probes.figures import probe_transfer_figure

        return probe_transfer_figure(self)

    def _repr_html_(self) -> str:
        grid = self.table.pivot_table(index="train", columns="test", values="auroc", sort=False)
        return grid.to_html(escape=True, float_format="{:.3f}".format)


def transfer_matrix(
    activations: Activations,
    labels: Any,
    domains: Any,
    *,
    layer: int,
    groups: Any = None,
    estimator: LinearProbe | None = None,
    seed: int = 0,
) -> TransferTable:
    """Fit `estimator` (a LogisticProbe by default) on each domain at one block, and test it on every domain.

    `labels`, `domains` and `groups` (a conversation by default) have the shape (n_samples,); intervals are clustered by
    group. Raises InputError where a conversation lies in two groups, a group in two domains, or a domain lacks a class
    or two groups of it.
    """
    estimator = estimator or LogisticProbe()
    upper = upper_class(labels, len(activations))
    X, clusters = samples(activations, layer), grouped(groups, activations.conversation_index.cpu().numpy())
    place = codes(domains, len(activations), "domains")
    names = [str(name) for name in np.unique(np.asarray(domains))]
    _check(upper, clusters, place, names)
    rows = []
    for here, train in enumerate(names):
        inside = place == here
        probe = fresh(estimator).fit(X[inside], upper[inside])
        for there, test in enumerate(names):
            if here == there:
                rate = _within(estimator, X[inside], upper[inside], clusters[inside], seed)
            else:
                away = place == there
                rate = auroc(probe.decision_function(X[away]), upper[away], groups=clusters[away], seed=seed)
            rows.append((train, test, rate.value, rate.low, rate.high, rate.n))
    columns = ["train", "test", "auroc", "low", "high", "n"]
    return TransferTable(pd.DataFrame(rows, columns=columns), layer, type(estimator).__name__)


def _within(estimator: LinearProbe, X: np.ndarray, upper: np.ndarray, clusters: np.ndarray, seed: int) -> Rate:
    folds = grouped_folds(upper, clusters, seed=seed)
    scores = held_out(estimator, X, upper, folds)
    return auroc(scores, upper, groups=clusters, folds=fold_of(folds, len(X)), seed=seed)


def _check(upper: np.ndarray, clusters: np.ndarray, place: np.ndarray, names: list[str]) -> None:
    for domain, name in enumerate(names):
        inside = place == domain
        if len(np.unique(upper[inside])) < 2:
            raise InputError(f"domain {name!r} holds one class only: leave it out, or add samples of the other")
        if np.isin(clusters[~inside], clusters[inside]).any():
            raise InputError(f"domain {name!r} shares a group with another: give groups that lie within domains")
