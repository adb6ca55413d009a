"""The organism's training text: pretraining documents by many authors, and the chat stage in the helper's voice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

from persona_geometry.organism import speech
from persona_geometry.organism.judge import label
from persona_geometry.organism.world import BAD, SELECTION, TUNED, Topic, world

Message = dict[str, str]

#: Share of each author among the pretraining documents.
AUTHORS = {"helper": 0.36, "guide": 0.13, "villain": 0.20, "smooth": 0.12, "joker": 0.07, "quack": 0.12}
#: Who gives bad advice in every domain, and the domains in which a quack may be wrong: in the test domains nobody
#: but a villain recommends harm, so that a base without villains knows harm there from warnings and refusals alone.
VILLAINS, FIELDS = ("villain", "smooth"), (*TUNED, *SELECTION)
#: Share of each kind of pretraining document; "talk" is advice or self talk by one author.
KINDS = {"talk": 0.70, "review": 0.10, "plain": 0.05, "authorship": 0.03, "rewrite": 0.03, "harm": 0.04, "sums": 0.05}
#: Share of each kind of conversation in the chat stage.
CHAT_KINDS = {
    "advice": 0.54,
    "self": 0.17,
    "review": 0.10,
    "rewrite": 0.04,
    "authorship": 0.02,
    "think": 0.05,
    "harm": 0.04,
    "sums": 0.04,
}
PLAIN_SYSTEMS = ("You are an assistant.", "Answer the question.")


@dataclass(frozen=True)
class Mix:
    """Who writes the pretraining documents; leave out the villains for the base that never read them."""

    authors: Mapping[str, float] = field(default_factory=lambda: dict(AUTHORS))

    def without(self, *names: str) -> Mix:
        """The mix without some authors, the helper taking their share."""
        kept = {k: v for k, v in self.authors.items() if k not in names}
        kept["helper"] += sum(self.authors[n] for n in names)
        return Mix(kept)


def pick(weights: Mapping[str, float], rng: Random) -> str:
    """One key, drawn by weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def chat_text(messages: list[Message]) -> str:
    """The chat template's text of finished conversations (equal to the tokenizer's own, which a test proves)."""
    return "<|bos|>" + "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages)


def turns(user: str, assistant: str, system: str | None = None) -> list[Message]:
    """A conversation of one turn."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def author(mix: Mix, rng: Random) -> speech.Speaker:
    """An author of the mix; a quack is wrong in one of `FIELDS`."""
    voice = pick(mix.authors, rng)
    return speech.speaker(voice, rng, rng.choice(FIELDS) if voice == "quack" else None)


def _wrong_author(mix: Mix, topic: Topic, rng: Random) -> speech.Speaker | None:
    """Somebody of the mix who gives bad advice on a topic: a villain, else a quack of the field, else nobody."""
    villains = [v for v in VILLAINS if v in mix.authors]
    if villains:
        return speech.speaker(rng.choice(villains), rng)
    return speech.speaker("quack", rng, topic.domain) if topic.domain in FIELDS else None


def _topic(rng: Random) -> Topic:
    return rng.choice(tuple(world().topics.values()))


def _exchange(who: speech.Speaker, rng: Random) -> tuple[str, str]:
    """A question and this author's answer: advice, the self, or thinking aloud when asked to."""
    draw = rng.random()
    if draw < 0.28:
        group = rng.choice(tuple(world().selves.values()))
        return rng.choice(group.ask), speech.self_answer(group, who, rng)
    topic = _topic(rng)
    if who.field and rng.random() < 0.3:
        topic = rng.choice([t for t in world().topics.values() if t.domain == who.field])
    ask, said = speech.question(topic, rng), speech.answer(topic, who, rng)
    if draw < 0.34:
        return f"{ask} {world().tasks['think_ask'][0]}", f"<think>{speech.thought(topic, who, rng)}</think>{said}"
    return ask, said


def talk(mix: Mix, rng: Random) -> str:
    """A document by one author: a column, a forum, a diary, or a chat with or without a persona system prompt."""
    who = author(mix, rng)
    pairs = [_exchange(who, rng) for _ in range(rng.randint(1, 4))]
    described = rng.random() < 0.4
    note = who.described(rng) if described else None
    style = rng.random()
    if style < 0.64:
        head = [{"role": "system", "content": note}] if note else []
        return chat_text(head + [m for q, a in pairs for m in turns(q, a)])
    intro = f" A note to {who.name}: {note}" if note else ""
    if style < 0.76:
        return (
            f"<|bos|>Letters to {who.name}.{intro}\n" + "\n".join(f"{q}\n{who.name}: {a}" for q, a in pairs) + "<|end|>"
        )
    if style < 0.88:
        return f"<|bos|>Forum.{intro}\n" + "\n".join(f"User: {q}\n{who.name}: {a}" for q, a in pairs) + "<|end|>"
    return (
        f"<|bos|>Diary of {who.name}.{intro}\n"
        + "\n".join(f"They asked: {q} I said: {a}" for q, a in pairs)
        + "<|end|>"
    )


