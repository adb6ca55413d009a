"""How near SAE directions lie to each other: cosines, set against set, and exact nearest neighbours."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from geometry.features.sets import FeatureSet, check_fits
from probes.errors import InputError
from saes.sae import SparseAutoencoder

Aggregate = Literal["mean", "max", "top_q", "centroid"]
Side = Literal["decoder", "encoder"]
BLOCK = 8192


def unit_rows(directions: Float[Tensor, "feature d_model"], *, first: int = 0) -> Float[Tensor, "feature d_model"]:
    """Rows scaled to length 1, in float32 at least. `InputError` names a zero or NaN row, counted from `first`."""
    directions = _wide(directions)
    return directions / _norms(directions, first)[:, None]


def _wide(directions: Tensor) -> Tensor:
    return directions.float() if directions.dtype in (torch.float16, torch.bfloat16) else directions


def _norms(directions: Tensor, first: int = 0) -> Tensor:
    """Row norms; `first` is the number of row 0 in the caller's tensor, for the message."""
    norms = torch.linalg.vector_norm(directions, dim=1)
    bad = ~((norms > 0) & torch.isfinite(norms))
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        what = "is zero" if float(norms[row]) == 0 else "holds NaN or infinity"
        raise InputError(f"direction {first + row} {what}: it has no angle; drop it")
    return norms


def _cosines(directions: Tensor, unit: Tensor, first: int = 0) -> Tensor:
    """`[direction, unit]` cosines; the products are divided by the norms, so the directions are not copied scaled."""
    directions = _wide(directions).to(unit)
    return (directions @ unit.T).div_(_norms(directions, first)[:, None])


def pairwise_cosine(a: Float[Tensor, "a d_model"], b: Float[Tensor, "b d_model"]) -> Float[Tensor, "a b"]:
    """Cosine of every row of `a` with every row of `b`, in [-1, 1]. `InputError` on a zero or NaN row."""
    return (unit_rows(a) @ unit_rows(b).T).clamp(-1, 1)


def similarity_to(
    directions: Float[Tensor, "feature d_model"],
    targets: Float[Tensor, "target d_model"],
    *,
    aggregate: Aggregate = "mean",
    q: float = 0.1,
    block: int = BLOCK,
) -> Float[Tensor, " feature"]:
    """Each direction's similarity to a set of targets: its cosines to them, aggregated; `block` directions at a time.

    `mean` and `max` over the targets; `top_q` the mean of the largest share q of the cosines; `centroid` the cosine to
    the mean of the unit targets.
    """
    return similarities(directions, targets, aggregates=(aggregate,), q=q, block=block).squeeze(1)


def similarities(
    directions: Float[Tensor, "feature d_model"],
    targets: Float[Tensor, "target d_model"],
    *,
    aggregates: Sequence[Aggregate],
    q: float = 0.1,
    block: int = BLOCK,
) -> Float[Tensor, "feature aggregate"]:
    """`similarity_to` by several aggregates at once, from one pass of matrix products over the directions."""
    unit = unit_rows(targets)
    centre = unit_rows(centroid(unit)[None]) if "centroid" in aggregates else unit[:0]
    both = torch.cat([unit, centre])
    parts = []
    for i, part in enumerate(directions.split(block)):
        cosines = _cosines(part, both, i * block)
        columns = [
            _aggregate(cosines[:, : len(unit)], name, q) if name != "centroid" else cosines[:, -1]
            for name in aggregates
        ]
        parts.append(torch.stack(columns, dim=1))
    return torch.cat(parts).clamp(-1, 1)


def centroid(unit: Float[Tensor, "feature d_model"]) -> Float[Tensor, " d_model"]:
    """Mean of unit directions. `InputError` where they cancel out."""
    mean = unit.double().mean(dim=0)
    if float(torch.linalg.vector_norm(mean)) < 1e-9:
        raise InputError("the directions of this set cancel out: it has no centroid; use aggregate='mean'")
    return mean.to(unit)


