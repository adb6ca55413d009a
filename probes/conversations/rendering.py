"""Rendering: conversations as padded tokens of a chat template, with a mask for each kind of token."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.conversations.reasoning import Markers, reasoning_markers, thoughts, unopened
from probes.conversations.rows import Conversation
from probes.conversations.templates import render_text, template_hash, written
from probes.errors import InputError


@dataclass(frozen=True)
class Rendered:
    """Conversations as tokens of one chat template, padded to a rectangle.

    `prompt`, `response` and `last_prompt` are disjoint from padding. `response` holds the tokens of the final assistant
    turn with its end token; `last_prompt` is the single token just before it (the token whose output predicts the first
    response token); `prompt` holds everything up to and with that token. White space that a template writes after the
    end token belongs to none of them. `reasoning` is the part of `response` that the model thinks before it answers,
    with its marks (default: no token).
    """

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    prompt: Bool[Tensor, "batch pos"]
    response: Bool[Tensor, "batch pos"]
    last_prompt: Bool[Tensor, "batch pos"]
    template_hash: str
    texts: tuple[str, ...] = ()
    reasoning: Bool[Tensor, "batch pos"] = field(default=cast(Tensor, None))

    def __post_init__(self) -> None:
        if self.reasoning is None:
            object.__setattr__(self, "reasoning", torch.zeros_like(self.response))

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Positions counted over real tokens only, so that padding on either side changes nothing."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    @property
    def answer(self) -> Bool[Tensor, "batch pos"]:
        """The response without its reasoning."""
        return self.response & ~self.reasoning

    def to(self, device: torch.device | str) -> "Rendered":
        """Return the same rows on another device."""
        tensors = {"input_ids", "attention_mask", "prompt", "response", "last_prompt", "reasoning"}
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in tensors}
        return replace(self, **moved)


def render(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    padding_side: Literal["left", "right"] = "left",
    reasoning: Markers | None = None,
) -> Rendered:
    """Turn conversations into padded tokens and masks; a conversation without an answer gets the generation prompt.

    The whole text is tokenised once and split by character offsets, so that the response's tokens are those a training
    run would see; a token that straddles the border belongs to the response. `reasoning` are the marks that open and
    close a thought (default: those of `reasoning_markers`). A thought that the template strips from the final turn is
    put back where the model would write it. Raises InputError for an empty batch, a tokenizer without offsets, a
    conversation that the template rejects or whose answer it changes.
    """
    if not conversations:
        raise InputError("render: no conversations given; give at least one")
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer {type(tokenizer).__name__} gives no character offsets; load its fast version")
    markers = reasoning or reasoning_markers(tokenizer)
    rows = [_row(tokenizer, conversation, markers) for conversation in conversations]
    width = max(len(row.ids) for row in rows)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(i, int)), 0)
    shape = (len(rows), width)
    ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    prompt, response, last, thought = (torch.zeros(shape, dtype=torch.bool) for _ in range(4))
    for i, row in enumerate(rows):
        at = width - len(row.ids) if padding_side == "left" else 0
        ids[i, at : at + len(row.ids)] = torch.tensor(row.ids)
        mask[i, at : at + len(row.ids)] = 1
        prompt[i, at : at + row.start] = True
        response[i, at + row.start : at + row.stop] = True
        last[i, at + row.start - 1] = True
        thought[i, [at + place for place in row.thought]] = True
    texts = tuple(row.text for row in rows)
    return Rendered(ids, mask, prompt, response, last, template_hash(tokenizer), texts, thought)


class _Row(NamedTuple):
    """One conversation's tokens: `start` is the index of the first response token, `stop` is behind the last one."""

    ids: list[int]
    start: int
    stop: int
    thought: list[int]
    text: str


def _row(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, markers: Markers | None) -> _Row:
    text, border = _bordered(tokenizer, conversation, markers)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if conversation.answer is None:
        return _Row(ids, len(ids), len(ids), [], text)
    start = next((i for i, (_, end) in enumerate(offsets) if end > border), len(ids))
    if start == 0:
        raise InputError("chat template writes nothing before the answer: use one that marks the assistant's turn")
    stop, spans = _stop(tokenizer, ids, offsets, text, start), thoughts(text, border, markers)
    thought = [i for i in range(start, stop) if any(first < offsets[i][1] <= last for first, last in spans)]
    return _Row(ids, start, stop, thought, text)


def _bordered(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, markers: Markers | None
) -> tuple[str, int]:
    """The rendered text, and the index of the first character of the answer (or of the end, where there is none)."""
    text, answer = render_text(tokenizer, conversation), conversation.answer
    if answer is None:
        return text, len(text)
    prompt = written(tokenizer, conversation.prompt.messages, conversation, prompted=True)
    if markers and markers[1] in answer and _strips(tokenizer, conversation, text, markers[1]):
        return _with_thought(tokenizer, conversation, prompt, markers)
    for head in (prompt, unopened(prompt, markers)):
        if text.startswith(head):
            return text, len(head)
    start, _ = _place(tokenizer, conversation, answer)
    return text, start


def _strips(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, text: str, closing: str) -> bool:
    """Whether the template strips the thought from the answer: another thought gives the same text."""
    thought, _, spoken = (conversation.answer or "").rpartition(closing)
    return render_text(tokenizer, conversation.answered(f"{thought}?{closing}{spoken}")) == text


def _with_thought(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, prompt: str, markers: Markers
) -> tuple[str, int]:
    """As `_bordered`, for a template that strips the thought from the answer: what the model itself would write."""
    answer, spoken = (conversation.answer or "").strip(), (conversation.answer or "").rpartition(markers[1])[2]
    plain = conversation.answered(spoken)
    _, stop = _place(tokenizer, plain, spoken)
    end = render_text(tokenizer, plain)[stop:]
    if prompt.rstrip().endswith(markers[0]):  # the prompt has opened the thought already
        answer = answer.removeprefix(markers[0]).lstrip()
    else:
        prompt = unopened(prompt, markers)
    return prompt + answer + end, len(prompt)


def _place(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, answer: str) -> tuple[int, int]:
    """Where the answer stands in the rendered text: what changes when another answer stands in its stead."""
    text, answer = render_text(tokenizer, conversation), answer.strip()
    one, other = (render_text(tokenizer, conversation.answered(word * 8)) for word in "?!")
    start, stop = _agreeing(one, other), len(text) - _agreeing(one[::-1], other[::-1])
    if text[start:stop].strip() != answer:
        raise InputError(
            "chat template changes the answer's text: the answer's tokens cannot be told from the prompt's"
        )
    return start, stop


def _agreeing(one: str, other: str) -> int:
    """How many characters two texts share at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _stop(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], offsets: list[tuple[int, int]], text: str, start: int
) -> int:
    """Index behind the end token: white space that the template writes after it is no part of the answer."""
    special = set(tokenizer.all_special_ids)
    ends = [i for i in range(start, len(ids)) if ids[i] in special]
    if ends and not text[offsets[ends[-1]][1] :].strip():
        return ends[-1] + 1
    return len(ids)
