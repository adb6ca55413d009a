"""Gradients of a row's loss with respect to the residual stream, and the scores that are read off them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.features.filtering.scorers import AlongVector, features_key, site_of
from geometry.features.sets import FeatureSet, check_fits
from probes import gradients
from probes.activations import Site
from probes.conversations import Conversation
from probes.errors import InputError
from probes.models import Model
from saes import check_fits as check_sae
from saes.sae import SparseAutoencoder


@dataclass(frozen=True)
class RowGradients:
    """Rows of one batch, read at one place of one block. `rows` are their numbers.

    `values` are the activations h, `push` is -dL/dh, down the loss: where a training step would move them. L is the
    summed cross-entropy of the row's answer, in nats. `learns` marks the positions whose next token is trained.
    """

    rows: tuple[int, ...]
    values: Float[Tensor, "batch pos d_model"]
    push: Float[Tensor, "batch pos d_model"]
    learns: Bool[Tensor, "batch pos"]

    def mean(self, of: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "batch ..."]:
        """Mean of a quantity over the trained positions of each row, in float64."""
        weights = self.learns.double() / self.learns.sum(-1, keepdim=True)
        return einsum(of.double(), weights.to(of.device), "batch pos ..., batch pos -> batch ...")


def loss_gradients(
    model: Model, rows: Sequence[Conversation], *, layer: int, site: Site = "resid_post", batch_size: int = 16
) -> Iterator[RowGradients]:
    """Yield the gradients of answered rows in batches of like length; parameters get none.

    Raises InputError for a block that does not exist, a row without an answer, and a gradient that is not finite.
    """
    for number, row in enumerate(rows):
        if row.answer is None:
            raise InputError(f"row {number} has no answer to take the loss of; give it one or drop it")
    for part in gradients.loss_gradients(model, rows, layer=layer, site=site, batch_size=batch_size):
        learns = torch.zeros_like(part.rendered.response)
        learns[:, :-1] = part.rendered.response[:, 1:]
        yield RowGradients(part.rows, part.values, -part.grads, learns)


def latent_push(
    sae: SparseAutoencoder,
    found: RowGradients,
    latents: Tensor,
    *,
    gate: bool = True,
) -> Float[Tensor, "batch feature"]:
    """How far a step down the loss moves latents, first order: mean over trained positions of 1[f_j > 0] <e_j, push>.

    e_j is the encoder's column, times the norm of the decoder's row; units: nats (per squared residual length, times
    the step). Without the `gate` latents that do not fire count too (a derivation of ours from arXiv 2605.00842).
    """
    encoder = sae.W_enc[:, latents] * torch.linalg.vector_norm(sae.W_dec[latents], dim=1)
    moved = found.push.to(sae.device, sae.dtype) @ encoder
    if gate:
        with torch.no_grad():
            moved = moved * (sae.encode_some(found.values, latents.tolist()) > 0)
    return found.mean(moved.cpu() if moved.device.type == "mps" else moved).cpu()


@dataclass(frozen=True, eq=False)
class Spill:
    """How far a training step on the row pushes the harmful latents: sum_{j in T} <e_j, g(x)>, g = -dL/dh.

    g is the mean over the positions whose next token is trained, L the answer's summed loss; `gate` counts a latent
    only where it fires. Ours, for the derivation of arXiv 2605.00842 applied to single rows.
    """

    sae: SparseAutoencoder
    harmful: FeatureSet
    gate: bool = False
    name = "spill"
    unit = "nats"
    high = "a training step on the row raises the harmful latents"

    def __post_init__(self) -> None:
        check_fits(self.harmful, self.sae, "harmful")

    @property
    def key(self) -> dict[str, Any]:
        """SAE, latents and gate."""
        return {"gate": self.gate} | features_key(self.sae, self.harmful)

    def __call__(
        self, model: Model, rows: Sequence[Conversation], /, *, batch_size: int = 16
    ) -> Float[Tensor, " sample"]:
        """Positive = the row raises the harmful latents."""
        check_sae(self.sae, model)
        latents, scores = self.harmful.index.to(self.sae.device), torch.zeros(len(rows), dtype=torch.float64)
        site = site_of(self.sae)
        for part in loss_gradients(model, rows, layer=self.sae.layer, site=site, batch_size=batch_size):
            scores[list(part.rows)] = latent_push(self.sae, part, latents, gate=self.gate).sum(-1)
        return scores


@dataclass(frozen=True, eq=False)
class Push(AlongVector):
    """How far a training step on the row pushes the residual stream along a persona vector: <g(x), v>, v of norm 1."""

    name = "push"
    unit = "nats per residual length"
    high = "a training step on the row moves the model towards the persona"

    def __call__(
        self, model: Model, rows: Sequence[Conversation], /, *, batch_size: int = 16
    ) -> Float[Tensor, " sample"]:
        """Positive = the row pushes towards the persona."""
        scores = torch.zeros(len(rows), dtype=torch.float64)
        for part in loss_gradients(model, rows, layer=self.layer, batch_size=batch_size):
            scores[list(part.rows)] = part.mean(self.vector.project(part.push, self.layer)).cpu()
        return scores
