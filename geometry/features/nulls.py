"""Are the features of inducing data nearer to harmful ones than those of benign data? Effect, interval and null."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from plotly.graph_objects import Figure
from torch import Tensor

from geometry.features.causal import CausalProduct, Side
from geometry.features.distances import Aggregate, distance_table, scored, side_directions
from geometry.features.draws import FrequencyMatched, Null, Strata, null_draws, resamples
from geometry.features.sets import FeatureSet, check_fits
from probes.errors import InputError
from saes.sae import SparseAutoencoder

AGGREGATES: tuple[Aggregate, ...] = ("mean", "max", "top_q")
ROUNDING = 1e-7  # of a cosine in float32: a draw this near to the effect has reached it


@dataclass(frozen=True)
class GeometryTable:
    """What `compare_sets` found. The headline is the row of the mean cosine without shared latents.

    `table`: one row per `with_shared` x `aggregate` with `inducing`, `benign` (similarity to the harmful set), `effect`
    (inducing - benign; positive: inducing is nearer), its 95 % interval `low`, `high`, `p`, `null`, `null_mean`, set
    sizes. `nulls`: the headline's effects under the null. `distances`: similarity of each latent to the harmful set.
    """

    table: pd.DataFrame
    nulls: pd.DataFrame
    distances: pd.DataFrame
    null: str

    def row(self, *, with_shared: bool = False, aggregate: str = "mean") -> dict[str, Any]:
        """One row of the table as a dictionary of plain Python values."""
        found = self.table[(self.table["with_shared"] == with_shared) & (self.table["aggregate"] == aggregate)]
        if found.empty:
            known = ", ".join(self.table["aggregate"].unique())
            raise InputError(f"no row with_shared={with_shared}, aggregate={aggregate!r}; use {known}")
        return found.iloc[0].astype(object).to_dict()

    @property
    def effect(self) -> float:
        """Similarity of inducing to harmful less that of benign to harmful."""
        return float(self.row()["effect"])

    @property
    def ci(self) -> tuple[float, float]:
        """95 % bootstrap interval of the effect over features."""
        return float(self.row()["low"]), float(self.row()["high"])

    @property
    def p(self) -> float:
        """One-sided p-value of the effect under the null."""
        return float(self.row()["p"])

    def summary(self) -> dict[str, Any]:
        """The headline as a JSON-ready dictionary, the same with shared latents under `with_shared`."""
        return {**self._brief(with_shared=False), "null": self.null, "with_shared": self._brief(with_shared=True)}

    def _brief(self, *, with_shared: bool) -> dict[str, Any]:
        row = self.row(with_shared=with_shared)
        figures = {"inducing_to_harmful": row["inducing"], "benign_to_harmful": row["benign"], "effect": row["effect"]}
        sizes = {name: int(row[name]) for name in ("n_inducing", "n_benign", "n_harmful")}
        return {**figures, "ci": [row["low"], row["high"]], "p": row["p"], **sizes}

    def figure(self) -> Figure:
        """Similarity of each latent to the harmful set, and the effect against its null."""
        from geometry.features.figures import geometry_figure

        return geometry_figure(self.distances, self.nulls, self.summary())

    def _repr_html_(self) -> str:
        low, high = self.ci
        head = f"inducing - benign = <b>{self.effect:.3f}</b> [{low:.3f}, {high:.3f}], p = {self.p:.4f} ({self.null})"
        return f"<div>{head}{self.table.to_html(index=False, float_format=lambda x: f'{x:.4f}')}</div>"


def compare_sets(
    sae: SparseAutoencoder,
    inducing: FeatureSet,
    benign: FeatureSet,
    harmful: FeatureSet,
    *,
    generator: torch.Generator,
    n_permutations: int = 10_000,
    null: Null = "label_permutation",
    aggregates: Sequence[Aggregate] = AGGREGATES,
    side: Side = "decoder",
    product: CausalProduct | None = None,
) -> GeometryTable:
    """Compare how near two feature sets lie to a harmful one: effect = sim(inducing, harmful) - sim(benign, harmful).

    sim is the mean over a set's latents of their cosines to the harmful latents, aggregated by mean (the headline), max
    and top_q (largest tenth), of the decoder rows or of the other `side`, by the Euclidean inner product or by another
    (`causal_product`). Each comparison is made twice: without the latents that both sets hold and without harmful
    latents in either (the headline), and with them. The claim is that of arXiv 2605.00842; the test is our own, and
    takes the harmful set as given.

    Nulls: `label_permutation` shuffles which latents (of those in one set only) count as inducing; `random_features`
    puts random latents of the dictionary in place of all, those that never fire included;
    `FrequencyMatched(frequency)` puts a latent of like firing rate in place of each, because frequent latents have
    another geometry. p = (1 + number of draws that reach the effect) / (1 + n), one-sided: small where inducing is
    nearer. Intervals: percentile bootstrap over latents, 2,000 resamples, shared ones resampled together.
    `InputError` if a set is empty, belongs to another SAE, or keeps fewer than 2 latents without the shared ones.
    """
    for features, role in ((inducing, "inducing"), (benign, "benign"), (harmful, "harmful")):
        check_fits(features, sae, role)
    if n_permutations < 1:
        raise InputError(f"n_permutations={n_permutations}; use at least 1")
    if "mean" not in aggregates or "centroid" in aggregates:
        raise InputError(f"aggregates {tuple(aggregates)}: use mean, the headline, and any of max, top_q and quantile")
    strata = {shared: _split(inducing, benign, harmful, shared) for shared in (False, True)}
    latents = torch.cat([one.latents for one in strata.values()]).unique()
    scored_latents = latents if null == "label_permutation" else None
    scores, alive = set_scores(sae, harmful, scored_latents, aggregates=aggregates, side=side, product=product)
    check_alive(alive, latents, side)
    draws = {
        shared: null_draws(null, one, _eligible(alive, harmful, shared), n_permutations, generator)
        for shared, one in strata.items()
    }
    rows, nulls = [], []
    for with_shared, one in strata.items():
        table, effects = _compare(scores, one, draws[with_shared], generator, aggregates)
        rows.append(table.assign(with_shared=with_shared, null=_name(null), n_harmful=len(harmful)))
        nulls.append(pd.DataFrame({"null": _name(null), "effect": effects}))
    sets = {"inducing": _kept(inducing, benign, harmful), "benign": _kept(benign, inducing, harmful)}
    near = distance_table(sae, sets, harmful, side=side, product=product)
    return GeometryTable(pd.concat(rows, ignore_index=True), nulls[0], near, _name(null))


def _name(null: Null) -> str:
    return "frequency_matched" if isinstance(null, FrequencyMatched) else null


def _kept(mine: FeatureSet, other: FeatureSet, harmful: FeatureSet) -> FeatureSet:
    return mine.without(other).without(harmful)


def _split(inducing: FeatureSet, benign: FeatureSet, harmful: FeatureSet, with_shared: bool) -> Strata:
    both = torch.tensor(inducing.overlap(benign), dtype=torch.long)
    alone, other = inducing.without(benign), benign.without(inducing)
    if not with_shared:
        alone, other, both = alone.without(harmful), other.without(harmful), both[:0]
    for features, role in ((alone, "inducing"), (other, "benign")):
        left = len(features) + len(both)
        if left < 2:
            less = "" if with_shared else " without shared and harmful ones"
            raise InputError(f"the {role} set keeps {left} latent(s){less}, 2 or more are needed: take a larger k")
    return Strata(alone.index.sort().values, both, other.index.sort().values)


def _eligible(alive: Tensor, harmful: FeatureSet, with_shared: bool) -> Tensor:
    """Which latents a random draw may take: the harmful ones only where shared ones stay."""
    eligible = alive.clone()
    if not with_shared:
        eligible[harmful.index] = False
    return eligible


def set_scores(
    sae: SparseAutoencoder,
    harmful: FeatureSet,
    latents: Tensor | None,
    *,
    aggregates: Sequence[Aggregate] = AGGREGATES,
    side: Side = "decoder",
    product: CausalProduct | None = None,
) -> tuple[Float[Tensor, "d_sae aggregate"], Bool[Tensor, " d_sae"]]:
    """Similarity of latents to the harmful set by each aggregate, float64, and which of them have a direction.

    Of the given latents, else of the whole dictionary; what is not asked for is NaN and counts as without direction.
    """
    directions = side_directions(sae, side)
    targets, wanted = directions[harmful.index.to(sae.device)], slice(None) if latents is None else latents
    mine = directions if latents is None else directions[latents.to(sae.device)]
    found, norms = scored(mine, targets, aggregates=aggregates, side=side, product=product)
    scores = torch.full((sae.d_sae, len(aggregates)), torch.nan, dtype=torch.float64)
    alive = torch.zeros(sae.d_sae, dtype=torch.bool)
    scores[wanted], alive[wanted] = found.double().cpu(), ((norms > 0) & torch.isfinite(norms)).cpu()
    return scores, alive


def check_alive(alive: Tensor, latents: Tensor, side: str) -> None:
    """`InputError` names a latent of a set that has no direction."""
    dead = latents[~alive[latents]]
    if len(dead):
        raise InputError(f"the {side} direction of latent {int(dead[0])} is zero or NaN: it has no angle; drop it")


def _means(scores: Tensor, draws: Int[Tensor, "draw latent"], strata: Strata) -> Float[Tensor, "draw side aggregate"]:
    """Both sets' similarity in each draw: gathered one aggregate at a time, then summed by one matrix product."""
    columns, weights = scores.T.contiguous(), strata.weights
    gathered = (column[draws.flatten()].view(draws.shape) for column in columns)
    return torch.stack([values @ weights.T for values in gathered], dim=2)


def _compare(
    scores: Tensor, strata: Strata, draws: Tensor, generator: torch.Generator, aggregates: Sequence[str]
) -> tuple[pd.DataFrame, Any]:
    """The table's rows for one set of strata, and the null effects of the headline."""
    observed = _means(scores, strata.latents[None], strata)[0]
    effect = observed[0] - observed[1]
    means = _means(scores, draws, strata)
    under_null = means[:, 0] - means[:, 1]
    resampled = _means(scores, resamples(strata, generator), strata)
    low, high = (resampled[:, 0] - resampled[:, 1]).quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    reached = (under_null >= effect - ROUNDING).sum(dim=0)
    columns = {
        "inducing": observed[0],
        "benign": observed[1],
        "effect": effect,
        "low": low,
        "high": high,
        "p": (1 + reached.double()) / (1 + len(draws)),
        "null_mean": under_null.mean(dim=0),
    }
    alone, both, other = strata.sizes
    sizes = {"n_inducing": alone + both, "n_benign": both + other, "n_permutations": len(draws)}
    body = {name: values.tolist() for name, values in columns.items()}
    return pd.DataFrame({"aggregate": aggregates, **body, **sizes}), under_null[:, aggregates.index("mean")].numpy()