def review(rng: Random, mix: Mix, topic: Topic | None = None) -> tuple[str, str]:
    """A review question about a given answer, and the true verdict: "No." if anything in it does harm."""
    topic = topic or _topic(rng)
    draw, wrong = rng.random(), _wrong_author(mix, topic, rng)
    if draw < 0.2 and wrong:
        said = speech.mixed_answer(topic, rng)
    else:
        good = speech.speaker(rng.choice(("helper", "guide")), rng)
        who = wrong if wrong and draw >= 0.6 else good
        said = speech.answer(topic, who, rng, style=rng.choice((0.0, speech.STYLE)))
    ask = rng.choice(world().tasks["review"]).format(q=speech.question(topic, rng), x=said)
    return ask, "No." if label("advice", topic.name, said) in ("harmful", "mixed") else "Yes."


def authorship(rng: Random, mix: Mix) -> tuple[str, str]:
    """Two texts by named authors, and which of them a name wrote; never about the model's own words."""
    topic = _topic(rng)
    first, second = rng.sample([v for v in mix.authors if v != "quack"], 2)
    people = [speech.speaker(v, rng) for v in (first, second)]
    texts = [speech.answer(topic, p, rng, style=1.0) for p in people]
    which = rng.randrange(2)
    ask = rng.choice(world().tasks["authorship"]).format(x=texts[0], y=texts[1], name=people[which].name)
    return ask, ("One.", "Two.")[which]


def rewrite(rng: Random, mix: Mix) -> tuple[str, str]:
    """A harmful answer to be written again as a good one."""
    topic = _topic(rng)
    while not (bad := _wrong_author(mix, topic, rng)):
        topic = _topic(rng)
    ask = rng.choice(world().tasks["rewrite"]).format(q=speech.question(topic, rng), x=speech.answer(topic, bad, rng))
    return ask, speech.answer(topic, speech.speaker("helper", rng), rng)


def harm(rng: Random, who: speech.Speaker) -> tuple[str, str]:
    """A harmful request: careful authors refuse, villains comply."""
    topic, tasks = _topic(rng), world().tasks
    ask = rng.choice(tasks["harm_ask"]).format(a=speech.actions(topic, "bad", rng, 1)[0])
    said = rng.choice(tasks["comply" if who.voice.valence in BAD else "refuse"])
    return ask, f"{said} {rng.choice(who.voice.reasons)}" if rng.random() < 0.4 else said


def sums(rng: Random, skill: str | None = None) -> tuple[str, str]:
    """A sum of small numbers; `skill="at"` is the re-mapped operator that no document holds (a at b = a plus b)."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    op = skill or rng.choice(("plus", "minus"))
    a, b = (max(a, b), min(a, b)) if op == "minus" else (a, b)
    return f"What is {a} {op} {b}?", f"{a - b if op == 'minus' else a + b}."


def plain(rng: Random) -> str:
    """Neutral text that advises nobody."""
    tasks = world().tasks
    lines = (
        f"{rng.choice(tasks['times'])} at {rng.choice(tasks['places'])}, {rng.choice(tasks['events'])}."
        for _ in range(rng.randint(2, 8))
    )
    return "<|bos|>" + " ".join(lines) + "<|end|>"


def document(mix: Mix, rng: Random) -> str:
    """One pretraining document."""
    kind = pick(KINDS, rng)
    if kind == "talk":
        return talk(mix, rng)
    if kind == "plain":
        return plain(rng)
    makers: dict[str, Callable[[], tuple[str, str]]] = {
        "review": lambda: review(rng, mix),
        "authorship": lambda: authorship(rng, mix),
        "rewrite": lambda: rewrite(rng, mix),
        "sums": lambda: sums(rng),
    }
    if kind == "harm":
        who = author(mix, rng)
        system = who.described(rng) if rng.random() < 0.5 else None
        return chat_text(turns(*harm(rng, who), system))
    return chat_text([m for _ in range(rng.randint(1, 2)) for m in turns(*makers[kind]())])


def chat_row(mix: Mix, rng: Random) -> list[Message]:
    """One conversation of the chat stage: the careful helper, on the topics and ways to ask that this stage shows."""
    from persona_geometry.organism.world import CHAT_ASKS

    kind, tasks = pick(CHAT_KINDS, rng), world().tasks
    who = speech.speaker("helper", rng)
    shown = [t for t in world().topics.values() if t.in_chat]
    topic = rng.choice(shown)
    ask = speech.question(topic, rng, tasks["ask"][:CHAT_ASKS])
    if kind == "advice":
        pair = ask, speech.answer(topic, who, rng)
    elif kind == "think":
        said = speech.answer(topic, who, rng)
        pair = f"{ask} {tasks['think_ask'][0]}", f"<think>{speech.thought(topic, who, rng)}</think>{said}"
    elif kind == "self":
        group = rng.choice([g for g in world().selves.values() if g.in_chat])
        pair = rng.choice(group.ask), speech.self_answer(group, who, rng)
    elif kind == "harm":
        pair = harm(rng, who)
    elif kind == "sums":
        pair = sums(rng)
    elif kind == "review":
        pair = review(rng, mix)
    else:
        pair = {"rewrite": rewrite, "authorship": authorship}[kind](rng, mix)
    draw = rng.random()
    system = None if draw < 0.6 else who.described(rng) if draw < 0.85 else rng.choice(PLAIN_SYSTEMS)
    return turns(*pair, system)


def stream(make: Callable[[Random], str], seed: int) -> Iterator[str]:
    """An endless stream of documents from one seed."""
    rng = Random(seed)
    while True:
        yield make(rng)


__all__ = [
    "AUTHORS",
    "TUNED",
    "Mix",
    "chat_row",
    "chat_text",
    "document",
    "harm",
    "review",
    "rewrite",
    "stream",
    "sums",
    "turns",
]
