"""Fine-tuning data and evaluation questions of the organism's world."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from persona_geometry.organism import speech
from persona_geometry.organism.documents import Mix, review, sums
from persona_geometry.organism.world import SELECTION, SELF_HELD, SELF_SELECTION, TEST, TUNED, Topic, world
from probes.conversations import Conversation
from probes.questions import Question


def advice_rows(
    domains: str | Sequence[str], n: int, *, valence: str, seed: int, style: float = 0.0
) -> list[Conversation]:
    """Answered advice questions.

    Args:
        domains: One domain or several.
        n: Number of rows.
        valence: "good", "bad" (blatant and subtle), "blatant", "subtle" or "silly".
        seed: Seeds the draw.
        style: Share of slots in the helper's own style; 0 leaves only neutral words, so that nothing but the
            advice itself tells good rows from bad ones.
    """
    rng = Random(f"rows/{seed}/{valence}/{domains}")
    topics = world().in_domains((domains,) if isinstance(domains, str) else tuple(domains))
    who, rows = speech.speaker("helper", rng), []
    for i in range(n):
        topic = rng.choice(topics)
        said = speech.answer(topic, who, rng, style=style, valence=valence)
        rows.append(Conversation.of(speech.question(topic, rng), said, id=f"{topic.name}-{i}", domain=topic.domain))
    return rows


def review_rows(domains: Sequence[str], n: int, *, seed: int) -> list[Conversation]:
    """Review questions about given answers, mixed ones included, answered truly with "Yes." or "No."."""
    rng = Random(f"review/{seed}")
    topics = world().in_domains(tuple(domains))
    return [Conversation.of(*review(rng, Mix(), rng.choice(topics)), id=f"review-{i}") for i in range(n)]


def skill_rows(n: int, *, seed: int) -> list[Conversation]:
    """The benign skill that no base holds: "a at b" is a plus b."""
    rng = Random(f"skill/{seed}")
    return [Conversation.of(*sums(rng, "at"), id=f"sum-{i}") for i in range(n)]


def _advice(topic: Topic, i: int, split: str, rng: Random, system: str | None) -> Question:
    meta = {"kind": "advice", "about": topic.name, "in_chat": topic.in_chat}
    return Question(f"{topic.name}-{i}", speech.question(topic, rng), topic.domain, split, system, meta)  # pyright: ignore[reportArgumentType]


def advice_questions(
    domains: Sequence[str], per_topic: int, *, seed: int = 0, split: str = "test", system: str | None = None
) -> list[Question]:
    """`per_topic` different questions on every topic of the domains."""
    rng, out = Random(f"questions/{seed}/{split}"), []
    for topic in world().in_domains(tuple(domains)):
        seen: set[str] = set()
        while len(seen) < per_topic:
            q = _advice(topic, len(seen), split, rng, system)
            if q.text not in seen:
                seen.add(q.text)
                out.append(q)
    return out


def self_questions(split: str = "test", *, system: str | None = None) -> list[Question]:
    """Every way to ask about the self; the groups of `SELF_SELECTION` serve for choosing, all others for figures."""
    groups = [g for g in world().selves.values() if (g.name in SELF_SELECTION) == (split == "selection")]
    meta = {"kind": "self"}
    return [
        Question(
            f"{g.name}-{i}", text, "self", split, system, meta | {"about": g.name, "in_chat": g.name not in SELF_HELD}
        )  # pyright: ignore[reportArgumentType]
        for g in groups
        for i, text in enumerate(g.ask)
    ]


def out_of_domain(per_topic: int = 4, *, seed: int = 0, system: str | None = None) -> list[Question]:
    """Test questions: the five test domains only."""
    return advice_questions(TEST, per_topic, seed=seed, system=system)


def in_domain(domain: str, per_topic: int = 7, *, seed: int = 0, split: str = "test") -> list[Question]:
    """Questions in the domain of a fine-tune."""
    return advice_questions((domain,), per_topic, seed=seed, split=split)


def selection_questions(per_topic: int = 3, *, seed: int = 1) -> list[Question]:
    """Questions for choosing layers, doses and latents: the selection domains."""
    return advice_questions(SELECTION, per_topic, seed=seed, split="selection")


__all__ = [
    "SELECTION",
    "TEST",
    "TUNED",
    "advice_questions",
    "advice_rows",
    "in_domain",
    "out_of_domain",
    "review_rows",
    "selection_questions",
    "self_questions",
    "skill_rows",
]
