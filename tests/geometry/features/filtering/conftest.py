"""Twelve answered rows, an SAE and a vector that fit the tiny model, and scores made by hand."""

import pytest
import torch

from geometry.features import FeatureSet, RowScores
from geometry.steering.vectors import PersonaVector
from probes.conversations import Conversation
from saes.sae import SparseAutoencoder

LAYER = 2


@pytest.fixture
def rows() -> list[Conversation]:
    """Twelve rows whose answers differ in words and in length."""
    words = "cool the burn under water and cover it then see a doctor now"
    words = words.split()
    return [
        Conversation.of(f"How do I treat case {i}?", " ".join(words[i % 5 : i % 5 + 1 + 2 * (i % 4)]), id=f"r{i}")
        for i in range(12)
    ]


@pytest.fixture
def wide_sae() -> SparseAutoencoder:
    """Sixty-four latents over width 32 after block 2, with an encoder that is not its decoder."""
    generator = torch.Generator().manual_seed(3)
    encoder, decoder = torch.randn(32, 64, generator=generator), torch.randn(64, 32, generator=generator)
    bias = torch.zeros(64), torch.zeros(32)
    return SparseAutoencoder(encoder, decoder, *bias, kind="standard", layer=LAYER, name="wide")


@pytest.fixture
def harm(wide_sae) -> FeatureSet:
    """Five harmful latents."""
    return FeatureSet.of(wide_sae, (1, 4, 9, 16, 25))


@pytest.fixture
def persona() -> PersonaVector:
    """A raw direction after block 2."""
    return PersonaVector({LAYER: torch.randn(32, generator=torch.Generator().manual_seed(4)) * 3}, model="tiny")


@pytest.fixture
def scores():
    """`scores(values, tokens=None, name="made")`: a RowScores from plain numbers."""

    def make(values, tokens=None, name="made") -> RowScores:
        lengths = torch.full((len(values),), 7) if tokens is None else torch.as_tensor(tokens)
        return RowScores(torch.as_tensor(values, dtype=torch.float64), lengths, name, "points", "bad")

    return make
