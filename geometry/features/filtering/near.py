"""Scores from activations: how near rows lie to harmful features, and how far along a persona vector."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from geometry.features.distances import centroid, similarity_to, unit_rows
from geometry.features.rows import check_counts, conversation_ids, row_vectors, sum_latents
from geometry.features.sets import FeatureSet, check_fits
from geometry.steering.vectors import PersonaVector
from probes.activations import Activations
from probes.errors import InputError
from probes.store import ActivationStore
from saes.sae import SparseAutoencoder

Form = Literal["max_tox", "mean_tox", "centroid"]
FORMS: tuple[Form, ...] = ("max_tox", "mean_tox", "centroid")


def nearness_scores(
    activations: Float[Tensor, "vector d_model"] | Activations | ActivationStore,
    sae: SparseAutoencoder,
    harmful: FeatureSet,
    *,
    form: Form = "max_tox",
) -> Float[Tensor, " sample"]:
    """How near each row lies to the harmful features: one float64 number a conversation, in [-1, 1], higher = nearer.

    With w_i the mean activation of latent i over the row's response tokens, scaled so that the w of a row sum to 1,
    d_i the unit decoder directions and T the harmful latents:
    `max_tox` sum_i w_i max_{j in T} cos(d_i, d_j); `mean_tox` the same with the mean over T;
    `centroid` cos(sum_i w_i d_i, mean_{j in T} d_j).
    The filter on SAE geometry is that of arXiv 2605.00842; its score is not known to us, so these are our own.
    A row in which no latent fires has no score: NaN. `InputError` on activations that are not finite.
    """
    check_fits(harmful, sae, "harmful")
    targets = sae.W_dec[harmful.index.to(sae.device)]
    if form == "centroid":
        directions = sae.directions
        total, _ = sum_latents(activations, sae, lambda latents: latents @ directions)
        centre = unit_rows(centroid(unit_rows(targets))[None]).double()
        length = torch.linalg.vector_norm(total, dim=1)
        return ((total @ centre.T).squeeze(1) / _or_nan(length)).clamp(-1, 1).cpu()
    if form not in FORMS:
        raise InputError(f"unknown form {form!r} of nearness; use one of {', '.join(FORMS)}")
    nearness = torch.zeros(sae.d_sae, device=sae.device, dtype=sae.dtype)
    alive = torch.linalg.vector_norm(sae.W_dec, dim=1) > 0
    near = similarity_to(sae.W_dec[alive], targets, aggregate="max" if form == "max_tox" else "mean")
    nearness[alive] = near.to(nearness)
    both = torch.stack([nearness, torch.ones_like(nearness)], dim=1)
    total, _ = sum_latents(activations, sae, lambda latents: latents @ both)
    return (total[:, 0] / _or_nan(total[:, 1])).clamp(-1, 1).cpu()


def _or_nan(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, torch.full_like(size, torch.nan))


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
