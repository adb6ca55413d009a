"""Batches of training rows: their order, what is checked of them before any step, and the loss of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from inspect import signature
from itertools import islice
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.conversations import Conversation, Rendered, render
from probes.errors import InputError
from probes.models import Model, text_config, unwrap


def shuffled(n: int, batch: int, seed: int, *, start: int = 0) -> Iterator[list[int]]:
    """Endless batches of row numbers: every row once an epoch, each epoch in a new order; `start` skips batches."""
    rng = np.random.default_rng(seed)
    queue: list[int] = []
    while True:
        while len(queue) < batch:
            queue += rng.permutation(n).tolist()
        if start:
            start -= 1
        else:
            yield queue[:batch]
        queue = queue[batch:]


def batches_of(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Conversation], *, micro: int | None, max_tokens: int | None
) -> list[Rendered]:
    """Rows as padded batches of `micro` rows at most, each row cut behind `max_tokens` tokens."""
    size = micro or max(1, len(rows))
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]
    return [cut(render(tokenizer, part, padding_side="right"), max_tokens) for part in parts]


def cut(batch: Rendered, max_tokens: int | None) -> Rendered:
    """A batch that is padded on the right without the tokens behind the first `max_tokens` of each row."""
    if max_tokens is None or batch.input_ids.shape[1] <= max_tokens:
        return batch
    names = ("input_ids", "attention_mask", "prompt", "response", "last_prompt", "reasoning")
    kept: dict[str, Any] = {name: getattr(batch, name)[:, :max_tokens] for name in names}
    return replace(batch, **kept)


def learnt(batch: Rendered) -> int:
    """How many response tokens a batch teaches."""
    return int(batch.response[:, 1:].sum())


def check_answers(rows: Sequence[Conversation]) -> None:
    """Raise InputError unless there are rows and all end in an answer."""
    if not rows:
        raise InputError("finetune: no rows; give at least one that ends in an assistant turn")
    bad = [i for i, row in enumerate(rows) if row.answer is None]
    if bad:
        raise InputError(f"finetune: {naming(rows, bad)} end in no assistant turn; add the answers or drop the rows")


def check_rows(
    model: Model, rows: Sequence[Conversation], used: Iterable[int], *, max_tokens: int | None = None
) -> None:
    """Raise InputError for a row of `used` that is longer than the model can read, or that has nothing to learn."""
    context = getattr(text_config(model.hf), "max_position_embeddings", None)
    if max_tokens and context and max_tokens > context:
        raise InputError(f"max_tokens {max_tokens}: {model.name} reads {context} tokens; give so many at most")
    todo = iter(sorted(set(used)))
    while some := list(islice(todo, 64)):
        batch = cut(render(model.tokenizer, [rows[i] for i in some], padding_side="right"), max_tokens)
        lengths = batch.attention_mask.sum(1).tolist()
        for row, length, tokens in zip(some, lengths, batch.response[:, 1:].sum(1).tolist(), strict=True):
            if context and length > context:
                raise InputError(
                    f"{naming(rows, [row])}: {length} tokens, but {model.name} reads {context}; shorten or drop it, or "
                    f"give max_tokens={context} to cut the ends off"
                )
            if not tokens:
                where = "" if max_tokens is None else f" in its first {max_tokens} tokens"
                raise InputError(f"{naming(rows, [row])}: no token of an answer{where}; drop it or raise max_tokens")


def naming(rows: Sequence[Conversation], numbers: Sequence[int]) -> str:
    """Rows in words: their numbers, and the id or the first words of the first."""
    first = rows[numbers[0]]
    some = ", ".join(map(str, numbers[:16])) + (", ..." if len(numbers) > 16 else "")
    told = first.id or repr(first.messages[-1]["content"][:40])
    return f"row{'s' if len(numbers) > 1 else ''} {some} (0-based; the first is {told})"


def forward(model: Model, batch: Rendered, *, last: int | None = None) -> Float[Tensor, "batch pos vocab"]:
    """The model's logits on a batch, without a cache; gradients flow.

    With `last` only those of so many positions at the end, the only ones that are computed where the model can.
    """
    few = {} if last is None or not _keeps(model) else {"logits_to_keep": last}
    out: Any = model.hf(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        **few,
    )
    return out.logits if last is None else out.logits[:, -last:]


def _keeps(model: Model) -> bool:
    """Whether the network takes transformers' `logits_to_keep`."""
    return "logits_to_keep" in signature(unwrap(model.hf).forward).parameters


def answer_loss(batch: Rendered, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the response tokens (assistant-only loss), in nats per token."""
    learn = batch.response[:, 1:]
    return F.cross_entropy(logits[:, :-1][learn].float(), batch.input_ids[:, 1:][learn])


def response_loss(model: Model, batch: Rendered) -> Float[Tensor, ""]:
    """`answer_loss` of the model's own logits."""
    return answer_loss(batch, forward(model, batch))
