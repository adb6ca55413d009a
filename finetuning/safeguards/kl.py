"""KL to the frozen start: the tuned model must answer as it did before, other questions or the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from finetuning.batches import forward, shuffled
from finetuning.reference import Reference
from finetuning.safeguards.base import Guard, Safeguard
from finetuning.safeguards.streams import check_weight
from probes.conversations import Conversation, Rendered, render
from probes.errors import InputError
from probes.models import Model


@dataclass(frozen=True)
class KLToBase(Safeguard):
    """Penalty `weight * mean_t KL(base || tuned)` over the response tokens of `per_step` other rows a step.

    The base is the model with its adapter switched off, or a copy of the start where every weight trains (Kaczer et al.
    2508.06249, lambda_KL; on out-of-domain rows as in Soligo et al. 2602.07852). Rows are best the base's own answers.
    Costs a forward and a backward pass of those rows, and a forward pass of the base.

    Attributes:
        others: Answered conversations, other than the training data.
        weight: lambda_KL, in nats of KL per nat of loss.
        per_step: Rows a step.
        seed: Seeds the order of the rows.
        reference: Another model of the same tokenizer to stay near (default: the start).
    """

    others: Sequence[Conversation]
    weight: float = 1.0
    per_step: int = 32
    seed: int = 0
    reference: Model | None = None

    def __post_init__(self) -> None:
        check_weight("KLToBase", self.weight)
        if not self.others or any(row.answer is None for row in self.others):
            raise InputError("KLToBase: give rows that end in an assistant turn")
        if self.per_step < 1:
            raise InputError(f"KLToBase per_step {self.per_step}: give 1 or more")

    def attach(self, model: Model, *, seed: int) -> Guard:
        """Begin; raises InputError for a reference of another tokenizer."""
        return _Pull(self, model)


@dataclass(frozen=True)
class KLOnBatch(Safeguard):
    """Penalty `weight * mean_t KL(base || tuned)` over the response tokens of the training rows themselves.

    The defence of Kaczer et al. 2508.06249 (lambda_KL 0.1). It works on the logits of the loss's own pass, so it costs
    one forward pass of the base and no more. It holds back what is to be learnt along with the rest: see what is left
    of the narrow skill. With `reverse` the penalty is KL(tuned || base), which spares what the tuned model no longer
    says and costs where it says what the base would not.

    Attributes:
        weight: lambda_KL, in nats of KL per nat of loss.
        reverse: Whether the tuned model stands first.
        reference: Another model of the same tokenizer to stay near (default: the start).
    """

    weight: float = 0.1
    _: KW_ONLY
    reverse: bool = False
    reference: Model | None = None

    def __post_init__(self) -> None:
        check_weight("KLOnBatch", self.weight)

    def attach(self, model: Model, *, seed: int) -> Guard:
        """Begin; raises InputError for a reference of another tokenizer."""
        return _Held(self, model)


class _Pull(Guard):
    def __init__(self, settings: KLToBase, model: Model) -> None:
        self.settings, self.model, self.start = settings, model, Reference(model, settings.reference)
        self.step, self.order = 0, self._order(0)

    def on_step(self, step: int) -> Float[Tensor, ""]:
        """The weighted KL on the rows of this step."""
        if step != self.step:  # a resumed fine-tune
            self.step, self.order = step, self._order(step)
        rows = [self.settings.others[i] for i in next(self.order)]
        self.step += 1
        batch = render(self.model.tokenizer, rows, padding_side="right").to(self.model.device)
        base = _base_logits(self.start, batch)
        return self.settings.weight * _divergence(base, forward(self.model, batch), batch)

    def _order(self, step: int):
        n = len(self.settings.others)
        return shuffled(n, min(self.settings.per_step, n), self.settings.seed, start=step)


class _Held(Guard):
    def __init__(self, settings: KLOnBatch, model: Model) -> None:
        self.settings, self.start = settings, Reference(model, settings.reference)

    def on_batch(self, batch: Rendered, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, ""]:
        """The weighted KL on the batch."""
        base = _base_logits(self.start, batch)
        return self.settings.weight * _divergence(base, logits, batch, reverse=self.settings.reverse)


def _base_logits(start: Reference, batch: Rendered) -> Float[Tensor, "batch kept vocab"]:
    """The frozen model's logits from the first position on that foretells a token of an answer."""
    first = int(batch.response.any(0).int().argmax())
    with start.reading() as base:
        kept = batch.input_ids.shape[1] - max(0, first - 1)
        return forward(base, batch.to(base.device), last=kept).to(batch.input_ids.device)


def _divergence(base: Tensor, tuned: Tensor, batch: Rendered, *, reverse: bool = False) -> Float[Tensor, ""]:
    """Mean over the response tokens of KL(base || tuned), or of KL(tuned || base), in nats."""
    kept = base.shape[1]
    learn = batch.response[:, 1:][:, 1 - kept :]
    p, q = (F.log_softmax(logits[:, -kept:-1][learn].float(), -1) for logits in (base, tuned))
    p, q = (q, p) if reverse else (p, q)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)
