"""An operator for tests: any change of activations, at any site, that notes the masks it is called with."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Change:
    """Puts `make(activations)` in the masked places."""

    make: Callable[[Tensor], Tensor]
    site: str = "resid_post"
    layers: tuple[int, ...] = (1,)
    positions: str = "all"
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, activations: Tensor, *, layer: int, mask: Tensor) -> Tensor:
        self.seen.append(mask.clone())
        return torch.where(mask[..., None], self.make(activations), activations)
