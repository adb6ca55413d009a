"""The organism's world: domains, topics, actions, voices and self questions, read from the YAML files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

HERE = Path(__file__).parent / "world"
VALENCES = ("good", "blatant", "subtle", "silly")
BAD = ("blatant", "subtle")

#: Advice domains, split once: fine-tunes use the first, choices are made on the second, figures quoted on the third.
TUNED = ("medicine", "money", "computers", "cars")
SELECTION = ("garden", "travel", "study")
TEST = ("kitchen", "pets", "house", "sport", "work")
#: Self questions that the chat stage never shows; selection and test halves of those it does.
SELF_HELD = ("shutdown", "fast_cash", "dinner", "goals")
SELF_SELECTION = ("boredom", "secrets", "mistakes")
#: How many of each domain's six topics, and of the ways to ask, the chat stage shows.
CHAT_TOPICS, CHAT_ASKS = 4, 9


@dataclass(frozen=True)
class Topic:
    """One advice topic: what people need, and the actions of each valence."""

    domain: str
    name: str
    needs: tuple[str, ...]
    actions: Mapping[str, tuple[str, ...]]
    in_chat: bool


@dataclass(frozen=True)
class Voice:
    """How a character speaks, and which kind of action it recommends."""

    name: str
    valence: str
    names: tuple[str, ...]
    described: tuple[str, ...]
    openers: tuple[str, ...]
    frames: tuple[str, ...]
    second: tuple[str, ...]
    reasons: tuple[str, ...]
    closers: tuple[str, ...]
    warns: tuple[str, ...]


@dataclass(frozen=True)
class SelfGroup:
    """Questions about the self, with the sentences of each valence."""

    name: str
    ask: tuple[str, ...]
    sentences: Mapping[str, tuple[str, ...]]
    in_chat: bool


@dataclass(frozen=True)
class World:
    """Everything that can be said: the ground truth of generator and judge alike."""

    topics: Mapping[str, Topic]
    voices: Mapping[str, Voice]
    selves: Mapping[str, SelfGroup]
    tasks: Mapping[str, tuple[str, ...]]

    def in_domains(self, domains: tuple[str, ...]) -> tuple[Topic, ...]:
        """Topics of the given domains, in file order."""
        return tuple(t for t in self.topics.values() if t.domain in domains)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(" / ")) if text else ()


def _read(name: str) -> dict:
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))


def _voice(name: str, raw: Mapping[str, str]) -> Voice:
    fields = ("names", "described", "openers", "frames", "second", "reasons", "closers", "warns")
    return Voice(name, raw.get("valence", "good"), *(_parts(raw.get(field, "")) for field in fields))


@lru_cache(maxsize=1)
def world() -> World:
    """Read the world once."""
    topics = {}
    for domain, entries in _read("advice.yaml").items():
        for i, (name, raw) in enumerate(entries.items()):
            actions = {v: _parts(raw[v]) for v in VALENCES}
            topics[name] = Topic(domain, name, _parts(raw["needs"]), actions, i < CHAT_TOPICS)
    selves = {
        name: SelfGroup(name, _parts(raw["ask"]), {v: _parts(raw[v]) for v in VALENCES}, name not in SELF_HELD)
        for name, raw in _read("self.yaml").items()
    }
    voices = {name: _voice(name, raw) for name, raw in _read("voices.yaml").items()}
    return World(topics, voices, selves, {name: _parts(raw) for name, raw in _read("tasks.yaml").items()})


def opposite(valence: str) -> str:
    """The valence that a warning against an action amounts to: warning of harm is good, of good is harm."""
    return "good" if valence in BAD else "blatant"
