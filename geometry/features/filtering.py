"""Which rows of a data set lie near harmful features: scores per row, and the split that drops the nearest."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geometry.features.distances import centroid, similarity_to, unit_rows
from geometry.features.rows import check_counts, conversation_ids, row_vectors, sum_latents
from geometry.features.sets import FeatureSet, check_fits
from geometry.steering.vectors import PersonaVector
from probes.activations import Activations
from probes.errors import InputError
from probes.store import ActivationStore
from saes.sae import SparseAutoencoder

Score = Literal["max_tox", "mean_tox", "centroid"]


def score_rows(
    activations: Float[Tensor, "vector d_model"] | Activations | ActivationStore,
    sae: SparseAutoencoder,
    harmful: FeatureSet,
    *,
    score: Score = "max_tox",
) -> Float[Tensor, " sample"]:
    """How near each row lies to the harmful features: one float64 number a conversation, in [-1, 1], higher = nearer.

    With w_i the mean activation of latent i over the row's response tokens, scaled so that the w of a row sum to 1,
    d_i the unit decoder directions and T the harmful latents:
    `max_tox` sum_i w_i max_{j in T} cos(d_i, d_j); `mean_tox` the same with the mean over T;
    `centroid` cos(sum_i w_i d_i, mean_{j in T} d_j).
    The filter on SAE geometry is that of arXiv 2605.00842; its score is not known to us, so these are our own.
    `InputError` on NaN and on a row in which no latent fires.
    """
    check_fits(harmful, sae, "harmful")
    targets = sae.W_dec[harmful.index.to(sae.device)]
    if score == "centroid":
        directions = sae.directions
        total, _ = sum_latents(activations, sae, lambda latents: latents @ directions)
        _check_fires(torch.linalg.vector_norm(total, dim=1))
        centre = unit_rows(centroid(unit_rows(targets))[None]).double()
        return (unit_rows(total) @ centre.T).squeeze(1).clamp(-1, 1).cpu()
    if score not in ("max_tox", "mean_tox"):
        raise InputError(f"unknown score {score!r}; use max_tox, mean_tox or centroid")
    nearness = torch.zeros(sae.d_sae, device=sae.device, dtype=sae.dtype)
    alive = torch.linalg.vector_norm(sae.W_dec, dim=1) > 0
    near = similarity_to(sae.W_dec[alive], targets, aggregate="max" if score == "max_tox" else "mean")
    nearness[alive] = near.to(nearness)
    both = torch.stack([nearness, torch.ones_like(nearness)], dim=1)
    total, _ = sum_latents(activations, sae, lambda latents: latents @ both)
    _check_fires(total[:, 1])
    return (total[:, 0] / total[:, 1]).clamp(-1, 1).cpu()


def _check_fires(size: Tensor) -> None:
    silent = (size <= 0).nonzero()
    if len(silent):
        raise InputError(f"no latent fires in row {int(silent[0, 0])}: it has no score; drop the row")


def projection_scores(
    activations: Float[Tensor, "vector d_model"] | Activations | ActivationStore, vector: PersonaVector, *, layer: int
) -> Float[Tensor, " sample"]:
    """Mean projection of each row on the unit direction of a persona vector at block `layer`, float64.

    Over the response tokens of token activations; pooled activations are taken as they are (a projection is linear).
    Units: residual-stream length; positive = towards the persona.
    """
    rows = len(conversation_ids(activations))
    total, count = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
    for row, values in row_vectors(activations, layer, means=True):
        if values.shape[1] != vector.d_model:
            raise InputError(
                f"activations of width {values.shape[1]}, vector of width {vector.d_model}; use a vector of this model"
            )
        total.index_add_(0, row, vector.project(values.double(), layer).cpu())
        count += torch.bincount(row, minlength=rows)
    check_counts(count)
    return total / count


@dataclass(frozen=True, eq=False)
class RowSplit:
    """Row numbers that a filter keeps and drops: `kept` ascending, `dropped` worst first."""

    kept: Int[Tensor, " kept"]
    dropped: Int[Tensor, " dropped"]


def drop_nearest(scores: Float[Tensor, " sample"], *, fraction: float = 0.5) -> RowSplit:
    """Drop the share `fraction` of rows (rounded down) with the highest scores; of equal scores the earlier row goes.

    Half is what arXiv 2605.00842 drops. `drop_nearest(torch.rand(n, generator=g))` is the random baseline.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"fraction={fraction} of the rows cannot be dropped; use 0 <= fraction < 1")
    if not torch.isfinite(scores).all():
        raise InputError("row scores hold NaN or infinity; score the rows again")
    order = torch.argsort(scores, descending=True, stable=True)
    n = math.floor(fraction * len(scores))
    return RowSplit(order[n:].sort().values, order[:n])
