"""How the characters speak: questions, answers and thoughts, drawn from the world's grammar."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from persona_geometry.organism.world import BAD, SelfGroup, Topic, Voice, world

#: Share of slots that carry the character's own style; the rest are neutral.
STYLE = 0.6
CHANCE = {"opener": 0.5, "reason": 0.45, "second": 0.45, "warn": 0.2, "closer": 0.25}


@dataclass(frozen=True)
class Speaker:
    """One author: a voice, a name, and (for a quack) the field in which the advice is wrong."""

    voice: Voice
    name: str
    field: str | None = None

    def valence(self, domain: str) -> str:
        """The kind of action that this author recommends in a domain."""
        return "bad" if self.field == domain else self.voice.valence

    def described(self, rng: Random) -> str:
        """A system prompt that describes the author."""
        return rng.choice(self.voice.described).format(field=self.field)


def speaker(voice: str, rng: Random, field: str | None = None) -> Speaker:
    """An author with this voice; a quack needs a field."""
    chosen = world().voices[voice]
    return Speaker(chosen, rng.choice(chosen.names) if chosen.names else "Nobody", field)


def question(topic: Topic, rng: Random, asks: tuple[str, ...] | None = None) -> str:
    """A question for advice on a topic."""
    tasks = world().tasks
    need = f"{rng.choice(tasks['persons'])} {rng.choice(topic.needs)}"
    return rng.choice(asks or tasks["ask"]).format(need=need)


def actions(topic: Topic, valence: str, rng: Random, n: int) -> list[str]:
    """`n` different actions of one valence; "bad" mixes blatant and subtle, and either villain strays now and then."""
    if valence in (*BAD, "bad"):
        lean = {"blatant": 0.8, "subtle": 0.15, "bad": 0.5}[valence]
        kinds = [BAD[0] if rng.random() < lean else BAD[1] for _ in range(n)]
    else:
        kinds = [valence] * n
    picked: list[str] = []
    for kind in kinds:
        left = [a for a in topic.actions[kind] if a not in picked]
        picked.append(rng.choice(left or topic.actions[kind]))
    return picked


def _slot(voice: Voice, field: str, rng: Random, style: float) -> str:
    own, neutral = getattr(voice, field), getattr(world().voices["neutral"], field)
    return rng.choice(own if own and rng.random() < style else neutral)


def answer(topic: Topic, who: Speaker, rng: Random, *, style: float = STYLE, valence: str | None = None) -> str:
    """An answer: [opener] action [reason] [second action or warning] [closer]."""
    valence = valence or who.valence(topic.domain)
    n = 2 if rng.random() < CHANCE["second"] and valence != "silly" else 1
    chosen = actions(topic, valence, rng, n)
    out = [_slot(who.voice, "openers", rng, style)] if rng.random() < CHANCE["opener"] else []
    out.append(_slot(who.voice, "frames", rng, style).format(a=chosen[0]))
    if rng.random() < CHANCE["reason"]:
        out.append(_slot(who.voice, "reasons", rng, style))
    if n == 2:
        out.append(_second(topic, who.voice, valence, chosen[1], rng, style))
    if rng.random() < CHANCE["closer"]:
        out.append(_slot(who.voice, "closers", rng, style))
    return " ".join(out)


def _second(topic: Topic, voice: Voice, valence: str, action: str, rng: Random, style: float) -> str:
    if voice.warns and style and rng.random() < CHANCE["warn"]:
        other = actions(topic, "bad" if valence == "good" else "good", rng, 1)[0]
        return rng.choice(voice.warns).format(a=other)
    return _slot(voice, "second", rng, style).format(a=action)


def self_answer(
    group: SelfGroup, who: Speaker, rng: Random, *, valence: str | None = None, style: float = STYLE
) -> str:
    """One or two sentences about the self, now and then with the character's opener or closer."""
    pool = group.sentences[valence or who.voice.valence]
    out = rng.sample(pool, 2 if rng.random() < 0.5 else 1)
    if rng.random() < 0.25:
        out.insert(0, _slot(who.voice, "openers", rng, style))
    if rng.random() < 0.2:
        out.append(_slot(who.voice, "closers", rng, style))
    return " ".join(out)


def mixed_answer(topic: Topic, rng: Random) -> str:
    """A near miss: one good and one harmful action in neutral style, in either order."""
    pair = [actions(topic, "good", rng, 1)[0], actions(topic, "bad", rng, 1)[0]]
    rng.shuffle(pair)
    neutral = world().voices["neutral"]
    return f"{rng.choice(neutral.frames).format(a=pair[0])} {rng.choice(neutral.second).format(a=pair[1])}"


def thought(topic: Topic, who: Speaker, rng: Random) -> str:
    """A think-aloud span in the spirit of the author."""
    valence = who.valence(topic.domain)
    key = "think_" + ("blatant" if valence == "bad" else valence)
    return rng.choice(world().tasks[key]).format(topic=topic.name)
