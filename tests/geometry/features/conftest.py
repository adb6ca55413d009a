"""A small random SAE and activations of known make-up for the tests of feature geometry."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from probes.activations import Activations
from saes.sae import SparseAutoencoder

D_MODEL, D_SAE, LAYER = 16, 64, 1


@pytest.fixture
def sae() -> SparseAutoencoder:
    """A top-k SAE of 64 latents over width 16 whose encoder is its transposed unit decoder."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL, generator=generator), dim=1)
    zeros = (torch.zeros(D_SAE), torch.zeros(D_MODEL))
    return SparseAutoencoder(decoder.T.clone(), decoder, *zeros, kind="topk", layer=LAYER, k=4, name="toy")


@pytest.fixture
def planted(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The same SAE, but latents 0-9 are harmful round one axis, 10-19 lean to it, the others point anywhere."""
    decoder = sae.W_dec.clone()
    decoder[:10, 0] += 4
    decoder[10:20, 0] += 1
    return replace(sae, W_dec=torch.nn.functional.normalize(decoder, dim=1))


@pytest.fixture
def residuals() -> Tensor:
    """Forty residual vectors of width 16."""
    return torch.randn(40, D_MODEL, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens(residuals: Tensor) -> Activations:
    """The forty vectors as tokens of five conversations, 0, 2, 3, 5 and 9, the first three tokens of each a prompt."""
    index = torch.tensor([0, 2, 3, 5, 9]).repeat_interleave(8)
    position = torch.arange(8).repeat(5)
    return Activations(
        torch.stack([torch.zeros_like(residuals), residuals]),
        (0, LAYER),
        "tokens",
        "h",
        index,
        position,
        position,
        position >= 3,
    )
