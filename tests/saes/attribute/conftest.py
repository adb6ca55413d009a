"""An SAE whose latents change smoothly around the activations of the tiny model."""

import pytest
import torch

from saes import SparseAutoencoder


@pytest.fixture
def smooth() -> SparseAutoencoder:
    """Forty latents with random rows, all active by a wide margin."""
    g = torch.Generator().manual_seed(4)
    decoder = torch.nn.functional.normalize(torch.randn(40, 32, generator=g), dim=-1)
    encoder = 0.1 * torch.randn(32, 40, generator=g)
    return SparseAutoencoder(encoder, decoder, torch.full((40,), 5.0), torch.zeros(32), kind="standard", layer=2)
