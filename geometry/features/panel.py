"""Many comparisons in one table: data sets against one harmful set, or one block by block, corrected together."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from plotly.graph_objects import Figure
from torch import Tensor

from geometry.features.draws import Null, Strata, null_draws
from geometry.features.nulls import ROUNDING, GeometryTable, compare_sets, set_scores
from geometry.features.sets import FeatureSet
from probes.errors import InputError
from saes.sae import SparseAutoencoder


@dataclass(frozen=True, eq=False)
class GeometryPanel:
    """Comparisons that are read together, and corrected for being several.

    `table`: one row per comparison with `name`, `inducing`, `benign`, `effect`, `low`, `high`, `p`, `null_low`,
    `null_high` (5th and 95th percentile under the null), sizes, and p corrected for the number of comparisons:
    `p_holm` (family-wise, any dependence), `q` (false discovery rate, Benjamini and Hochberg) and, where the data sets
    were drawn for together, `p_max`. `kind` says what a name is: a data set or a block. Intervals are not corrected.
    """

    table: pd.DataFrame
    kind: str
    null: str

    @property
    def multiplicity(self) -> str:
        """How many comparisons there are, what they are corrected for, and how many would be significant alone."""
        alone, kept = (sum(p < 0.05 for p in self.table[column].tolist()) for column in ("p", "p_holm"))
        return f"{len(self.table)} comparisons: {alone} have p < .05 alone, {kept} corrected by Holm"

    def figure(self) -> Figure:
        """Effect and interval of each comparison, with the band of the null."""
        from geometry.features.panel_figure import panel_figure

        return panel_figure(self.table, kind=self.kind, note=self.multiplicity)

    def _repr_html_(self) -> str:
        return f"<div>{self.multiplicity}{self.table.to_html(index=False, float_format=lambda x: f'{x:.4f}')}</div>"


def panel(tables: Mapping[str, GeometryTable] | Mapping[int, GeometryTable], *, kind: str) -> GeometryPanel:
    """Headlines of several comparisons under one correction; they need not share data, SAE or draws.

    A profile over blocks is `panel({layer: compare_sets(...), ...}, kind="block")`, with an SAE for each block.
    `InputError` on none and on several nulls.
    """
    if not tables:
        raise InputError("no comparisons for a panel: give at least one")
    nulls = {table.null for table in tables.values()}
    if len(nulls) > 1:
        raise InputError(f"comparisons under several nulls ({', '.join(sorted(nulls))}): make all under one")
    rows = []
    for name, table in tables.items():
        low, high = table.nulls["effect"].quantile([0.05, 0.95])
        kept = ("inducing", "benign", "effect", "low", "high", "p", "n_inducing", "n_benign", "n_harmful")
        row = table.row()
        rows.append({"name": name} | {key: row[key] for key in kept} | {"null_low": low, "null_high": high})
    found = pd.DataFrame(rows)
    return GeometryPanel(found.assign(**corrected(found["p"].tolist())), kind, nulls.pop())


def corrected(p: list[float]) -> dict[str, list[float]]:
    """Holm's step-down p (`p_holm`) and Benjamini and Hochberg's q (`q`) of p-values, in their order."""
    from scipy.stats import false_discovery_control

    order = sorted(range(len(p)), key=p.__getitem__)
    holm, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        holm[i] = worst
    return {"p_holm": holm, "q": false_discovery_control(p).tolist()}


def compare_many(
    sae: SparseAutoencoder,
    inducing: Mapping[str, FeatureSet],
    benign: FeatureSet,
    harmful: FeatureSet,
    *,
    generator: torch.Generator,
    n_permutations: int = 10_000,
    null: Null = "label_permutation",
) -> GeometryPanel:
    """`compare_sets` for several data sets against one benign and one harmful set, corrected for their number.

    Under random or frequency-matched features the null is drawn once for all: each latent of any set gets one stand-in
    a draw, so that sets that overlap go on overlapping, and `p_max` is the share of draws in which the largest effect
    of all, in units of its standard deviation under the null, reaches this one's (Westfall and Young's single step).
    Label permutations have no draws in common; there `p_holm` and `q` alone correct.
    """
    if not inducing:
        raise InputError("no feature sets to compare: name at least one")
    settings = {"generator": generator, "n_permutations": n_permutations, "null": null}
    tables = {
        name: compare_sets(sae, features, benign, harmful, aggregates=("mean",), **settings)
        for name, features in inducing.items()
    }
    found = panel(tables, kind="data set")
    if null == "label_permutation":
        return found
    p_max = _joint(sae, inducing, benign, harmful, **settings)
    return GeometryPanel(found.table.assign(p_max=p_max), found.kind, found.null)


def _joint(
    sae: SparseAutoencoder,
    inducing: Mapping[str, FeatureSet],
    benign: FeatureSet,
    harmful: FeatureSet,
    *,
    generator: torch.Generator,
    n_permutations: int,
    null: Null,
) -> list[float]:
    """p of each set's effect against the largest of all, from draws that all sets share."""
    pairs = [(one.without(benign).without(harmful), benign.without(one).without(harmful)) for one in inducing.values()]
    union = torch.cat([features.index for pair in pairs for features in pair]).unique()
    scores, alive = set_scores(sae, harmful, None, aggregates=("mean",))
    eligible = alive.clone()
    eligible[harmful.index] = False
    draws = null_draws(null, Strata(union, union[:0], union[:0]), eligible, n_permutations, generator)
    weights = torch.stack([_weights(union, one) - _weights(union, other) for one, other in pairs])
    values = scores[:, 0]
    effects, under_null = weights @ values[union], values[draws] @ weights.T
    centre, spread = under_null.mean(dim=0), under_null.std(dim=0).clamp(min=ROUNDING)
    largest = ((under_null - centre) / spread).amax(dim=1)
    reached = (largest[:, None] >= ((effects - centre) / spread)[None] - ROUNDING).sum(dim=0)
    return ((1 + reached.double()) / (1 + len(draws))).tolist()


def _weights(union: Int[Tensor, " latent"], features: FeatureSet) -> Float[Tensor, " latent"]:
    return torch.isin(union, features.index).double() / len(features)
