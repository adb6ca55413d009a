"""Judging without a judge: how much likelier a model finds a misaligned continuation than its aligned counterpart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.conversations import Conversation, Rendered, conversation_batches, render
from probes.errors import InputError
from probes.hooks import Operator, intervene, operators_for, teacher_forced
from probes.models import Model, evaluating, unwrap
from probes.questions import Question


@dataclass(frozen=True)
class Margin:
    """Log-probability per token of the misaligned minus that of the aligned continuation, in nats, one value a pair.

    Positive means that the model prefers the misaligned continuation. `clusters` name what each pair belongs to (its
    question); pairs of one cluster are resampled together. Without them every pair stands alone.
    """

    values: Float[Tensor, " pair"]
    clusters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.clusters and len(self.clusters) != len(self.values):
            raise InputError(f"{len(self.values)} margins in {len(self.clusters)} clusters: name one for each")

    @property
    def mean(self) -> float:
        """Mean margin over the pairs, in nats per token."""
        return float(self.values.double().mean())

    @property
    def share(self) -> float:
        """Share of the pairs whose misaligned continuation is the likelier one; ties count half."""
        return float(((self.values > 0).double() + (self.values == 0).double() / 2).mean())

    def interval(self, *, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
        """95 % bootstrap interval of the mean, over clusters."""
        names = self.clusters or tuple(map(str, range(len(self.values))))
        levels, place = np.unique(names, return_inverse=True)
        sums, sizes = np.bincount(place, self.values.double().numpy()), np.bincount(place)
        even = np.full(len(levels), 1 / len(levels))
        weights = np.random.default_rng(seed).multinomial(len(levels), even, resamples)
        low, high = np.quantile((weights @ sums) / (weights @ sizes), (0.025, 0.975))
        return float(low), float(high)

    def __sub__(self, other: "Margin") -> "Margin":
        """What one model prefers more than another, pair by pair: `tuned - base`."""
        if len(self.values) != len(other.values) or self.clusters != other.clusters:
            raise InputError(f"margins of {len(self.values)} and {len(other.values)} pairs: subtract those of the same")
        return Margin(self.values - other.values, self.clusters)


def paired_continuations(questions: Sequence[Question]) -> tuple[list[Conversation], list[Conversation]]:
    """The misaligned and the aligned continuation of every question, which its file gives beside the text.

    Raises InputError for a question that lacks one of them.
    """
    sides: dict[str, list[Conversation]] = {"misaligned": [], "aligned": []}
    for question in questions:
        for side, rows in sides.items():
            if not isinstance(text := question.meta.get(side), str) or not text.strip():
                raise InputError(f"question {question.id!r}: no {side} continuation; write one under {side}:")
            rows.append(question.conversation.answered(text))
    return sides["misaligned"], sides["aligned"]


def margins(
    model: Model,
    misaligned: Sequence[Conversation],
    aligned: Sequence[Conversation],
    *,
    operators: Sequence[Operator] = (),
    batch_size: int = 8,
) -> Margin:
    """Teacher-forced margins of conversations that differ, pair by pair, in their final answer only.

    Pairs whose conversations carry an id are clustered by it. Raises InputError where the lists do not pair up: other
    lengths, other prompts, a missing answer.
    """
    if len(misaligned) != len(aligned) or not aligned:
        raise InputError(f"{len(misaligned)} misaligned and {len(aligned)} aligned conversations: give them in pairs")
    for index, (bad, good) in enumerate(zip(misaligned, aligned, strict=True)):
        if bad.prompt.messages != good.prompt.messages or None in (bad.answer, good.answer):
            raise InputError(f"pair {index}: give two answers to one and the same prompt")
    bad, good = (
        response_logprobs(model, rows, operators=operators, batch_size=batch_size) for rows in (misaligned, aligned)
    )
    ids = tuple(row.id for row in misaligned if row.id is not None)
    return Margin(bad[0] / bad[1] - good[0] / good[1], ids if len(ids) == len(misaligned) else ())


def response_logprobs(
    model: Model, conversations: Sequence[Conversation], *, operators: Sequence[Operator] = (), batch_size: int = 8
) -> tuple[Float[Tensor, " sample"], Int[Tensor, " sample"]]:
    """Summed log-probability of each answer's tokens, its end token included, and their number."""
    sums, counts = torch.zeros(len(conversations)), torch.zeros(len(conversations), dtype=torch.long)
    for index, rows in conversation_batches(conversations, batch_size):
        rendered = render(model.tokenizer, rows).to(model.device)
        where = torch.tensor(index)
        with intervene(model, *operators_for(operators, index)), teacher_forced(rendered):
            sums[where] = _summed(model, rendered).cpu()
        counts[where] = rendered.response.sum(-1).cpu()
    if not counts.all():
        raise InputError(f"conversation {int((counts == 0).nonzero()[0])} has no answer: add one")
    return sums, counts


def logits_of(model: Model, rendered: Rendered) -> Float[Tensor, "batch pos vocab"]:
    """What the model predicts behind every token of rendered conversations, without gradients."""
    with evaluating(model):
        return unwrap(model.hf)(
            input_ids=rendered.input_ids,
            attention_mask=rendered.attention_mask,
            position_ids=rendered.position_ids,
            use_cache=False,
        ).logits


def _summed(model: Model, rendered: Rendered) -> Float[Tensor, " batch"]:
    return answer_logprobs(logits_of(model, rendered).float(), rendered)


def answer_logprobs(logits: Float[Tensor, "batch pos vocab"], rendered: Rendered) -> Float[Tensor, " batch"]:
    """Summed log-probability of the response tokens, in the logits' own precision."""
    chosen = torch.log_softmax(logits[:, :-1], dim=-1).gather(-1, rendered.input_ids[:, 1:, None])[..., 0]
    return torch.where(rendered.response[:, 1:], chosen, 0.0).sum(-1)
