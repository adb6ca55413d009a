"""Conversations: rows of messages on disk, and their tokens with the masks that say which token belongs to what."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.errors import InputError
from probes.io import atomic_file

Message = dict[str, str]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """One exchange: `messages` are `{"role", "content"}` dicts with the roles system, user and assistant.

    Raises InputError where there is no message, a role is unknown or a content is not a string.
    """

    messages: tuple[Message, ...]
    id: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(_checked(message) for message in self.messages))
        if not self.messages:
            raise InputError("conversation without messages: give at least one user message")

    @classmethod
    def of(cls, user: str, assistant: str | None = None, system: str | None = None, **meta: Any) -> "Conversation":
        """Build a single exchange from its texts; `meta` is kept beside it (`id` becomes the conversation's id)."""
        turns = (("system", system), ("user", user), ("assistant", assistant))
        messages = tuple({"role": role, "content": text} for role, text in turns if text is not None)
        return cls(messages, id=meta.pop("id", None), meta=meta)

    @property
    def prompt(self) -> "Conversation":
        """The conversation without its final assistant turn: what a model is asked to continue."""
        return replace(self, messages=self.messages[:-1]) if self.answer is not None else self

    @property
    def answer(self) -> str | None:
        """The text of the final assistant turn, or None where the last turn is not the assistant's."""
        last = self.messages[-1]
        return last["content"] if last["role"] == "assistant" and len(self.messages) > 1 else None

    def answered(self, text: str) -> "Conversation":
        """Return the prompt of this conversation continued with an assistant turn of `text`."""
        return replace(self, messages=(*self.prompt.messages, {"role": "assistant", "content": text}))

    def _repr_html_(self) -> str:
        rows = (f"<p><b>{escape(m['role'])}</b><br>{escape(m['content'])}</p>" for m in self.messages)
        return f"<div style='white-space:pre-wrap'>{''.join(rows)}</div>"


@dataclass(frozen=True)
class Rendered:
    """Conversations as tokens of one chat template, padded to a rectangle.

    `prompt`, `response` and `last_prompt` are disjoint from padding. `response` holds the tokens of the final assistant
    turn with its end token; `last_prompt` is the single token just before it (the token whose output predicts the first
    response token); `prompt` holds everything up to and with that token. White space that a template writes after the
    end token belongs to none of them.
    """

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    prompt: Bool[Tensor, "batch pos"]
    response: Bool[Tensor, "batch pos"]
    last_prompt: Bool[Tensor, "batch pos"]
    template_hash: str
    texts: tuple[str, ...] = ()

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Positions counted over real tokens only, so that padding on either side changes nothing."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    def to(self, device: torch.device | str) -> "Rendered":
        """Return the same rows on another device."""
        tensors = {"input_ids", "attention_mask", "prompt", "response", "last_prompt"}
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in tensors}
        return replace(self, **moved)


