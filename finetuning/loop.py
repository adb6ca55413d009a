"""The training loop: supervised fine-tuning of a copy of a model on conversations, with a safeguard if wished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from finetuning.lora import LoRA, merged_copy, with_adapter
from finetuning.safeguards import Safeguard
from probes.conversations import Conversation, Rendered, render
from probes.errors import InputError
from probes.models import Model


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: optimiser `steps` of `batch` rows, AdamW, linear warm-up and linear decay to zero."""

    steps: int
    lr: float
    batch: int = 16
    warmup: int = 5
    weight_decay: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1 or self.lr <= 0:
            raise InputError(f"{self}: give steps of 0 or more, a batch of 1 or more and a learning rate above 0")

    def factor(self, step: int) -> float:
        """The share of `lr` at a step (0-based)."""
        return min(1.0, (step + 1) / max(1, self.warmup)) * max(0.0, (self.steps - step) / max(1, self.steps))


@dataclass(frozen=True)
class Trained:
    """What a fine-tune leaves: the new model and the losses, `[steps]` each (`extra` is the safeguard's)."""

    model: Model
    loss: tuple[float, ...]
    extra: tuple[float, ...]


def response_loss(model: Model, rendered: Rendered) -> Float[Tensor, ""]:
    """Mean cross-entropy of the response tokens (assistant-only loss), in nats per token."""
    out = model.hf(
        input_ids=rendered.input_ids,
        attention_mask=rendered.attention_mask,
        position_ids=rendered.position_ids,
        use_cache=False,
    )
    learn = rendered.response[:, 1:]
    return F.cross_entropy(out.logits[:, :-1][learn].float(), rendered.input_ids[:, 1:][learn])


def shuffled(n: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of row numbers: every row once an epoch, each epoch in a new order."""
    rng = np.random.default_rng(seed)
    queue: list[int] = []
    while True:
        while len(queue) < batch:
            queue += rng.permutation(n).tolist()
        yield queue[:batch]
        queue = queue[batch:]


def finetune(
    model: Model,
    rows: Sequence[Conversation],
    *,
    schedule: Schedule,
    seed: int,
    lora: LoRA | None = LoRA(),  # noqa: B008 - frozen
    safeguard: Safeguard | None = None,
    on_step: Callable[[int, Model], None] | None = None,
) -> Trained:
    """Fine-tune a copy of `model` on the answers of `rows`.

    Args:
        model: Left as it is. An adapter on it is merged into the copy first.
        rows: Conversations that end in an answer.
        schedule: Steps, learning rate, batch size.
        seed: Seeds the adapter and the order of rows; the same seed on the same machine gives the same weights.
        lora: Adapter settings; None trains every weight.
        safeguard: Adds its loss at each step (`finetuning.safeguards`).
        on_step: Called after each step with the number of steps done and the model in training.

    Raises:
        InputError: A row without an answer, or no rows.
    """
    if not rows or any(row.answer is None for row in rows):
        raise InputError("finetune: give at least one row, and rows that end in an assistant turn")
    work = with_adapter(model, lora, seed=seed) if lora else replace(model, hf=merged_copy(model))
    weights = [p for p in work.hf.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=schedule.lr, weight_decay=schedule.weight_decay)
    plan = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule.factor)
    order = shuffled(len(rows), min(schedule.batch, len(rows)), seed)
    losses: list[float] = []
    extras: list[float] = []
    work.hf.train()
    for step in range(schedule.steps):
        batch = render(work.tokenizer, [rows[i] for i in next(order)], padding_side="right").to(work.device)
        loss = response_loss(work, batch)
        extra = safeguard.extra_loss(work, step) if safeguard else torch.zeros(())
        (loss + extra).backward()
        torch.nn.utils.clip_grad_norm_(weights, schedule.clip)
        optimiser.step()
        plan.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        extras.append(extra.item())
        if on_step:
            on_step(step + 1, work)
    work.hf.eval()
    return Trained(work, tuple(losses), tuple(extras))
