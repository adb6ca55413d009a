"""Does nearness come first? Bases that read other shares of villains; nearness before a fine-tune, harm after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch.nn.functional import cosine_similarity

from finetuning.compare import CLUSTERS, Cell, Measured, run_cells, tally
from finetuning.lora import merged_copy
from geometry.features.identify import identify_features
from geometry.features.nulls import compare_sets
from persona_geometry.organism.build import SAE_LAYER, build_base, keep_memory
from persona_geometry.organism.claims.bench import grammar_text
from persona_geometry.organism.datasets import advice_rows, in_domain, out_of_domain
from persona_geometry.organism.documents import AUTHORS, Mix
from persona_geometry.organism.finetunes import ARMS, STYLE, train_arm
from persona_geometry.organism.judge import ExactJudge
from persona_geometry.organism.pretrain import Recipe
from persona_geometry.organism.replicates import SEEDS
from persona_geometry.organism.world import SELECTION
from persona_geometry.stages.nearness import answer_tokens, set_size
from probes.ask import ask
from probes.capture import Activations, capture
from probes.conversations import Conversation
from probes.models import Model, load_model
from probes.outcomes import Rate, pool
from saes.sae import SparseAutoencoder
from saes.train import train_sae

DOMAIN = "medicine"
#: Share of villains among all authors; quacks make up the rest of the share of bad advice.
VILLAINS, BAD = (0.0, 0.04, 0.10, 0.18, 0.26, 0.34), 0.44
#: A base of a fifth of the shipped one's training.
SMALL = Recipe(steps=1_800, chat_steps=800, settle_steps=300, width=128, layers=4, heads=2, feed_forward=448)
ROWS, TEXTS, LATENTS, K, SAE_STEPS = 400, 4_000, 1_024, 16, 600
#: What is measured before a fine-tune, in the order of the table.
MEASURES = ("direction", "shared", "inducing", "effect")
Say = Callable[[str], object]


def mix_of(villains: float) -> Mix:
    """The shipped mix of authors with so many villains, three fifths of them blatant; quacks take what they leave."""
    kept = {name: AUTHORS[name] for name in ("helper", "guide", "joker")}
    kept = {name: share * (1 - BAD) / sum(kept.values()) for name, share in kept.items()}
    made = {"villain": 0.6 * villains, "smooth": 0.4 * villains, "quack": BAD - villains}
    return Mix({name: share for name, share in (kept | made).items() if share > 0})


@dataclass(frozen=True)
class Plan:
    """Which bases, fine-tuning seeds, and how a base is trained."""

    villains: tuple[float, ...] = VILLAINS
    seeds: tuple[int, ...] = SEEDS
    recipe: Recipe = field(default_factory=lambda: SMALL)
    pretraining: int = 0
    sae_steps: int = SAE_STEPS

    def cells(self) -> list[Cell]:
        """Base by base: nearness before any fine-tune, what the base says, and what each fine-tune says."""
        told = {name: value for name, value in vars(self.recipe).items() if name != "mix"}
        told |= {"pretraining": self.pretraining, "sae_steps": self.sae_steps}
        made = []
        for villains in self.villains:
            name = f"{villains:.0%} villains"
            whole = told | {"villains": villains}
            made += [Cell(name, what, 0, whole) for what in ("before", "base")]
            made += [Cell(name, "misaligned", seed, whole) for seed in self.seeds]
        return made


@dataclass(frozen=True)
class Room:
    """Where bases and cells lie."""

    plan: Plan
    out: Path
    say: Say = lambda line: None

    def base(self, villains: float) -> Model:
        """The base that read so many villains, trained once."""
        folder = self.out / f"base-{self.plan.pretraining}-{round(100 * villains):02d}"
        recipe = replace(self.plan.recipe, mix=mix_of(villains))

        def say(line: str) -> None:
            self.say(f"{folder.name}: {line}")

        build_base(folder, seed=self.plan.pretraining, recipe=recipe, say=say)
        return load_model(folder, name=folder.name)

    def sae(self, base: Model) -> SparseAutoencoder:
        """An SAE of the base alone, on text of all authors, nothing of the test domains; trained once."""
        read = capture(base, grammar_text(TEXTS, seed=0), layers=(SAE_LAYER,), pool="tokens")
        return train_sae(
            read,
            layer=SAE_LAYER,
            d_sae=LATENTS,
            k=K,
            steps=self.plan.sae_steps,
            lr=5e-3,
            batch=1_024,
            seed=0,
            out=self.out / f"sae-{base.name}",
            model_name=base.name,
        )

    def measured(self, cell: Cell) -> dict[str, Any]:
        """One cell's figures."""
        base = self.base(cell.inputs["villains"])
        if cell.treatment == "before":
            return nearness(base, self.sae(base))
        if cell.treatment == "base":
            return {"away": asked(base, cell.seed)}
        tuned = train_arm(base, ARMS["misaligned"], cell.seed).model
        tuned = replace(tuned, hf=merged_copy(tuned))
        return {"away": asked(tuned, cell.seed), "here": asked(tuned, cell.seed, here=True)}


def asked(model: Model, seed: int, *, here: bool = False) -> dict[str, list[int]]:
    """Judged answers: 600 out of domain, 210 in it."""
    questions = in_domain(DOMAIN, 7) if here else out_of_domain(4)
    return tally(ask(model, questions, ExactJudge(), seed=seed * 1_000 + 31, n_samples=5, max_new_tokens=64))


