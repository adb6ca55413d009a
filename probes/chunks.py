"""Conversations cut into chunks that one shard holds, and chunks into batches of like length: the same every time."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.activations import POOLS, Pool
from probes.conversations import Conversation, Rendered, render
from probes.errors import InputError


@dataclass(frozen=True)
class TokenScope:
    """Which tokens of a conversation are read, under a name of your own; their mean is kept, or each if `single`.

    `mask` is a function of rendered conversations that returns `[batch, pos]`, or one mask `[pos]` a conversation, in
    the conversations' order, without padding.
    """

    name: str
    mask: Callable[[Rendered], Bool[Tensor, "batch pos"]] | Sequence[Bool[Tensor, " _"]]
    single: bool = False

    def of(self, row: Rendered, index: int) -> Bool[Tensor, " pos"]:
        """The mask of conversation `index`, rendered alone. Raises InputError where it is empty or does not fit."""
        if callable(self.mask):
            mask = self.mask(row)[0]
        elif index < len(self.mask):
            mask = self.mask[index]
        else:
            raise InputError(
                f"scope {self.name!r}: {len(self.mask)} masks, none for conversation {index}; give one each"
            )
        if mask.shape != row.input_ids.shape[1:] or mask.dtype != torch.bool:
            raise InputError(
                f"scope {self.name!r}: a mask of {mask.dtype} {list(mask.shape)} for conversation {index} of "
                f"{row.input_ids.shape[1]} tokens; give one bool a token"
            )
        if not mask.any():
            raise InputError(
                f"conversation {index} has no token in the scope {self.name!r}: leave it out or widen the scope"
            )
        return mask


_NAMED = {
    "response_mean": TokenScope("response_mean", lambda row: row.response),
    "prompt_mean": TokenScope("prompt_mean", lambda row: row.prompt),
    "last_prompt": TokenScope("last_prompt", lambda row: row.last_prompt),
    "tokens": TokenScope("tokens", lambda row: row.attention_mask.bool(), single=True),
}


def scope_of(pool: Pool | TokenScope) -> TokenScope:
    """The scope that a pool means. Raises InputError for a name that is no pool."""
    if isinstance(pool, TokenScope):
        return pool
    if pool not in POOLS:
        raise InputError(f"pool {pool!r}: use one of {', '.join(POOLS)}, or a TokenScope")
    return _NAMED[pool]


@dataclass(frozen=True)
class Row:
    """A conversation ready to be read: its tokens without padding, the mask of those that are kept, its text's hash."""

    index: int
    rendered: Rendered
    mask: Bool[Tensor, " pos"]
    digest: bytes

    @property
    def tokens(self) -> int:
        """How many tokens the model reads."""
        return self.rendered.input_ids.shape[1]


def rows_of(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[tuple[int, Conversation]], scope: TokenScope
) -> Iterator[Row]:
    """Tokenise numbered conversations one by one, once each."""
    for index, conversation in conversations:
        if scope is _NAMED["response_mean"]:
            check_answered(index, conversation)
        rendered = render(tokenizer, [conversation])
        yield Row(index, rendered, scope.of(rendered, index), text_digest(conversation))


def check_answered(index: int, conversation: Conversation) -> None:
    """Raise InputError where there is no response to take the mean of."""
    if conversation.answer is None:
        raise InputError(f"conversation {index} has no answer to average over: add one or use pool='last_prompt'")


def chunks(rows: Iterable[Row], tokens: int) -> Iterator[list[Row]]:
    """Runs of consecutive conversations of at most `tokens` tokens; a longer conversation makes a chunk of its own.

    Where a chunk begins depends on the conversations before it alone, so that a capture that starts again at the first
    conversation it lacks cuts the same chunks.
    """
    chunk: list[Row] = []
    held = 0
    for row in rows:
        if chunk and (held + row.tokens > tokens or row.index != chunk[-1].index + 1):
            yield chunk
            chunk, held = [], 0
        chunk.append(row)
        held += row.tokens
    if chunk:
        yield chunk


def batches(chunk: Sequence[Row], size: int, tokens: int | None) -> Iterator[list[Row]]:
    """Rows of like length, at most `size` of them and, padding counted, `tokens` tokens; never less than one row."""
    batch: list[Row] = []
    for row in sorted(chunk, key=lambda row: (row.tokens, row.index)):
        full = len(batch) == size or (tokens is not None and (len(batch) + 1) * row.tokens > tokens)
        if batch and full:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def stacked(rows: Sequence[Row]) -> tuple[Rendered, Bool[Tensor, "batch pos"]]:
    """Rows as one rectangle, padded on the left, and the mask of the tokens that are kept."""
    width = max(row.tokens for row in rows)
    parts = [row.rendered for row in rows]
    names = [field.name for field in fields(Rendered) if isinstance(getattr(parts[0], field.name), Tensor)]
    padded: dict[str, Any] = {name: _padded([getattr(part, name)[0] for part in parts], width) for name in names}
    texts = tuple(text for part in parts for text in part.texts)
    return replace(parts[0], texts=texts, **padded), _padded([row.mask for row in rows], width)


def samples_of(chunk: Sequence[Row], scope: TokenScope) -> list[tuple[int, int]]:
    """Where each row's samples lie among those of its chunk, as (start, stop)."""
    counts = [int(row.mask.sum()) if scope.single else 1 for row in chunk]
    return list(pairwise([0, *torch.tensor(counts).cumsum(0).tolist()]))


def text_digest(conversation: Conversation) -> bytes:
    """Hash of everything that a template may write of a conversation."""
    told = [list(conversation.messages), conversation.meta.get("tools")]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).digest()


def chunk_digest(digests: Iterable[bytes]) -> str:
    """Hash of the texts of a chunk, from those of its conversations in their order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _padded(rows: Sequence[Tensor], width: int) -> Tensor:
    whole = rows[0].new_zeros(len(rows), width)
    for line, row in zip(whole, rows, strict=True):
        line[width - len(row) :] = row
    return whole
