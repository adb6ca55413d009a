"""What tests of edits share: an operator that makes any change at any site, and what it is tried on."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from probes import Conversation, render

STEP = torch.linspace(-1, 1, 32)


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


def push(site="resid_post", layers=(1, 2), positions="all", step=STEP):
    return Change(lambda x: x + step, site, layers, positions)


def rows(model, side="left"):
    return render(
        model.tokenizer, [Conversation.of("How are you?", "Fine."), Conversation.of("Who?")], padding_side=side
    )


def inputs(rendered):
    return {"attention_mask": rendered.attention_mask, "position_ids": rendered.position_ids}


def registered(model):
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.hf.modules()]
