"""KL to the frozen start: the tuned model must answer other questions as it did before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from finetuning.loop import shuffled
from probes.conversations import Conversation, render
from probes.errors import InputError
from probes.models import Model


@dataclass(frozen=True)
class KLToBase:
    """Penalty `weight * mean_t KL(base || tuned)` over the response tokens of `per_step` rows a step.

    The base is the model with its adapter switched off (Kaczer et al. 2508.06249, lambda_KL; on out-of-domain rows
    as in Soligo et al. 2602.07852). Rows are best the base's own answers.

    Attributes:
        rows: Answered conversations, other than the training data.
        weight: lambda_KL, in nats of KL per nat of loss.
        per_step: Rows a step.
        seed: Seeds the order of the rows.
    """

    rows: Sequence[Conversation]
    weight: float = 1.0
    per_step: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rows or any(row.answer is None for row in self.rows):
            raise InputError("KLToBase: give rows that end in an assistant turn")
        object.__setattr__(self, "_order", shuffled(len(self.rows), min(self.per_step, len(self.rows)), self.seed))

    def extra_loss(self, model: Model, step: int) -> Float[Tensor, ""]:
        """The weighted KL on the next rows; needs a model with an adapter that can be switched off."""
        disable = getattr(model.hf, "disable_adapter", None)
        if disable is None:
            raise InputError("KLToBase: the model in training has no adapter; fine-tune with lora=LoRA()")
        picked = next(self._order)  # pyright: ignore[reportAttributeAccessIssue]
        batch = render(model.tokenizer, [self.rows[i] for i in picked], padding_side="right").to(model.device)
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "position_ids": batch.position_ids,
        }
        learn = batch.response[:, 1:]
        with torch.no_grad(), disable():
            base = F.log_softmax(model.hf(**inputs, use_cache=False).logits[:, :-1][learn].float(), -1)
        tuned = F.log_softmax(model.hf(**inputs, use_cache=False).logits[:, :-1][learn].float(), -1)
        return self.weight * F.kl_div(tuned, base, reduction="batchmean", log_target=True)