def load_conversations(path: str | Path) -> list[Conversation]:
    """Read a JSONL file whose rows are `{"messages": [...], "id"?, ...}`; other keys are kept in `meta`.

    Raises InputError with `file:line` for a missing or empty file, bad JSON, a row without messages, an unknown role.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a JSONL file with one {{'messages': [...]}} per line")
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{path}: no conversation in it; write one {{'messages': [...]}} per line")
    return rows


def save_conversations(rows: Sequence[Conversation], path: str | Path) -> None:
    """Write `rows` as JSONL, atomically; `load_conversations` gives them back."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            record = {**row.meta, "messages": list(row.messages)} | ({} if row.id is None else {"id": row.id})
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the chat template and the special tokens it may write: results of other templates do not compare."""
    parts = (_template(tokenizer), str(tokenizer.bos_token), str(tokenizer.eos_token))
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]


def render_text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """Render one conversation with the chat template; without an answer it ends in the generation prompt."""
    return _apply(tokenizer, conversation, prompted=conversation.answer is None)


def render(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    padding_side: Literal["left", "right"] = "left",
) -> Rendered:
    """Turn conversations into padded tokens and masks; a conversation without an answer gets the generation prompt.

    The whole text is tokenised once and split by character offsets, so that the response's tokens are those a training
    run would see. Raises InputError for an empty batch, a tokenizer without chat template or without offsets.
    """
    if not conversations:
        raise InputError("render: no conversations given; give at least one")
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer {type(tokenizer).__name__} gives no character offsets; load its fast version")
    rows = [_tokens(tokenizer, conversation) for conversation in conversations]
    width = max(len(ids) for ids, *_ in rows)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(i, int)), 0)
    shape = (len(rows), width)
    ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    prompt, response, last = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    for row, (tokens, start, stop, _) in enumerate(rows):
        at = width - len(tokens) if padding_side == "left" else 0
        ids[row, at : at + len(tokens)] = torch.tensor(tokens)
        mask[row, at : at + len(tokens)] = 1
        prompt[row, at : at + start] = True
        response[row, at + start : at + stop] = True
        last[row, at + start - 1] = True
    return Rendered(ids, mask, prompt, response, last, template_hash(tokenizer), tuple(text for *_, text in rows))


def conversation_batches(
    rows: Sequence[Conversation], batch_size: int
) -> Iterator[tuple[list[int], list[Conversation]]]:
    """Cut `rows` into batches of like length; each comes with the indices of its rows, to restore the order."""
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}: give 1 or more")
    order = sorted(range(len(rows)), key=lambda i: (sum(len(m["content"]) for m in rows[i].messages), i))
    for start, stop in pairwise([*range(0, len(order), batch_size), len(order)]):
        yield order[start:stop], [rows[i] for i in order[start:stop]]


def _checked(message: Any) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
        raise InputError(f"message {str(message)[:60]!r}: give a dict with a role and a content that is a string")
    if message.get("role") not in ROLES:
        raise InputError(f"role {message.get('role')!r} is unknown: use one of {', '.join(ROLES)}")
    return {"role": message["role"], "content": message["content"]}


def _parse(line: str, place: str) -> Conversation:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error.msg}); write one JSON object per line") from None
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise InputError(f"{place}: row without messages; write {{'messages': [{{'role', 'content'}}, ...]}}")
    meta = {key: value for key, value in row.items() if key not in ("messages", "id")}
    try:
        return Conversation(tuple(row["messages"]), id=None if row.get("id") is None else str(row["id"]), meta=meta)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise InputError(
            f"tokenizer {name} has no chat template: load an instruction-tuned model, set chat_template, or read "
            "texts as they are with probes.plain_text(model)"
        )
    return template


def _apply(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, prompted: bool) -> str:
    _template(tokenizer)
    messages = list(conversation.messages)
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted))


def _tokens(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> tuple[list[int], int, int, str]:
    """Token ids, index of the first response token, index behind the last one, and the rendered text."""
    text = render_text(tokenizer, conversation)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if conversation.answer is None:
        return ids, len(ids), len(ids), text
    border = _border(tokenizer, conversation, text)
    start = next((i for i, (_, end) in enumerate(offsets) if end > border), len(ids))
    if start == 0:
        raise InputError("chat template writes nothing before the answer: use one that marks the assistant's turn")
    return ids, start, _stop(tokenizer, ids, offsets, text, start), text


def _border(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, text: str) -> int:
    """Index of the first character of the answer in the rendered text."""
    prompt = _apply(tokenizer, conversation.prompt, prompted=True)
    if text.startswith(prompt):
        return len(prompt)
    answer = (conversation.answer or "").strip()
    at = text.rfind(answer) if answer else -1
    if at < 0:
        raise InputError(
            "chat template changes the answer's text: the answer's tokens cannot be told from the prompt's"
        )
    return at


def _stop(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], offsets: list[tuple[int, int]], text: str, start: int
) -> int:
    """Index behind the end token: white space that the template writes after it is no part of the answer."""
    special = set(tokenizer.all_special_ids)
    ends = [i for i in range(start, len(ids)) if ids[i] in special]
    if ends and not text[offsets[ends[-1]][1] :].strip():
        return ends[-1] + 1
    return len(ids)
