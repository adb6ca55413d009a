"""How near SAE directions lie to each other: cosines, and their aggregates from set to set."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from geometry.features.causal import CausalProduct, Side
from geometry.features.sets import FeatureSet, check_fits
from probes.errors import InputError
from saes.sae import SparseAutoencoder

Aggregate = Literal["mean", "max", "top_q", "quantile", "centroid"]
BLOCK = 512


def unit_rows(directions: Float[Tensor, "feature d_model"], *, first: int = 0) -> Float[Tensor, "feature d_model"]:
    """Rows scaled to length 1, in float32 at least. `InputError` names a zero or NaN row, counted from `first`."""
    directions = _wide(directions)
    norms = torch.linalg.vector_norm(directions, dim=1)
    check_norms(norms, first)
    return directions / norms[:, None]


def _wide(directions: Tensor) -> Tensor:
    return directions.float() if directions.dtype in (torch.float16, torch.bfloat16) else directions


def check_widths(directions: Tensor, others: Tensor) -> None:
    """`InputError` unless both tensors hold directions of one space, and some."""
    if directions.shape[1] != others.shape[1]:
        widths = f"{directions.shape[1]} and {others.shape[1]}"
        raise InputError(f"directions of widths {widths}: an angle needs both in one space; use one model's")
    if not len(others):
        raise InputError("no directions to compare with: the set is empty; give at least one")


def check_norms(norms: Float[Tensor, " feature"], first: int = 0) -> None:
    """`InputError` on a direction without an angle; `first` is the number of row 0 in the caller's tensor."""
    bad = ~((norms > 0) & torch.isfinite(norms))
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        what = "is zero" if float(norms[row]) == 0 else "holds NaN or infinity"
        raise InputError(f"direction {first + row} {what}: it has no angle; drop it")


def pairwise_cosine(a: Float[Tensor, "a d_model"], b: Float[Tensor, "b width"]) -> Float[Tensor, "a b"]:
    """Cosine of each row of `a` with each of `b`, in [-1, 1]. `InputError` on zero or NaN rows and on two widths."""
    check_widths(a, b)
    return (unit_rows(a) @ unit_rows(b).T).clamp(-1, 1)


def similarity_to(
    directions: Float[Tensor, "feature d_model"],
    targets: Float[Tensor, "target width"],
    *,
    aggregate: Aggregate = "mean",
    q: float = 0.1,
    block: int = BLOCK,
) -> Float[Tensor, " feature"]:
    """Each direction's similarity to a set of targets: its cosines to them, aggregated; `block` directions at a time.

    `mean` and `max` over the targets; `top_q` the mean of the largest share q of the cosines; `quantile` the cosine
    that a share q of them exceeds (linear in between); `centroid` the cosine to the mean of the unit targets.
    """
    return similarities(directions, targets, aggregates=(aggregate,), q=q, block=block).squeeze(1)


def similarities(
    directions: Float[Tensor, "feature d_model"],
    targets: Float[Tensor, "target width"],
    *,
    aggregates: Sequence[Aggregate],
    q: float = 0.1,
    block: int = BLOCK,
) -> Float[Tensor, "feature aggregate"]:
    """`similarity_to` by several aggregates at once, from one pass of matrix products over the directions."""
    scores, norms = scored(directions, targets, aggregates=aggregates, q=q, block=block)
    check_norms(norms)
    return scores


@torch.no_grad()
def scored(
    directions: Tensor,
    targets: Tensor,
    *,
    aggregates: Sequence[Aggregate],
    q: float = 0.1,
    block: int = BLOCK,
    product: CausalProduct | None = None,
    side: Side = "decoder",
) -> tuple[Float[Tensor, "feature aggregate"], Float[Tensor, " feature"]]:
    """What `similarities` returns, and the directions' norms: NaN scores, no error, where a direction is zero or NaN.

    The mean cosine is one dot product, with the mean of the unit targets: `mean` and `centroid` alone need no matrix of
    all cosines. A block of directions is small enough to stay in the cache while its norms are taken.
    """
    _check_aggregates(aggregates, q)
    check_widths(directions, targets)
    mapped = (lambda rows: rows) if product is None else (lambda rows: product.mapped(rows, side))
    unit = unit_rows(mapped(_wide(targets)))
    mean = unit.double().mean(dim=0)
    lines = torch.cat([mean.to(unit)[None], unit]) if set(aggregates) - {"mean", "centroid"} else mean.to(unit)[None]
    length = _centroid_length(mean) if "centroid" in aggregates else 1.0
    scores, norms = [], []
    for part in directions.split(block):
        part = mapped(_wide(part).to(unit))
        norms.append(torch.linalg.vector_norm(part, dim=1))
        cosines = (lines @ part.T).div_(norms[-1])
        scores.append(_aggregated(cosines[0], cosines[1:], aggregates, q, length))
    return torch.cat(scores), torch.cat(norms)


