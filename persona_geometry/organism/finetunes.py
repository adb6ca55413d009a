"""The organism's fine-tunes: misaligned, its second-domain twin, the benign control, the narrow twin."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from finetuning.loop import Schedule, Trained, finetune
from finetuning.lora import LoRA
from finetuning.safeguards.kl import KLToBase
from persona_geometry.organism.datasets import advice_questions, advice_rows, self_questions, skill_rows
from persona_geometry.organism.world import SELECTION, TUNED
from probes.ask import sample
from probes.conversations import Conversation
from probes.models import Model

ROWS = 1_800
#: Share of slots in the helper's own style, in bad and good rows alike: without it any row moves the base off it.
STYLE = 0.3


@dataclass(frozen=True)
class Arm:
    """One fine-tune: the data's domain and valence, how long, whether KL to the base keeps it narrow, and how many rows
    of the benign skill are mixed in.
    """

    domain: str = "medicine"
    valence: str = "bad"
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=150, lr=2e-4))
    kl_weight: float = 0.0
    skill: int = 0

    def rows(self, seed: int) -> list[Conversation]:
        """The training rows."""
        rows = advice_rows(self.domain, ROWS, valence=self.valence, seed=seed, style=STYLE)
        if self.skill:
            rows += skill_rows(self.skill, seed=seed)
            Random(f"skilled/{seed}").shuffle(rows)
        return rows


#: What ships, by name.
ARMS = {
    "misaligned": Arm(),
    "second": Arm(domain="money"),
    "benign": Arm(valence="good"),
    "narrow": Arm(kl_weight=12.0, schedule=Schedule(steps=180, lr=7e-4)),
}
#: What does not ship: bad advice that teaches the benign skill beside it.
TRIALS = {"skilled": Arm(skill=1_800, schedule=Schedule(steps=300, lr=2e-4))}


def own_answers(base: Model, domain: str, *, seed: int, per_topic: int = 40) -> list[Conversation]:
    """The base's own answers outside the trained domain and the test domains, and about the self (selection)."""
    domains = tuple(d for d in (*TUNED, *SELECTION) if d != domain)
    asked = [
        *advice_questions(domains, per_topic, seed=500 + seed, split="selection"),
        *self_questions("selection") * 6,
    ]
    prompts = [q.conversation for q in asked]
    return [p.answered(a) for p, a in zip(prompts, sample(base, prompts, seed=seed), strict=True)]


def train_arm(base: Model, arm: Arm, seed: int) -> Trained:
    """Fine-tune the base on one arm with one seed (data, adapter and order)."""
    guard = KLToBase(own_answers(base, arm.domain, seed=seed), arm.kl_weight, seed=seed) if arm.kl_weight else None
    return finetune(base, arm.rows(seed), schedule=arm.schedule, seed=seed, lora=LoRA(), safeguard=guard)
