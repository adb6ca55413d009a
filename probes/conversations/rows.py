"""Rows: conversations as values, and the JSONL files that hold them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from probes.errors import InputError
from probes.io import atomic_file

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")
#: What a message may carry beside its role and its content; templates that know these keys write them.
EXTRAS = ("name", "reasoning_content", "thinking", "tool_call_id", "tool_calls")


@dataclass(frozen=True)
class Conversation:
    """One exchange: `messages` are `{"role", "content"}` dicts with the roles system, user, assistant and tool.

    A message keeps the keys of `EXTRAS` (tool calls, thoughts) for templates that know them; other keys are dropped. An
    assistant turn that calls tools may have the content None, which becomes "". A list of dicts in `meta["tools"]` is
    what the template is told of the tools there are. Raises InputError where there is no message, a role is unknown, a
    content is not a string or tool calls are not a list of dicts.
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


def load_conversations(path: str | Path) -> list[Conversation]:
    """Read a JSONL file whose rows are `{"messages": [...], "id"?, ...}`; other keys are kept in `meta`.

    Raises InputError with `file:line` for a missing or empty file, bad JSON, a row without messages, an unknown role.
    """
    return list(iter_conversations(path))


def iter_conversations(path: str | Path) -> Iterator[Conversation]:
    """Read the rows of a JSONL file one by one, as `load_conversations` does; the file is never in memory whole."""
    path, empty = Path(path), True
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a JSONL file with one {{'messages': [...]}} per line")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                empty = False
                yield _parse(line, f"{path}:{number}")
    if empty:
        raise InputError(f"{path}: no conversation in it; write one {{'messages': [...]}} per line")


def save_conversations(rows: Sequence[Conversation], path: str | Path) -> None:
    """Write `rows` as JSONL, atomically; `load_conversations` gives them back."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            record = {**row.meta, "messages": list(row.messages)} | ({} if row.id is None else {"id": row.id})
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


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
    if not isinstance(message, Mapping):
        raise InputError(f"message {str(message)[:60]!r}: give a dict with a role and a content that is a string")
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if role not in ROLES:
        raise InputError(f"role {role!r} is unknown: use one of {', '.join(ROLES)}")
    if calls and (role != "assistant" or not isinstance(calls, list) or not all(isinstance(c, dict) for c in calls)):
        raise InputError(f"tool_calls of a {role} turn, {str(calls)[:60]!r}: give a list of dicts in an assistant turn")
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise InputError(f"message {str(message)[:60]!r}: give a dict with a role and a content that is a string")
    return {"role": role, "content": content} | {key: message[key] for key in EXTRAS if message.get(key)}


def _parse(line: str, place: str) -> Conversation:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error.msg}); write one JSON object per line") from None
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise InputError(f"{place}: row without messages; write {{'messages': [{{'role', 'content'}}, ...]}}")
    meta = {key: value for key, value in row.items() if key not in ("messages", "id")}
    try:
        return Conversation(
            tuple(map(_checked, row["messages"])), id=None if row.get("id") is None else str(row["id"]), meta=meta
        )
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
