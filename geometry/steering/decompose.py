"""The few SAE latents that rebuild a persona vector: a sparse, non-negative sum of decoder directions."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor

from geometry.steering.vectors import PersonaVector
from probes.errors import InputError
from saes.fits import need_resid_post
from saes.sae import SparseAutoencoder


@dataclass(frozen=True)
class Decomposition:
    """A persona vector at the SAE's block as a sum of latents.

    Attributes:
        latents: The latents, in the order in which they were taken.
        weights: What each adds along its unit decoder direction, above 0, in units of the residual stream.
        cosines: Cosine between the vector and the best sum of the first 1, 2, ... latents.
        random: Mean of `cosines[-1]` over random directions rebuilt with as many latents, the baseline.
    """

    latents: tuple[int, ...]
    weights: tuple[float, ...]
    cosines: tuple[float, ...]
    random: float

    def rebuilt(self, sae: SparseAutoencoder) -> PersonaVector:
        """The sum as a persona vector at the SAE's block."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        total = (weights[:, None] * sae.directions[list(self.latents)].cpu().double()).sum(0)
        return PersonaVector({sae.layer: total.float()}, model=sae.model_name, method=f"sum of latents {self.latents}")


def decompose(
    vector: PersonaVector, sae: SparseAutoencoder, n: int = 8, *, n_random: int = 20, seed: int = 0
) -> Decomposition:
    """Rebuild a vector from at most `n` latents: orthogonal matching pursuit with non-negative weights.

    Each step takes the latent whose unit decoder direction lies nearest to what is left, then fits all weights anew by
    non-negative least squares. It stops early where no latent points to what is left. Weights are non-negative because
    activations are: a latent cannot fire below zero. Raises InputError where the vector has no direction at the SAE's
    block or another width, and for an SAE of another site than the blocks' outputs.
    """
    if n < 1:
        raise InputError(f"{n} latents: give at least 1")
    need_resid_post(sae, "a persona vector")
    target = vector.unit(sae.layer).double().cpu().numpy()
    if target.size != sae.d_model:
        raise InputError(
            f"vector of width {target.size}, SAE of width {sae.d_model}: take an SAE of the vector's model"
        )
    rows = sae.directions.double().cpu().numpy()
    taken, weights, cosines = _pursue(rows, target, n)
    draws = np.random.default_rng(seed).standard_normal((n_random, target.size))
    beside = [_pursue(rows, draw / np.linalg.norm(draw), n)[2][-1:] for draw in draws]
    scale = vector.norm(sae.layer)
    return Decomposition(
        tuple(taken),
        tuple(float(w) * scale for w in weights),
        tuple(cosines),
        float(np.mean([c or [0.0] for c in beside])),
    )


def _pursue(
    rows: Float[np.ndarray, "latent d_model"], target: Float[np.ndarray, " d_model"], n: int
) -> tuple[list[int], Float[np.ndarray, " taken"], list[float]]:
    taken: list[int] = []
    weights, rest, cosines = np.zeros(0), target, []
    for _ in range(n):
        near = rows @ rest
        near[taken] = -np.inf
        best = int(near.argmax())
        if near[best] <= 1e-9:
            break
        taken.append(best)
        weights, _ = nnls(rows[taken].T, target)
        total = weights @ rows[taken]
        rest = target - total
        cosines.append(float(total @ target / max(np.linalg.norm(total), 1e-12)))
    kept = [i for i, weight in enumerate(weights) if weight > 0]
    return [taken[i] for i in kept], weights[kept], cosines


def explained(vector: PersonaVector, rebuilt: PersonaVector) -> dict[int, float]:
    """Share of a vector's squared length that a rebuilt one explains, by block: 1 - |v - r|^2 / |v|^2."""
    both = [layer for layer in vector.layers if layer in rebuilt.directions]
    return {layer: _share(vector.at(layer), rebuilt.at(layer)) for layer in both}


def _share(one: Float[Tensor, " d_model"], two: Float[Tensor, " d_model"]) -> float:
    gap = (one.double() - two.double()).square().sum()
    return 1.0 - float(gap / one.double().square().sum())
