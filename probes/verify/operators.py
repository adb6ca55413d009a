"""The operators of the self-test: one that adds a known vector, one that only looks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.hooks import Positions
from probes.verify.bench import Bench


@dataclass(frozen=True, eq=False)
class Push:
    """An operator that adds `steps`, block -> direction, where the mask is true."""

    steps: Mapping[int, Float[Tensor, " d_model"]]
    positions: Positions = "all"

    @classmethod
    def at(cls, bench: Bench, layer: int, positions: Positions) -> "Push":
        """A random direction as long as the block's activations are on average."""
        norm = bench.left[layer].norm(dim=-1).mean()
        drawn = torch.randn(bench.model.d_model, generator=torch.Generator().manual_seed(layer), dtype=torch.float64)
        return cls({layer: (drawn * norm / drawn.norm()).to(bench.model.device, bench.model.dtype)}, positions)

    @classmethod
    def nowhere(cls, bench: Bench) -> "Push":
        """Zero, at every block and every token."""
        nothing = torch.zeros(bench.model.d_model, device=bench.model.device, dtype=bench.model.dtype)
        return cls(dict.fromkeys(bench.layers, nothing))

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that are pushed."""
        return tuple(self.steps)

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the pushed activations."""
        return activations + mask[..., None] * self.steps[layer].to(activations.device)


@dataclass(frozen=True, eq=False)
class Witness:
    """An operator that changes nothing and keeps what it sees, a pass after the other."""

    layer: int
    seen: list[Tensor] = field(default_factory=list)
    positions: Positions = "all"

    @property
    def layers(self) -> tuple[int, ...]:
        """The block that is watched."""
        return (self.layer,)

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the activations as they are."""
        self.seen.append(activations.detach().clone())
        return activations
