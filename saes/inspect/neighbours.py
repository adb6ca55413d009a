"""The latents whose directions lie nearest to a latent's, by what they write and by what they read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import InputError
from saes.sae import SparseAutoencoder

Side = Literal["decoder", "encoder"]
BLOCK = 2**15


@dataclass(frozen=True)
class Neighbour:
    """A latent near another one: the cosine of their decoder rows (what they write) and encoder columns (read)."""

    latent: int
    decoder: float
    encoder: float


@torch.no_grad()
def nearest_latents(
    sae: SparseAutoencoder, latents: Sequence[int], *, k: int = 5, by: Side = "decoder"
) -> dict[int, list[Neighbour]]:
    """For each latent the `k` others with the highest cosine, by decoder rows or by encoder columns; exact.

    The SAE is read 32,768 latents at a time. InputError for a latent that does not exist and for an unknown side.
    """
    if by not in ("decoder", "encoder"):
        raise InputError(f"by={by!r}: use 'decoder' or 'encoder'")
    sae.check_latents(latents)
    ids = torch.as_tensor(list(latents), dtype=torch.long, device=sae.device)
    decoder, encoder = sae.directions.float(), sae.encoder_directions.float()
    found = _nearest(decoder if by == "decoder" else encoder, ids, min(k, sae.d_sae - 1))
    return {
        latent: [
            Neighbour(other, float(decoder[latent] @ decoder[other]), float(encoder[latent] @ encoder[other]))
            for other in others
        ]
        for latent, others in zip(ids.tolist(), found, strict=True)
    }


@torch.no_grad()
def typical_nearest(sae: SparseAutoencoder, *, of: int = 256) -> float:
    """Median cosine of a latent's decoder row with its nearest, over `of` evenly spaced latents: what is usual here."""
    directions = sae.directions.float()
    picked = torch.linspace(0, sae.d_sae - 1, min(of, sae.d_sae), device=sae.device).round().long()
    nearest = _nearest(directions, picked, 1)
    rows = [float(directions[i] @ directions[other[0]]) for i, other in zip(picked, nearest, strict=True) if other]
    return float(torch.tensor(rows).median()) if rows else 0.0


def _nearest(directions: Float[Tensor, "d_sae d_model"], ids: Tensor, k: int) -> list[list[int]]:
    """The `k` highest cosines of these rows with all others, the best first."""
    values = torch.empty(len(ids), 0, device=directions.device)
    places = torch.empty(len(ids), 0, dtype=torch.long, device=directions.device)
    for start in range(0, len(directions), BLOCK):
        block = directions[ids] @ directions[start : start + BLOCK].T
        own = ids - start
        inside = (own >= 0) & (own < block.shape[1])
        block[inside.nonzero()[:, 0], own[inside]] = -torch.inf
        here = torch.arange(start, start + block.shape[1], device=directions.device).expand_as(block)
        values, places = torch.cat([values, block], 1), torch.cat([places, here], 1)
        best = values.topk(min(k, values.shape[1]), dim=1)
        values, places = best.values, places.gather(1, best.indices)
    return places.tolist()
