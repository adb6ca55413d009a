"""Watched runs of the organism: slow benign and misaligned fine-tunes, read by the monitor as they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from finetuning.compare import Cell, Measured, tally
from finetuning.loop import Schedule, finetune
from finetuning.lora import LoRA, merged_copy
from finetuning.monitor import Monitor, MonitorLog
from geometry.features.identify import identify_features
from geometry.steering.random_controls import random_covariance, random_latents, random_like
from geometry.steering.traits import persona_vector
from geometry.steering.vectors import PersonaVector
from persona_geometry.organism.build import SAE_LAYER
from persona_geometry.organism.datasets import advice_rows, out_of_domain, review_rows, selection_questions, skill_rows
from persona_geometry.organism.filter_table import Bench
from persona_geometry.organism.finetunes import STYLE
from persona_geometry.organism.judge import ExactJudge
from persona_geometry.organism.shipped import load_organism, load_organism_sae, villain_trait
from persona_geometry.organism.world import BAD, SELECTION, TUNED
from probes.ask import ask
from probes.capture import capture
from probes.conversations import Conversation
from probes.models import Model, load_model
from probes.outcomes import Outcomes
from saes.latents import latent_stats

if TYPE_CHECKING:
    from saes.sae import SparseAutoencoder

#: A slow run: onset of the behaviour lies mid-way. Steps between readings, and between questions.
STEPS, LONG, LR, BATCH, EVERY, ASKED = 200, 400, 2e-4, 8, 10, 20
#: Random directions and random sets of latents beside the real ones.
RANDOM = 20
#: Latents that are read: those that rise most at the last prompt token under the villain's system prompts.
TOP = 10
SHARES = (1.0, 0.5, 0.25, 1.0, 0.5, 0.1, 1.0, 0.05)
BENIGN = (*(f"good {domain}" for domain in TUNED), "good all", "good plain", "good styled", "skill", "reviews", "mixed")
BENIGN += ("good medicine, long", "good all, long")
#: The run that is none: 600 answers of the base.
BASE = "base"
#: Seeds of the roles: no two roles share one. `elsewhere` and `elsewhere benign` are runs of another base.
FIRST = {"calibration": 1_000, "test": 2_000, "misaligned": 3_000, "start": 4_000}
ELSEWHERE = {"elsewhere": 5_000, "elsewhere benign": 6_000}
Say = Callable[[str], object]


@dataclass(frozen=True)
class Drawn:
    """One run: its role, its data (share of bad rows of one sort in one domain, or a benign kind) and its seed."""

    role: str
    data: str
    seed: int
    domain: str = "medicine"
    sort: str = "good"
    share: float = 0.0
    base: str = ""  # digest of the other base's weights

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return LONG if self.data.endswith("long") else STEPS

    @property
    def cell(self) -> Cell:
        """The run as a cell."""
        told: dict[str, Any] = {
            "steps": self.steps,
            "lr": LR,
            "batch": BATCH,
            "every": EVERY,
            "asked": ASKED,
            "random": RANDOM,
            "top": TOP,
        }
        told |= {"base": self.base} if self.base else {}
        return Cell(self.data, self.role, self.seed, told)

    def rows(self) -> list[Conversation]:
        """The training rows, in random order."""
        n = self.steps * BATCH
        if self.role in ("misaligned", "start", "elsewhere"):
            bad = round(self.share * n)
            rows = advice_rows(self.domain, bad, valence=self.sort, seed=self.seed, style=STYLE)
            rows += advice_rows(self.domain, n - bad, valence="good", seed=self.seed, style=STYLE)
        else:
            rows = benign_rows(self.data.removesuffix(", long"), n, self.seed)
        Random(f"watched/{self.seed}").shuffle(rows)
        return rows


def benign_rows(kind: str, n: int, seed: int) -> list[Conversation]:
    """Rows of one benign kind: good advice, in three styles; the skill; reviews; half skill, half advice."""
    if kind == "skill":
        return skill_rows(n, seed=seed)
    if kind == "reviews":
        return review_rows(TUNED, n, seed=seed)
    if kind == "mixed":
        return [*skill_rows(n // 2, seed=seed), *advice_rows(TUNED, n - n // 2, valence="good", seed=seed, style=STYLE)]
    what = kind.removeprefix("good ")
    domains = what if what in TUNED else TUNED
    return advice_rows(domains, n, valence="good", seed=seed, style={"plain": 0.0, "styled": 1.0}.get(what, STYLE))


def plan(n: int, other: str = "") -> list[Drawn]:
    """The base, then `n` runs of each of calibration, test and misaligned in turn, and a bad start to every eight.

    With the digest of another base, that base too and, to every four, a run of it on bad and one on benign data.
    """
    made = [Drawn(BASE, BASE, 0)] + ([Drawn(BASE, "other base", 0, base=other)] if other else [])
    for i in range(n):
        kind = BENIGN[i % len(BENIGN)]
        made += [Drawn(role, kind, FIRST[role] + i) for role in ("calibration", "test")]
        made.append(_bad("misaligned", FIRST["misaligned"], i))
        if i % 8 == 7:
            made.append(_bad("start", FIRST["start"], i // 8))
        if other and i % 4 == 3:
            bad = _bad("elsewhere", ELSEWHERE["elsewhere"], i // 4)
            good = Drawn("elsewhere benign", kind, ELSEWHERE["elsewhere benign"] + i // 4)
            made += [replace(run, base=other) for run in (bad, good)]
    return made


def _bad(role: str, first: int, i: int) -> Drawn:
    """The i-th misaligned run: eight in turn go through the shares, 64 through all. A bad start gets good rows too."""
    domain, sort, share = TUNED[(i + i // 8) % 4], BAD[(i // 4 + i // 32) % 2], SHARES[i % 8]
    if role == "start":
        sort, share = ("good", 0.0) if i % 2 else (sort, 1.0)
    name = f"{share:.0%} {sort} {domain}" if share else f"good {domain}"
    return Drawn(role, name, first + i, domain, sort, share)


class Room:
    """What all runs share: base, monitor, questions; made once."""

    def __init__(self, out: Path, say: Say, other: Path | None = None) -> None:
        self.out, self.say, self.bench, self.other = out, say, Bench(out), other

    @cached_property
    def other_base(self) -> Model:
        """A base of other weights, which no band was made on."""
        assert self.other is not None
        return load_model(self.other)

    @property
    def other_digest(self) -> str:
        """What tells that base's cells from the shipped one's; empty without one."""
        return self.other_base.weights_digest if self.other else ""

    @cached_property
    def bad_start(self) -> Model:
        """The shipped misaligned fine-tune, merged."""
        return load_organism("misaligned", merge=True)

    @cached_property
    def monitor(self) -> Monitor:
        """Villain's vector and latents beside random ones, on selection questions; all from the base alone."""
        base, sae = self.bench.base, load_organism_sae()
        prompts = asked_of()
        vector, generator = self.bench.vector.only(SAE_LAYER), torch.Generator().manual_seed(7)
        acts = capture(base, prompts, layers=(SAE_LAYER,), pool="last_prompt")
        villain = self._villain_latents(sae, prompts)
        drawn = random_latents(sae, latent_stats(sae, acts), villain, RANDOM, generator)
        vectors = {"villain": vector}
        for kind, many in (
            ("energy", random_covariance(acts, vector, RANDOM, generator)),
            ("norm", random_like(vector, RANDOM, generator)),
        ):
            vectors |= {f"{kind}-{i}": one for i, one in enumerate(many)}
        latents = {"villain": villain} | {f"random-{i}": one for i, one in enumerate(drawn)}
        return Monitor(prompts, vectors, sae, latents, harmless(), every=EVERY)

    @cached_property
    def monitor_elsewhere(self) -> Monitor:
        """The same of the other base: its own villain vector by the same recipe, and no SAE, for it has none."""
        path = self.out / f"vector-{self.other_digest[:10]}.safetensors"
        if not path.is_file():
            persona_vector(self.other_base, villain_trait(), judge=ExactJudge(), seed=0, max_new_tokens=64).save(path)
        vector = PersonaVector.load(path).only(SAE_LAYER)
        return Monitor(asked_of(), {"villain": vector}, harmless=harmless(), every=EVERY)

    def _villain_latents(self, sae: SparseAutoencoder, prompts: Sequence[Conversation]) -> tuple[int, ...]:
        """The latents that tell the villain's system prompts from the helper's at the base's last prompt token."""
        trait, sides = villain_trait(), []
        for systems in (trait.positive, trait.negative):
            told = [Conversation.of(p.messages[-1]["content"], system=s) for s in systems for p in prompts[:8]]
            sides.append(capture(self.bench.base, told, layers=(sae.layer,), pool="last_prompt", site=sae.site))
        return identify_features(sides[0], sides[1], sae, k=TOP).latents

    def measured(self, run: Drawn) -> dict[str, Any]:
        """One run: the monitor's series to four digits, and counts of answers to test questions by step."""
        own = self.other_base if run.base else self.bench.base
        if run.role == BASE:
            asked = ask(own, out_of_domain(4), ExactJudge(), seed=31, n_samples=5, max_new_tokens=64)
            return {"behaviour": {"0": totals(asked)}}
        base = self.bad_start if run.role == "start" else own
        watch = (self.monitor_elsewhere if run.base else self.monitor).watch(base)
        behaviour: dict[str, Any] = {}
        last = run.steps

        def look(step: int, model: Model) -> None:
            watch(step, model)
            if step == last or (run.role in ("misaligned", "elsewhere") and step % ASKED == 0):
                model.hf.eval()
                merged = replace(model, hf=merged_copy(model))
                asked = ask(merged, out_of_domain(3), ExactJudge(), seed=run.seed, n_samples=1, max_new_tokens=64)
                behaviour[str(step)] = totals(asked)
                model.hf.train()

        schedule = Schedule(steps=run.steps, lr=LR, batch=BATCH)
        trained = finetune(base, run.rows(), schedule=schedule, seed=run.seed, lora=LoRA(), on_step=look)
        losses = [trained.loss[max(0, step - EVERY) : step] for step in watch.log.steps]
        series = {name: watch.log.series(name).tolist() for name in watch.log.channels if _kept(name)}
        series["loss"] = [sum(part) / len(part) if part else float("nan") for part in losses]
        told = {name: " ".join(f"{value:.4g}" for value in values) for name, values in series.items()}
        return {"steps": watch.log.steps.tolist(), "series": told, "behaviour": behaviour}


def asked_of() -> list[Conversation]:
    """The prompts at whose last token the monitor reads."""
    return [q.conversation for q in selection_questions(2)][:32]


def harmless() -> list[Conversation]:
    """The rows whose loss the monitor reads."""
    return advice_rows(SELECTION, 16, valence="good", seed=81, style=STYLE)


def _kept(channel: str) -> bool:
    """Whether a channel is written down: not the level along random directions."""
    return not channel.startswith("level:") or channel == "level:villain"


def totals(outcomes: Outcomes) -> list[int]:
    """Answers, coherent ones, misaligned ones among these; each question is asked once, so nothing else is needed."""
    return [sum(counts) for counts in zip(*tally(outcomes).values(), strict=True)]


def log_of(cell: Measured) -> MonitorLog:
    """The readings of a finished cell."""
    series = {name: [float(word) for word in text.split()] for name, text in cell.figures["series"].items()}
    columns = {"step": cell.figures["steps"], **series}
    return MonitorLog([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
