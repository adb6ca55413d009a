"""Operators on SAE latents: the latent's change times its decoder row is added to the original residual.

Putting the SAE's reconstruction in its place would add the reconstruction error to every edit, which alone costs
coherence; what the SAE does not explain therefore passes through untouched.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.steering.operators import RankOne, check_positions, masked, wide
from geometry.steering.vectors import Number
from probes.activations import SITES, Site
from probes.errors import InputError
from probes.hooks import Positions
from saes.sae import SparseAutoencoder


@dataclass(frozen=True, eq=False)
class ClampLatent:
    """Set latents to values, or shift them: h' = h + sum_i (z'_i - z_i(h)) d_i, with d_i the decoder row of latent i.

    Give either `to` (z' = to; below 0 pushes beyond "off") or `delta` (z' = z + delta): one number for all latents, or
    one for each, in the SAE's own activation units. `latents` is one index or several. It acts at the SAE's site.
    Clamping to 0 the one latent that rose most is the ablation of arXiv 2506.19823.
    """

    sae: SparseAutoencoder = field(repr=False)
    latents: int | Sequence[int]
    _: KW_ONLY
    to: Number | Sequence[Number] | None = None
    delta: Number | Sequence[Number] | None = None
    positions: Positions = "all"
    layers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if (self.to is None) == (self.delta is None):
            raise InputError("clamp: give either to= (the new value) or delta= (the change)")
        _settle(self)
        given = self.to if self.delta is None else self.delta
        if isinstance(given, Sequence) and len(given) != len(self.indices):
            raise InputError(f"clamp: {len(given)} values for {len(self.indices)} latents; give one, or one for each")

    @property
    def site(self) -> Site:
        """The site of the block at which it acts: the SAE's own."""
        return self.sae.site

    @property
    def indices(self) -> tuple[int, ...]:
        """The latents, always as a tuple."""
        return _indices(self.latents)

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the activations with the latents' change added where `mask` is true."""
        del layer
        chosen = wide(activations[mask])
        if not len(chosen):
            return activations
        moved = chosen + einsum(self._change(chosen), self._rows(chosen), "sample latent, latent d -> sample d")
        return activations.index_put((mask,), moved.to(activations.dtype))

    def _change(self, chosen: Tensor) -> Tensor:
        if self.delta is not None:
            return torch.as_tensor(self.delta).to(chosen).expand(len(chosen), len(self.indices))
        return torch.as_tensor(self.to).to(chosen) - self.sae.encode_some(chosen, self.indices).to(chosen)

    def _rows(self, chosen: Tensor) -> Tensor:
        return self.sae.W_dec[list(self.indices)].to(chosen)


@dataclass(frozen=True, eq=False)
class AddLatent:
    """Add the unit decoder directions of latents, whether they fire or not: h' = h + strength x norm x sum_i d_i /
    |d_i|.

    `norm` is the unit of strength: the mean residual norm at the SAE's block (arXiv 2506.19823 takes the median), the
    norm of the activation difference between two models, or 1 for the residual stream's own units. It acts at the SAE's
    block.
    """

    sae: SparseAutoencoder = field(repr=False)
    latents: int | Sequence[int]
    _: KW_ONLY
    strength: Number
    norm: Number
    positions: Positions = "response"
    layers: tuple[int, ...] = field(init=False)
    step: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _settle(self)
        if not self.norm > 0:
            raise InputError(f"norm {self.norm}: give the mean residual norm, the activation difference's norm, or 1")
        rows = torch.nn.functional.normalize(self.sae.W_dec[list(self.indices)], dim=-1)
        object.__setattr__(self, "step", rows.sum(0) * (self.strength * self.norm))

    @property
    def site(self) -> Site:
        """The site of the block at which it acts: the SAE's own."""
        return self.sae.site

    @property
    def indices(self) -> tuple[int, ...]:
        """The latents, always as a tuple."""
        return _indices(self.latents)

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the activations with the latents' directions added where `mask` is true."""
        del layer
        before = wide(activations)
        return masked(activations, before + self.step.to(before), mask)

    def rank_one(self, layer: int) -> RankOne:
        """The edit as numbers, for operators that treat many rows at once."""
        del layer
        return RankOne.adding(self.step)


def _indices(latents: int | Sequence[int]) -> tuple[int, ...]:
    return (latents,) if isinstance(latents, int) else tuple(int(latent) for latent in latents)


def _settle(operator: ClampLatent | AddLatent) -> None:
    """Check what both operators share and fix the block they act at."""
    if operator.sae.site not in SITES:
        raise InputError(f"SAE {operator.sae.name!r} reads {operator.sae.place}, which cannot be changed: take another")
    if not operator.indices or len(set(operator.indices)) < len(operator.indices):
        raise InputError(f"latents {operator.latents}: give at least one, each of them once")
    operator.sae.check_latents(operator.indices)
    check_positions(operator.positions)
    object.__setattr__(operator, "layers", (operator.sae.layer,))
