"""Safeguards: what a fine-tune adds to its loss so that it stays narrow. One file each."""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from probes.models import Model

if TYPE_CHECKING:
    from finetuning.safeguards.kl import KLToBase

__all__ = ["KLToBase", "Safeguard"]


@runtime_checkable
class Safeguard(Protocol):
    """What `finetune` asks of a safeguard."""

    def extra_loss(self, model: Model, step: int) -> Float[Tensor, ""]:
        """The penalty of the model in training at a step (0-based), already weighted."""
        ...


def __getattr__(name: str) -> Any:
    if name != "KLToBase":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from finetuning.safeguards.kl import KLToBase

    return KLToBase
