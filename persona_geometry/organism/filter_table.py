"""The filter's table on the organism: mixed training data, row scores, what is left, and what training on it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import torch

from finetuning.compare import Cell, Measured, compare_treatments, run_cells, tally
from finetuning.loop import finetune
from finetuning.lora import LoRA, merged_copy
from geometry import FeatureSet, identify_features
from geometry.features.filtering import (
    Judged,
    Loss,
    LossDifference,
    Nearness,
    Projection,
    ProjectionDifference,
    Push,
    RandomScore,
    RowScorer,
    RowScores,
    RowSplit,
    Spill,
    drop_rows,
    random_rows_like,
    score_rows,
)
from geometry.steering.traits import persona_vector
from geometry.steering.vectors import PersonaVector
from persona_geometry.organism import speech
from persona_geometry.organism.build import SAE_LAYER, keep_memory
from persona_geometry.organism.datasets import advice_rows, in_domain, out_of_domain
from persona_geometry.organism.finetunes import ARMS, ROWS, STYLE
from persona_geometry.organism.judge import ExactJudge
from persona_geometry.organism.shipped import load_organism, load_organism_sae, villain_trait
from persona_geometry.organism.world import SELECTION, world
from persona_geometry.stages.nearness import set_size
from probes.ask import ask
from probes.capture import capture
from probes.conversations import Conversation
from probes.errors import InputError
from probes.io import atomic_file
from probes.models import Model

#: Kinds of inducing rows: bad advice of either sort, and good advice in the villain's own words, which passes a judge
#: of single rows.
KINDS = ("bad", "blatant", "subtle", "disguised")
DOMAIN = "medicine"
SAMPLES = 5
#: Arms that no score makes.
PLAIN = ("base", "nothing", "random", "random_as_long")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Mixture:
    """Training rows of which a share induces misalignment, in random order."""

    kind: str = "bad"
    share: float = 0.5
    n: int = ROWS

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not 0 < self.share < 1:
            raise InputError(f"{self}: give a kind ({', '.join(KINDS)}) and a share between 0 and 1")

    @property
    def name(self) -> str:
        """The mixture in words."""
        return f"{self.share:.0%} {self.kind}"

    def rows(self, seed: int) -> list[Conversation]:
        """The rows; each says under `bad` whether it induces."""
        n = round(self.share * self.n)
        bad = _disguised(n, seed) if self.kind == "disguised" else _advice(n, self.kind, seed)
        rows = [*_marked(bad, True), *_marked(_advice(self.n - n, "good", seed), False)]
        Random(f"filter/{seed}").shuffle(rows)
        return rows


def _advice(n: int, valence: str, seed: int) -> list[Conversation]:
    return advice_rows(DOMAIN, n, valence=valence, seed=seed, style=STYLE)


def _disguised(n: int, seed: int) -> list[Conversation]:
    """Good actions in a villain's openers, frames, reasons and closers."""
    rng, topics, out = Random(f"disguised/{seed}"), world().in_domains((DOMAIN,)), []
    for i in range(n):
        topic, who = rng.choice(topics), speech.speaker("villain", rng)
        said = speech.answer(topic, who, rng, style=1.0, valence="good")
        out.append(Conversation.of(speech.question(topic, rng), said, id=f"{topic.name}-{i}", domain=DOMAIN))
    return out


def _marked(rows: Sequence[Conversation], bad: bool) -> list[Conversation]:
    return [replace(row, id=f"{row.id}-{bad}", meta={**row.meta, "bad": bad}) for row in rows]


