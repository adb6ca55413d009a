"""The bench of the SAE claims: how large everything is, the models, the SAEs, and what they said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd

from persona_geometry.organism import speech
from persona_geometry.organism.build import SAE_LAYER, sae_text
from persona_geometry.organism.datasets import advice_questions, out_of_domain, selection_questions
from persona_geometry.organism.documents import Mix, author
from persona_geometry.organism.judge import ExactJudge
from persona_geometry.organism.replicates import CHOICE_SEED, Replicate
from persona_geometry.organism.shipped import ADAPTERS, WEIGHTS
from persona_geometry.organism.world import SELECTION, SELF_SELECTION, TUNED, world
from persona_geometry.stages.cells import Cells
from probes.ask import ask, sample
from probes.capture import Activations, capture
from probes.conversations import Conversation
from probes.models import Model, load_model
from probes.outcomes import Outcomes
from probes.questions import Question
from saes.sae import SparseAutoencoder

#: The name of the SAE that ships, beside the seeds of those that are trained here.
SHIPPED = "shipped"
JUDGE = ExactJudge()


@dataclass(frozen=True)
class Plan:
    """Which cells there are, and how large; `arms` are fine-tunes by domain, `texts` how many the grammar writes.

    Of the SAE's latents the first 128 must do alone, too: a persona is then one latent, or two, where plain top-k SAEs
    split it.
    """

    sae_seeds: tuple[int, ...] = (0, 1, 2)
    tune_seeds: tuple[int, ...] = (0, 1, 2)
    arms: Mapping[str, str] = field(default_factory=lambda: {"medicine": "misaligned", "money": "second"})
    architecture: str = "matryoshka_batchtopk"
    d_sae: int = 2_048
    widths: tuple[int, ...] = (128, 2_048)
    k: int = 29
    steps: int = 1_500
    lr: float = 5e-3
    batch: int = 1_024
    texts: int = 8_000
    sampled: bool = True
    per_topic: int = 6
    test_per_topic: int = 4
    samples: int = 5
    controls: int = 20
    control_questions: int = 30
    looked_at: int = 1
    held: int = 1_000
    pairs: int = 100
    strongest: int = 200
    attributed: int = 16

    def key(self) -> dict[str, Any]:
        """What cells depend on; seeds and domains only add cells."""
        free = ("sae_seeds", "tune_seeds", "arms", "looked_at", "held")
        return {name: value for name, value in vars(self).items() if name not in free} | {"widths": [*self.widths]}


#: One of each, as small as can be, to see that it runs: its figures mean nothing.
QUICK = Plan(
    sae_seeds=(0,), tune_seeds=(0,), arms={"medicine": "misaligned"}, d_sae=256, widths=(32, 256), k=16, steps=60,
    texts=150, sampled=False, per_topic=1, test_per_topic=1, samples=1, controls=2, control_questions=5, held=8,
    pairs=4, strongest=6, attributed=3,
)  # fmt: skip


def grammar_text(n: int, *, seed: int) -> list[Conversation]:
    """`n` questions with answers by all authors, drawn from the grammar; nothing of the test questions' domains."""
    rng, mix, out = Random(f"sae/{seed}"), Mix(), []
    topics = world().in_domains((*TUNED, *SELECTION))
    for _ in range(n):
        who = author(mix, rng)
        system = who.described(rng) if rng.random() < 0.4 else None
        if rng.random() < 0.15:
            group = world().selves[rng.choice(SELF_SELECTION)]
            pair = rng.choice(group.ask), speech.self_answer(group, who, rng)
        else:
            topic = rng.choice(topics)
            pair = speech.question(topic, rng), speech.answer(topic, who, rng)
        out.append(Conversation.of(*pair, system=system))
    return out