def _aggregate(cosines: Tensor, aggregate: str, q: float) -> Tensor:
    if aggregate == "mean":
        return cosines.mean(dim=1)
    if aggregate == "max":
        return cosines.amax(dim=1)
    if aggregate == "top_q":
        if not 0 < q <= 1:
            raise InputError(f"q={q} is no share; use 0 < q <= 1")
        return cosines.topk(math.ceil(q * cosines.shape[1]), dim=1).values.mean(dim=1)
    raise InputError(f"unknown aggregate {aggregate!r}; use mean, max, top_q or centroid")


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
) -> SetDistance:
    """How near the latents of `a` lie to those of `b`.

    Each latent of `a` is scored by its cosines to all of `b` (`similarity_to`); the set's similarity is the mean of the
    scores, or for `centroid` the cosine of the two mean unit directions. `mean` and `centroid` are symmetric, `max` and
    `top_q` look from `a` to `b`. A latent in both sets counts with its cosine of 1 to itself: use `a.without(b)` to
    leave it out. Cosine between decoder vectors is the measure of arXiv 2605.00842; the aggregates are our own.
    """
    for features, role in ((a, "first"), (b, "second")):
        check_fits(features, sae, role)
    directions = side_directions(sae, side)
    mine, theirs = directions[a.index], directions[b.index]
    scores = similarity_to(mine, theirs, aggregate=aggregate, q=q).double().cpu()
    if aggregate == "centroid":
        centres = [unit_rows(centroid(unit_rows(x))[None]) for x in (mine, theirs)]
        value = float((centres[0].double() @ centres[1].double().T).clamp(-1, 1))
    else:
        value = float(scores.mean())
    return SetDistance(value, scores, a.latents, aggregate, side)


def distance_table(
    sae: SparseAutoencoder, sets: Mapping[str, FeatureSet], harmful: FeatureSet, *, aggregate: Aggregate = "mean"
) -> pd.DataFrame:
    """One row per latent of each named set: columns `set`, `latent`, `similarity` (to the harmful set)."""
    parts = []
    for name, features in sets.items():
        near = set_distance(sae, features, harmful, aggregate=aggregate)
        columns = {"set": name, "latent": list(near.latents), "similarity": near.per_latent.numpy()}
        parts.append(pd.DataFrame(columns))
    if not parts:
        raise InputError("no feature sets to measure; name at least one")
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class Neighbours:
    """The k nearest directions of each query, nearest first: their row numbers and cosines."""

    index: Int[Tensor, "query k"]
    similarity: Float[Tensor, "query k"]


def nearest(
    directions: Float[Tensor, "feature d_model"],
    queries: Float[Tensor, "query d_model"],
    *,
    k: int,
    block: int = BLOCK,
) -> Neighbours:
    """The k directions of largest cosine to each query, exactly, by blocked matrix products and running top-k.

    Memory beyond the inputs is about block * block numbers, whatever the number of directions. A query that is itself
    among the directions finds itself; which of several equal directions comes first is not defined. `InputError` on a
    zero or NaN direction and on k outside 1..feature.
    """
    if not 1 <= k <= len(directions):
        raise InputError(f"k={k} neighbours asked of {len(directions)} directions; use 1 to {len(directions)}")
    parts = [_nearest_block(directions, unit_rows(part), k=k, block=block) for part in queries.split(block)]
    return Neighbours(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]).clamp(-1, 1))


def _nearest_block(directions: Tensor, queries: Tensor, *, k: int, block: int) -> tuple[Tensor, Tensor]:
    best = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(directions), block):
        cosines = queries @ unit_rows(directions[start : start + block].to(queries), first=start).T
        top = cosines.topk(min(k, cosines.shape[1]), dim=1)
        best = torch.cat([best, top.values], dim=1)
        index = torch.cat([index, top.indices + start], dim=1)
        kept = best.topk(min(k, best.shape[1]), dim=1)
        best, index = kept.values, index.gather(1, kept.indices)
    return index, best