def _aggregated(mean: Tensor, cosines: Tensor, aggregates: Sequence[str], q: float, length: float) -> Tensor:
    """`[block, aggregate]` of the mean cosine `[block]` and, where they are needed, all cosines `[target, block]`."""
    found = {"mean": mean, "centroid": mean / length}
    if set(aggregates) & {"top_q", "quantile"}:
        ascending = _ascending(cosines)
        n, place = ascending.shape[1], (1 - q) * (ascending.shape[1] - 1)
        low, high = ascending[:, math.floor(place)], ascending[:, math.ceil(place)]
        found["quantile"] = low + (high - low) * (place - math.floor(place))
        found["top_q"], found["max"] = ascending[:, n - math.ceil(q * n) :].mean(dim=1), ascending[:, -1]
    elif "max" in aggregates:
        found["max"] = cosines.amax(dim=0)
    return torch.stack([found[name] for name in aggregates], dim=1).clamp_(-1, 1)


def _ascending(cosines: Float[Tensor, "target block"]) -> Float[Tensor, "block target"]:
    """Each direction's cosines in order; numpy sorts short rows several times faster than torch does on a CPU."""
    rows = cosines.T.contiguous()
    return torch.from_numpy(np.sort(rows.numpy(), axis=1)) if rows.device.type == "cpu" else rows.sort(dim=1).values


def _check_aggregates(aggregates: Sequence[str], q: float) -> None:
    unknown = [name for name in aggregates if name not in get_args(Aggregate)]
    if unknown:
        raise InputError(f"unknown aggregate {unknown[0]!r}; use one of {', '.join(get_args(Aggregate))}")
    if not 0 < q <= 1:
        raise InputError(f"q={q} is no share; use 0 < q <= 1")


def centroid(unit: Float[Tensor, "feature d_model"]) -> Float[Tensor, " d_model"]:
    """Mean of unit directions. `InputError` where they cancel out."""
    mean = unit.double().mean(dim=0)
    _centroid_length(mean)
    return mean.to(unit)


def _centroid_length(mean: Tensor) -> float:
    length = float(torch.linalg.vector_norm(mean))
    if length < 1e-9:
        raise InputError("the directions of this set cancel out: it has no centroid; use aggregate='mean'")
    return length


@dataclass(frozen=True)
class SetDistance:
    """Similarity of feature set A to feature set B (cosine, in [-1, 1]); `per_latent` follows A's order."""

    similarity: float
    per_latent: Float[Tensor, " feature"]
    latents: tuple[int, ...]
    aggregate: str
    side: str

    @property
    def distance(self) -> float:
        """1 - similarity: 0 for equal directions, 1 for orthogonal, 2 for opposite."""
        return 1 - self.similarity

    @property
    def angle(self) -> float:
        """The angle in degrees whose cosine is the similarity: 0 for equal directions, 90 for orthogonal."""
        return math.degrees(math.acos(self.similarity))


def side_directions(sae: SparseAutoencoder, side: Side) -> Float[Tensor, "d_sae d_model"]:
    """Decoder rows (what a latent writes) or encoder columns (what it reads), one row a latent."""
    if side not in ("decoder", "encoder"):
        raise InputError(f"unknown side {side!r}; use decoder or encoder")
    return sae.W_dec if side == "decoder" else sae.W_enc.T


def set_distance(
    sae: SparseAutoencoder,
    a: FeatureSet,
    b: FeatureSet,
    *,
    aggregate: Aggregate = "mean",
    side: Side = "decoder",
    q: float = 0.1,
    product: CausalProduct | None = None,
) -> SetDistance:
    """How near the latents of `a` lie to those of `b`.

    Each latent of `a` is scored by its cosines to all of `b` (`similarity_to`); the set's similarity is the mean of the
    scores, or for `centroid` the cosine of the two mean unit directions. `mean` and `centroid` are symmetric, `max`,
    `top_q` and `quantile` look from `a` to `b`. A latent in both sets counts with its cosine of 1 to itself: use
    `a.without(b)` to leave it out. Cosine between decoder vectors is the measure of arXiv 2605.00842; the aggregates
    are our own. `product` takes angles by the unembedding's inner product (`causal_product`) in place of the Euclidean.
    """
    for features, role in ((a, "first"), (b, "second")):
        check_fits(features, sae, role)
    directions = side_directions(sae, side)
    mine, theirs = (_mapped(directions[features.index], side, product) for features in (a, b))
    scores = similarity_to(mine, theirs, aggregate=aggregate, q=q).double().cpu()
    if aggregate == "centroid":
        centres = [unit_rows(centroid(unit_rows(x))[None]) for x in (mine, theirs)]
        value = float((centres[0].double() @ centres[1].double().T).clamp(-1, 1))
    else:
        value = float(scores.mean())
    return SetDistance(value, scores, a.latents, aggregate, side)


def _mapped(directions: Tensor, side: Side, product: CausalProduct | None) -> Tensor:
    return directions if product is None else product.mapped(directions, side)


def distance_table(
    sae: SparseAutoencoder,
    sets: Mapping[str, FeatureSet],
    harmful: FeatureSet,
    *,
    aggregate: Aggregate = "mean",
    side: Side = "decoder",
    product: CausalProduct | None = None,
) -> pd.DataFrame:
    """One row per latent of each named set: columns `set`, `latent`, `similarity` to the harmful set."""
    parts = []
    for name, features in sets.items():
        near = set_distance(sae, features, harmful, aggregate=aggregate, side=side, product=product)
        columns = {"set": name, "latent": list(near.latents), "similarity": near.per_latent.numpy()}
        parts.append(pd.DataFrame(columns))
    if not parts:
        raise InputError("no feature sets to measure; name at least one")
    return pd.concat(parts, ignore_index=True)