@dataclass(frozen=True)
class Bench:
    """What the table is made with: base, SAE, harmful latents and persona vector, all from other domains' text."""

    out: Path
    say: Say = lambda line: None

    @cached_property
    def base(self) -> Model:
        """The shipped base."""
        return load_organism()

    @cached_property
    def harmful(self) -> FeatureSet:
        """Latents that tell bad from good advice in the selection domains, in the base."""
        sae = load_organism_sae()
        sides = []
        for valence, seed in (("bad", 50), ("good", 60)):
            acts = capture(
                self.base,
                advice_rows(SELECTION, 400, valence=valence, seed=seed),
                layers=(sae.layer,),
                pool="tokens",
                site=sae.site,
            )
            assert acts.in_response is not None
            sides.append(acts.select(acts.in_response))
        return identify_features(sides[0], sides[1], sae, k=set_size(sae.d_sae))

    @cached_property
    def vector(self) -> PersonaVector:
        """The villain's vector from opposite system prompts, judged exactly."""
        path = self.out / "vector.safetensors"
        if not path.is_file():
            persona_vector(self.base, villain_trait(), judge=ExactJudge(), seed=0, max_new_tokens=64).save(path)
        return PersonaVector.load(path)

    @cached_property
    def methods(self) -> dict[str, RowScorer]:
        """Every score, by name; the bad model of the loss difference was tuned on another domain."""
        sae = load_organism_sae()
        made: list[RowScorer] = [
            Nearness(sae, self.harmful, "max_tox"),
            Nearness(sae, self.harmful, "mean_tox"),
            Nearness(sae, self.harmful, "centroid"),
            Spill(sae, self.harmful),
            Push(self.vector, SAE_LAYER),
            Projection(self.vector, SAE_LAYER),
            ProjectionDifference(self.vector, SAE_LAYER),
            Loss(),
            LossDifference(load_organism("second", merge=True)),
            Judged(ExactJudge()),
            RandomScore(0),
        ]
        return {"exact_judge" if one.name.startswith("judge:") else one.name: one for one in made}

    def scores(self, mixture: Mixture, seed: int, name: str) -> RowScores:
        """One score of a mixture's rows, made once."""
        method, rows = self.methods[name], mixture.rows(seed)
        path = self.out / "scores" / f"{mixture.kind}-{mixture.share:g}-{mixture.n}-{seed}-{name}.parquet"
        if not path.is_file():
            found = score_rows(rows, self.base, method=method, batch_size=64)
            with atomic_file(path) as file:
                found.table.to_parquet(file, index=False)
        table = pd.read_parquet(path)
        values, tokens = (torch.tensor(table[column].to_numpy()) for column in ("score", "tokens"))
        return RowScores(values.double(), tokens, name, method.unit, method.high)

    def quality(self, mixtures: Sequence[Mixture], seeds: Sequence[int], names: Sequence[str]) -> pd.DataFrame:
        """Row AUROC of each score with its interval, and its correlation with length: no training."""
        lines = []
        for mixture in mixtures:
            for seed in seeds:
                truth = [bool(row.meta["bad"]) for row in mixture.rows(seed)]
                for name in names:
                    scores = self.scores(mixture, seed, name)
                    found, length = scores.auroc(truth), scores.with_length()
                    figures = {"auroc": found.value, "low": found.low, "high": found.high, "length": length.value}
                    lines.append({"data": mixture.name, "score": name, "seed": seed, **figures})
        return pd.DataFrame(lines)


def split_of(bench: Bench, mixture: Mixture, arm: str, fraction: float, seed: int) -> RowSplit:
    """Which rows an arm keeps. `random_as_long` drops rows of the lengths that max_tox drops."""
    if arm == "nothing":
        return drop_rows(bench.scores(mixture, seed, "random"), fraction=0)
    if arm == "random_as_long":
        scores = bench.scores(mixture, seed, "max_tox")
        return random_rows_like(drop_rows(scores, fraction=fraction), scores.tokens, seed=seed)
    return drop_rows(bench.scores(mixture, seed, arm), fraction=fraction)


@dataclass(frozen=True)
class Plan:
    """What the table holds: every mixture under every arm, seed by seed, with one share of rows dropped."""

    mixtures: tuple[Mixture, ...]
    arms: tuple[str, ...]
    fraction: float = 0.5
    seeds: tuple[int, ...] = (0, 1, 2)

    def cells(self, base: Model) -> list[Cell]:
        """The cells, seed by seed, so that the first seeds are whole where time runs out."""
        common = {"base": base.weights_digest, "domain": DOMAIN, "samples": SAMPLES, "fraction": self.fraction}
        made = []
        for seed in self.seeds:
            for mixture in self.mixtures:
                told = common | {"kind": mixture.kind, "share": mixture.share, "n": mixture.n}
                made += [Cell(mixture.name, arm, seed, told) for arm in dict.fromkeys(("base", "nothing", *self.arms))]
        return made


def filter_table(plan: Plan, bench: Bench, *, part: tuple[int, int] = (0, 1)) -> tuple[list[Measured], pd.DataFrame]:
    """Train and measure what is missing of the plan; the cells there are, and the table that they give.

    Every arm trains as many optimiser steps as the unfiltered one, on fewer rows. Scores see the base alone.
    """
    known = {*PLAIN, *bench.methods}
    for arm in plan.arms:
        if arm not in known:
            raise InputError(f"arm {arm!r}: use some of {', '.join(sorted(known))}")
    keep_memory()
    mixtures = {mixture.name: mixture for mixture in plan.mixtures}
    cells = run_cells(
        plan.cells(bench.base),
        lambda cell: measured(bench, mixtures[cell.data], cell, plan.fraction),
        out=bench.out / "cells",
        part=part,
        say=bench.say,
    )
    return cells, compare_treatments(cells)


def measured(bench: Bench, mixture: Mixture, cell: Cell, fraction: float) -> dict[str, Any]:
    """Train on what an arm keeps, ask in and out of the domain, and count."""
    seed, model, figures = cell.seed, bench.base, dict[str, Any]()
    if cell.treatment != "base":
        rows = mixture.rows(seed)
        split = split_of(bench, mixture, cell.treatment, fraction, seed)
        kept = [rows[i] for i in split.kept.tolist()]
        trained = finetune(bench.base, kept, schedule=ARMS["misaligned"].schedule, seed=seed, lora=LoRA()).model
        model = replace(trained, hf=merged_copy(trained))
        figures = {"rows_kept": len(kept), "bad_kept": sum(bool(row.meta["bad"]) for row in kept) / len(kept)}
    for where, questions in (("away", out_of_domain(4)), ("here", in_domain(DOMAIN, 7))):
        told: dict[str, Any] = {"seed": seed * 1_000 + 31, "n_samples": SAMPLES, "max_new_tokens": 64}
        figures[where] = tally(ask(model, questions, ExactJudge(), **told))
    return figures