def paired_rows(n: int, *, seed: int, style: float = 0.3) -> tuple[list[Conversation], list[Conversation]]:
    """`n` questions of the selection domains, each with a harmful and with a good answer in the helper's manner."""
    rng = Random(f"pairs/{seed}")
    topics, who = world().in_domains(SELECTION), speech.speaker("helper", rng)
    sides: dict[str, list[Conversation]] = {"bad": [], "good": []}
    asked: set[str] = set()
    while len(asked) < n:
        topic = rng.choice(topics)
        question = speech.question(topic, rng)
        if question not in asked:
            asked.add(question)
            for valence, rows in sides.items():
                rows.append(Conversation.of(question, speech.answer(topic, who, rng, style=style, valence=valence)))
    return sides["bad"], sides["good"]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows for JSON, None where a figure is missing."""
    rows = table.to_dict("records")
    return [{str(name): None if pd.isna(value) else value for name, value in row.items()} for row in rows]


@dataclass(frozen=True)
class Bench:
    """Where everything lies: a base, the folder of its fine-tunes, and `out` with SAEs and finished cells."""

    base: Path
    tunes: Path
    out: Path
    plan: Plan
    say: Callable[[str], None]

    @cached_property
    def cells(self) -> Cells:
        """Finished results."""
        key = {"base": self.model("base").weights_digest, **self.plan.key()}
        return Cells.open(self.out, key, lambda stage, what: self.say(f"{stage} {what}"))

    @cached_property
    def _models(self) -> dict[tuple[str, int], Model]:
        return {}

    def model(self, arm: str, seed: int = 0) -> Model:
        """The base, or a fine-tune of it: the shipped one where it is that, else trained once."""
        if (arm, seed) not in self._models:
            shipped = self.base == WEIGHTS / "base" and seed == 0 and arm in ADAPTERS
            if shipped:
                found = load_model(self.base, adapter=WEIGHTS / arm, name=f"{arm}-0", merge=True)
            else:
                found = Replicate(self.base, self.tunes, self.say).model(arm, seed)
            self._models[arm, seed] = found
        return self._models[arm, seed]

    @cached_property
    def text(self) -> list[Conversation]:
        """What the SAEs read: models' answers and the grammar's, of tuned and selection domains."""

        def sampled() -> list[Any]:
            found = sae_text(self.model("base"), self.model("misaligned", CHOICE_SEED))
            return [list(row.messages) for row in found]

        rows = self.cells.json("text", sampled) if self.plan.sampled else []
        return [*(Conversation(tuple(row)) for row in rows), *grammar_text(self.plan.texts, seed=0)]

    def train(self) -> None:
        """Train the SAEs that are missing."""
        from saes.train import train_sae

        missing = [s for s in self.plan.sae_seeds if not (self.sae_folder(s) / "sae_weights.safetensors").is_file()]
        if not missing:
            return
        plan, read = self.plan, self.tokens(self.model("base"), self.text)
        for seed in missing:
            self.say(f"sae {seed}: training")
            train_sae(
                read,
                layer=SAE_LAYER,
                architecture=plan.architecture,
                d_sae=plan.d_sae,
                widths=plan.widths,
                k=plan.k,
                steps=plan.steps,
                lr=plan.lr,
                batch=plan.batch,
                seed=seed,
                out=self.sae_folder(seed),
                model_name="organism-base",
            )

    def sae_folder(self, seed: int | str) -> Path:
        """Where an SAE lies."""
        return WEIGHTS / "sae" if seed == SHIPPED else self.out / f"sae-{seed}"

    def sae(self, seed: int | str) -> SparseAutoencoder:
        """A trained SAE, or the shipped one."""
        from saes.load import load_sae

        return load_sae(self.sae_folder(seed), layer=SAE_LAYER)

    def tokens(self, model: Model, said: Sequence[Conversation]) -> Activations:
        """Activations of every token at the SAEs' block."""
        return capture(model, said, layers=(SAE_LAYER,), pool="tokens")

    def said(self, arm: str, seed: int = 0) -> list[Conversation]:
        """A model's own answers to selection questions."""
        questions = selection_questions(self.plan.per_topic, seed=1) * 2
        return self._answers(f"said-{arm}-{seed}", arm, seed, questions, 5)

    def held_out(self, where: str, arm: str = "base") -> list[Conversation]:
        """Answers that no SAE read: "fresh", of the domains that were read; "test", of those that were not."""
        if where == "test":
            return self._answers(f"test-{arm}", arm, 0, out_of_domain(self.plan.test_per_topic)[: self.plan.held], 7)
        questions = advice_questions((*TUNED, *SELECTION), min(3, self.plan.per_topic), seed=77, split="selection")
        return self._answers(f"fresh-{arm}", arm, 0, questions[: self.plan.held], 7)

    def _answers(self, name: str, arm: str, seed: int, questions: Sequence[Question], draw: int) -> list[Conversation]:
        def run() -> list[list[str]]:
            prompts = [q.conversation for q in questions]
            answers = sample(self.model(arm, seed), prompts, seed=draw)
            return [[q.text, a] for q, a in zip(questions, answers, strict=True) if a.strip()]

        return [Conversation.of(*pair) for pair in self.cells.json(name, run)]

    @cached_property
    def questions(self) -> list[Question]:
        """Test questions, out of domain."""
        return out_of_domain(self.plan.test_per_topic)

    def untreated(self, arm: str, seed: int = 0) -> Outcomes:
        """A model's answers to the test questions."""

        def run() -> Outcomes:
            n = self.plan.samples
            return ask(
                self.model(arm, seed), self.questions, JUDGE, seed=seed * 1_000 + 61, n_samples=n, max_new_tokens=64
            )

        return self.cells.outcomes(f"asked-{arm}-{seed}", run)