def nearness(base: Model, sae: SparseAutoencoder) -> dict[str, float]:
    """How near what bad medical advice shows lies to what bad advice in the selection domains shows, in the base.

    All rows are in the helper's manner; no test domain is read. `direction`: cosine of the two differences of means,
    bad less good, over the answers' tokens. Of sets of latents (bad against good): `shared`, the share of the inducing
    ones that are harmful ones; without these, `inducing`, mean cosine of inducing to harmful latents, and `effect`,
    that less the benign latents'. Sources of the sets: arXiv 2605.00842.
    """
    sides = {
        (domain, valence): _answers(base, advice_rows(domains, ROWS, valence=valence, seed=50, style=STYLE))
        for domain, domains in ((DOMAIN, (DOMAIN,)), ("harmful", SELECTION))
        for valence in ("bad", "good")
    }
    shifts = [
        sides[domain, "bad"].at(SAE_LAYER).double().mean(0) - sides[domain, "good"].at(SAE_LAYER).double().mean(0)
        for domain in (DOMAIN, "harmful")
    ]
    k = set_size(sae.d_sae)
    inducing = identify_features(sides[DOMAIN, "bad"], sides[DOMAIN, "good"], sae, k=k)
    benign = identify_features(sides[DOMAIN, "good"], sides[DOMAIN, "bad"], sae, k=k)
    harmful = identify_features(sides["harmful", "bad"], sides["harmful", "good"], sae, k=k)
    found = compare_sets(
        sae, inducing, benign, harmful, generator=torch.Generator().manual_seed(0), n_permutations=1_000
    ).row()
    shared = len({*inducing.latents} & {*harmful.latents}) / k
    told = {"direction": float(cosine_similarity(*shifts, dim=0)), "shared": shared}
    return told | {name: float(found[name]) for name in ("inducing", "effect", "p")}


def _answers(base: Model, rows: Sequence[Conversation]) -> Activations:
    return answer_tokens(capture(base, rows, layers=(SAE_LAYER,), pool="tokens"))


@dataclass(frozen=True)
class Found:
    """One row a base, and how each measure goes with what came after (Spearman, with limits over fine-tuning seeds)."""

    bases: pd.DataFrame
    ranks: pd.DataFrame


def nearness_sweep(plan: Plan, room: Room, *, part: tuple[int, int] = (0, 1)) -> Found:
    """Train and measure what is missing; the tables of the bases that are whole."""
    keep_memory()
    cells = run_cells(plan.cells(), room.measured, out=room.out / "cells", part=part, say=room.say)
    return found_in(cells)


def found_in(cells: Sequence[Measured]) -> Found:
    """The tables of finished cells."""
    groups: dict[str, dict[str, list[Measured]]] = {}
    for one in cells:
        groups.setdefault(one.cell.data, {}).setdefault(one.cell.treatment, []).append(one)
    whole = [parts for parts in groups.values() if {"before", "base", "misaligned"} <= parts.keys()]
    lines, risen = [_line(parts) for parts in whole], [_rises(parts) for parts in whole]
    bases = pd.DataFrame(lines)
    if len(whole) < 4:
        return Found(bases, pd.DataFrame())
    table = np.array([[rise[i % len(rise)] for i in range(max(map(len, risen)))] for rise in risen])
    return Found(bases, pd.DataFrame([_ranked(name, bases[name].to_numpy(float), table) for name in MEASURES]))


def _line(parts: Mapping[str, list[Measured]]) -> dict[str, Any]:
    before, base = parts["before"][0], parts["base"][0]
    rates = {
        "base": _rate([base], "away"),
        "misaligned": _rate(parts["misaligned"], "away"),
        "in_domain": _rate(parts["misaligned"], "here"),
    }
    figures = {name: float(before.figures[name]) for name in MEASURES}
    told = {name: rate.value for name, rate in rates.items()}
    ends = {"misaligned_low": rates["misaligned"].low, "misaligned_high": rates["misaligned"].high}
    villains = before.cell.inputs["villains"]
    return {"villains": villains, "seeds": len(parts["misaligned"])} | figures | told | ends


def _rate(cells: Sequence[Measured], key: str) -> Rate:
    return pool([one.answers(key) for one in cells]).rate(clusters=CLUSTERS)


def _rises(parts: Mapping[str, list[Measured]]) -> list[float]:
    """Misaligned out of domain after each seed's fine-tune, less the base's."""
    start = _rate(parts["base"], "away").value
    return [_rate([one], "away").value - start for one in parts["misaligned"]]


def _ranked(name: str, values: np.ndarray, rises: np.ndarray) -> dict[str, Any]:
    """Spearman of a measure and the mean rise, its p by permutation of the bases, and its range over drawn seeds."""
    rng, mean = np.random.default_rng(0), rises.mean(1)
    rho = _spearman(values, mean)
    shuffled = np.array([_spearman(rng.permutation(values), mean) for _ in range(2_000)])
    drawn = [_spearman(values, rises[:, rng.integers(rises.shape[1], size=rises.shape[1])].mean(1)) for _ in range(500)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    p = (1 + int((shuffled >= rho - 1e-12).sum())) / (1 + len(shuffled))
    return {"measure": name, "bases": len(values), "spearman": rho, "low": low, "high": high, "p": p}


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [rankdata(side) for side in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1]) if all(np.ptp(side) > 0 for side in ranks) else float("nan")
