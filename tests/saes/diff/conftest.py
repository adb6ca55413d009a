"""Token activations of made-up conversations, in which chosen latents move."""

from collections.abc import Callable

import pytest
import torch

from probes import Activations

Make = Callable[..., Activations]


@pytest.fixture
def made() -> Make:
    """`made(seed, n=30, shift=None, text=0)`: tokens of n conversations, each of which has a level of its own."""

    def make(seed: int, n: int = 30, shift: torch.Tensor | None = None, text: int = 0, spread: float = 0.3):
        g = torch.Generator().manual_seed(seed)
        lengths = 4 + torch.arange(n) % 5
        index = torch.arange(n).repeat_interleave(lengths)
        position = torch.cat([torch.arange(length) for length in lengths.tolist()])
        x = torch.randn(n, 32, generator=g)[index] + torch.randn(len(index), 32, generator=g)
        if shift is not None:
            x = x + shift * (1 + spread * torch.randn(n, 1, generator=g)[index])
        ids = position * 7 + index + text
        return Activations(x[None], (2,), "tokens", "hash", index, ids, position, position >= 2)

    return make
