"""A model behind an OpenAI-compatible endpoint: what it says can be asked, what it thinks cannot."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probes.conversations import Conversation
from probes.errors import InputError
from probes.progress import Progress, silent
from probes.subjects.calls import call, request_body, request_key
from probes.subjects.connection import Connection, checked_url
from probes.subjects.ledger import Ledger, digest

TEMPLATE = "served"
"""Stands for the hash of a chat template that only the server knows."""


@dataclass(frozen=True)
class Endpoint:
    """The model `model` behind `url` (such as `http://localhost:8000/v1`), which `ask` takes where it takes a `Model`.

    Answers are kept in the folder `cache`, and those found there are not asked for again. Every request carries a seed
    of its own, drawn from the seed of the call; whether the server heeds it is the server's affair.
    """

    url: str
    model: str
    cache: str | Path | None = None
    connection: Connection = field(default_factory=Connection)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", checked_url(self.url))

    @property
    def name(self) -> str:
        """What results call this model."""
        return self.model

    def requests(
        self, conversations: Sequence[Conversation], *, seed: int, temperature: float | int, max_new_tokens: int
    ) -> list[dict[str, Any]]:
        """The JSON of every request: pure sampling at `temperature`, a seed for each place."""
        fields = {"max_tokens": max_new_tokens, "temperature": temperature, "top_p": 1}
        return [
            request_body(self.model, row.prompt.messages, self.connection, **fields, seed=_seed(seed, place))
            for place, row in enumerate(conversations)
        ]

    def answers(
        self,
        conversations: Sequence[Conversation],
        *,
        seed: int,
        temperature: float | int = 1.0,
        max_new_tokens: int = 60,
        progress: Progress = silent,
    ) -> list[str]:
        """The endpoint's continuation of each conversation, in order.

        Raises InputError where it cannot be used; what was answered until then is kept under `cache`.
        """
        bodies = self.requests(conversations, seed=seed, temperature=temperature, max_new_tokens=max_new_tokens)
        return call(self.url, bodies, self.connection, reply_text, self._ledger(), progress=progress)

    def calls(self, conversations: Sequence[Conversation], **settings: Any) -> int:
        """How many requests `answers` would send: those whose answers are not kept yet."""
        ledger = self._ledger()
        keys = {request_key(self.url, body) for body in self.requests(conversations, **settings)}
        return sum(ledger is None or key not in ledger for key in keys)

    def _ledger(self) -> Ledger | None:
        return None if self.cache is None else Ledger(Path(self.cache) / "answers.jsonl")


def prompt_text(conversation: Conversation) -> str:
    """What an endpoint is sent, as JSON: its rendered form is the server's."""
    return json.dumps(list(conversation.prompt.messages), ensure_ascii=False)


def check_no_operators(operators: Sequence[Any]) -> None:
    """Raise InputError where activations of a served model are to be edited."""
    if operators:
        raise InputError(
            f"{type(operators[0]).__name__}: the activations of an endpoint cannot be edited; load the model instead"
        )


def _seed(seed: int, place: int) -> int:
    """31 bits, other ones for every place and every seed."""
    return int(digest(seed, place)[:8], 16) >> 1


def reply_text(reply: Any) -> str:
    """The answer's text; a refusal that stands apart counts as the answer. Raises ValueError for another shape."""
    try:
        message = reply["choices"][0]["message"]
        text = message.get("content") or message.get("refusal") or ""
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("no choices with a message in it") from None
    if not isinstance(text, str):
        raise ValueError(f"its content is a {type(text).__name__}, not a text")
    return text
