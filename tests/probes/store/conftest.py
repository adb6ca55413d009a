"""What the store's tests share: made-up activations."""

import pytest
import torch

from probes import Activations, ActivationStore


@pytest.fixture(scope="session")
def made():
    """`made(first, stop, width=8)`: token activations of blocks 1 and 4, whose numbers say where they belong."""

    def build(first: int, stop: int, width: int = 8) -> Activations:
        counts = torch.tensor([3 + index % 4 for index in range(first, stop)])
        index = torch.arange(first, stop).repeat_interleave(counts)
        positions = torch.cat([torch.arange(count) for count in counts.tolist()])
        ids = 100 * index + positions
        values = torch.stack([ids, -ids]).float()[..., None] + torch.arange(width) / 16
        inside = positions > 1
        return Activations(values, (1, 4), "tokens", "hash", index, ids, positions, inside, in_reasoning=~inside)

    return build


@pytest.fixture
def filled(made, tmp_path):
    """A store of 12 conversations in four shards, with the activations that it should hold."""
    store = ActivationStore.create(tmp_path / "store", {"model": "made"})
    with store.writer() as writer:
        for first in range(0, 12, 3):
            writer.append(made(first, first + 3))
    return store, made(0, 12)
