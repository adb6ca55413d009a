"""Planted activations: a direction that tells the classes apart at one block, and conversations of some groups."""

import numpy as np
import pytest
import torch

from probes import Activations


@pytest.fixture
def planted():
    """The function `planted(n, width, gap, per_group)`: activations of blocks 3 and 5, labels and groups.

    Block 3 is noise; in block 5 the labels lie `gap` apart along the first axis.
    """

    def make(n: int = 120, width: int = 12, gap: float = 4.0, per_group: int = 6, seed: int = 0):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(n) % 2)
        values = rng.normal(size=(2, n, width))
        values[1, :, 0] += gap * labels
        acts = Activations(torch.tensor(values).float(), (3, 5), "response_mean", "hash", torch.arange(n))
        return acts, labels, np.arange(n) // per_group

    return make
