"""A store of made-up activations in five shards, and the SAE that reads them."""

import pytest
import torch

from probes import Activations, ActivationStore


def activations(first: int, stop: int, *, width: int = 32, seed: int = 0) -> Activations:
    """Tokens of the conversations [first, stop) at blocks 1 and 2, whose numbers depend on the conversation alone."""
    counts = [4 + index % 5 for index in range(first, stop)]
    parts = [
        2 * torch.randn(2, count, width, generator=torch.Generator().manual_seed(1000 * seed + index))
        for index, count in zip(range(first, stop), counts, strict=True)
    ]
    index = torch.arange(first, stop).repeat_interleave(torch.tensor(counts))
    position = torch.cat([torch.arange(count) for count in counts])
    values = torch.cat(parts, dim=1)
    return Activations(values, (1, 2), "tokens", "hash", index, 100 * index + position, position, position > 1)


@pytest.fixture
def source(tmp_path) -> ActivationStore:
    """Twenty conversations in five shards."""
    store = ActivationStore.create(tmp_path / "activations", {"data": "made up"})
    with store.writer() as writer:
        for first in range(0, 20, 4):
            writer.append(activations(first, first + 4))
    return store


@pytest.fixture
def made():
    """The function `made(first, stop)` that makes activations."""
    return activations
