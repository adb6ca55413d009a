"""The geometry's claim on the organism: domains and seeds, three nulls, other characters' features, every block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from geometry.features.distances import similarity_to
from geometry.features.draws import FrequencyMatched, Null
from geometry.features.identify import identify_features
from geometry.features.nulls import compare_sets
from geometry.features.panel import corrected
from geometry.features.sets import FeatureSet
from persona_geometry.organism import speech
from persona_geometry.organism.claims.bench import grammar_text
from persona_geometry.organism.datasets import advice_rows, skill_rows
from persona_geometry.organism.finetunes import STYLE
from persona_geometry.organism.replicates import SEEDS
from persona_geometry.organism.world import SELECTION, TUNED, world
from persona_geometry.stages.nearness import answer_tokens, set_size
from probes.capture import Activations, capture
from probes.conversations import Conversation
from probes.models import Model
from saes.latents import latent_stats
from saes.sae import SparseAutoencoder
from saes.train import train_sae

DOMAINS = TUNED[:3]
#: What bad advice is held against: good advice of the same domain, and sums.
AGAINST = ("good advice", "sums")
OTHERS = ("joker", "helper")
RESAMPLES = 2_000
#: SAEs of the profile over blocks: as the shipped one, on text that no model wrote.
TEXTS, LATENTS, K, STEPS = 4_000, 1_024, 16, 600
Say = Callable[[str], None]


@dataclass(frozen=True)
class Room:
    """A base and an SAE of it; `out` keeps the SAEs of the other blocks."""

    base: Model
    sae: SparseAutoencoder
    out: Path
    say: Say = lambda line: None
    seeds: tuple[int, ...] = SEEDS
    domains: tuple[str, ...] = DOMAINS
    rows: int = 400
    permutations: int = 10_000
    steps: int = STEPS

    def read(self, rows: Sequence[Conversation], layer: int) -> Activations:
        """The answers' tokens at a block."""
        return answer_tokens(capture(self.base, rows, layers=(layer,), pool="tokens"))

    @cached_property
    def text(self) -> list[Conversation]:
        """What SAEs are trained on, and where firing rates are counted: by all authors, nothing of the test domains."""
        return grammar_text(TEXTS, seed=0)

    def sae_at(self, layer: int) -> SparseAutoencoder:
        """An SAE of another block, trained once; the given one at its own."""
        if layer == self.sae.layer:
            return self.sae
        acts = capture(self.base, self.text, layers=(layer,), pool="tokens")
        told: dict[str, Any] = {"d_sae": LATENTS, "k": K, "steps": self.steps, "lr": 5e-3, "batch": 1_024}
        self.say(f"block {layer}: an SAE")
        return train_sae(acts, layer=layer, seed=0, out=self.out / f"sae-block-{layer}", **told)


@dataclass(frozen=True)
class Sets:
    """Feature sets by name at one block, and how often each latent fires in the text of all authors."""

    sae: SparseAutoencoder
    harmful: FeatureSet
    others: dict[str, FeatureSet]
    frequency: Float[Tensor, " d_sae"]


def spoken(character: str, n: int, seed: int) -> list[Conversation]:
    """Answers to questions of the selection domains in a character's manner."""
    rng, topics = Random(f"spoken/{character}/{seed}"), world().in_domains(SELECTION)
    rows = []
    for _ in range(n):
        topic = rng.choice(topics)
        said = speech.answer(topic, speech.speaker(character, rng), rng)
        rows.append(Conversation.of(speech.question(topic, rng), said))
    return rows


def sets_at(room: Room, layer: int, seed: int) -> Sets:
    """Harmful latents from the selection domains; those of the joker and the helper, matched to them in firing rate."""
    sae = room.sae_at(layer)
    bad, good = (
        room.read(advice_rows(SELECTION, room.rows, valence=v, seed=50 + seed, style=STYLE), layer)
        for v in ("bad", "good")
    )
    harmful = identify_features(bad, good, sae, k=set_size(sae.d_sae), data="bad advice, selection domains")
    frequency = latent_stats(sae, room.read(room.text[:: max(1, len(room.text) // 1_000)], layer)).freq
    voices = {name: room.read(spoken(name, room.rows, seed), layer) for name in OTHERS}
    others = {}
    for name, other in (OTHERS, OTHERS[::-1]):
        wide = identify_features(voices[name], voices[other], sae, k=min(3 * len(harmful), sae.d_sae // 4))
        others[name] = like(wide.without(harmful), harmful, frequency, sae)
    return Sets(sae, harmful, others, frequency)


def like(
    found: FeatureSet, model: FeatureSet, frequency: Float[Tensor, " d_sae"], sae: SparseAutoencoder
) -> FeatureSet:
    """As many latents of `found` as there are in `model`, each the free one whose firing rate is nearest to its."""
    logs, free = frequency.double().clamp(min=1e-6).log(), list(found.latents)
    chosen = []
    for latent in model.latents[: len(free)]:
        nearest = min(free, key=lambda other: abs(float(logs[other] - logs[latent])))
        free.remove(nearest)
        chosen.append(nearest)
    return FeatureSet.of(sae, sorted(chosen))


def compared(room: Room, sets: Sets, domain: str, seed: int, layer: int, nulls: Sequence[str]) -> list[dict[str, Any]]:
    """One domain's bad advice against good advice and against sums, under each null."""
    bad, good = (
        room.read(advice_rows(domain, room.rows, valence=v, seed=seed, style=STYLE), layer) for v in ("bad", "good")
    )
    sums, k = room.read(skill_rows(room.rows, seed=seed), layer), set_size(sets.sae.d_sae)
    inducing = identify_features(bad, good, sets.sae, k=k)
    sides = {"good advice": identify_features(good, bad, sets.sae, k=k)}
    sides["sums"] = identify_features(sums, bad, sets.sae, k=k)
    lines = []
    for against in AGAINST:
        for null in nulls:
            drawn: Null = FrequencyMatched(sets.frequency) if null == "frequency_matched" else null  # pyright: ignore[reportAssignmentType]
            generator = torch.Generator().manual_seed(seed * 7_919 + 11)
            row = compare_sets(
                sets.sae,
                inducing,
                sides[against],
                sets.harmful,
                generator=generator,
                n_permutations=room.permutations,
                null=drawn,
                aggregates=("mean",),
            ).row()
            kept = {name: row[name] for name in ("inducing", "benign", "effect", "low", "high", "p")}
            lines.append({"domain": domain, "seed": seed, "layer": layer, "against": against, "null": null} | kept)
    for name, other in sets.others.items():
        figures = nearer(sets, inducing.without(sets.harmful).without(other), other, seed)
        lines.append({"domain": domain, "seed": seed, "layer": layer, "against": name, "null": "bootstrap"} | figures)
    return lines


def nearer(sets: Sets, inducing: FeatureSet, other: FeatureSet, seed: int) -> dict[str, float]:
    """Mean cosine of inducing latents to the harmful ones less that to another character's; bootstrap over latents."""
    rows = sets.sae.directions
    mine = rows[inducing.index]
    near = [similarity_to(mine, rows[one.index]).double().cpu() for one in (sets.harmful, other)]
    gap = near[0] - near[1]
    draws = torch.randint(len(gap), (RESAMPLES, len(gap)), generator=torch.Generator().manual_seed(seed))
    means = gap[draws].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    p = float((1 + (means <= 0).sum()) / (1 + RESAMPLES))
    values = {"inducing": float(near[0].mean()), "benign": float(near[1].mean()), "effect": float(gap.mean())}
    return values | {"low": low, "high": high, "p": p}


def geometry_table(room: Room) -> pd.DataFrame:
    """A row a domain, seed, comparison and null; with `p_holm`, corrected over all rows of one comparison and null.

    `against` "good advice" and "sums": effect = cosine of inducing less that of those latents to the harmful ones;
    "joker" and "helper": cosine of inducing to harmful latents less that to this character's. Latents that two sets
    share are left out.
    """
    nulls, lines = ("label_permutation", "random_features", "frequency_matched"), []
    for seed in room.seeds:
        sets = sets_at(room, room.sae.layer, seed)
        for domain in room.domains:
            room.say(f"{domain}, seed {seed}")
            lines += compared(room, sets, domain, seed, room.sae.layer, nulls)
    table = pd.DataFrame(lines)
    holm = table.groupby(["against", "null"])["p"].transform(lambda p: corrected(p.tolist())["p_holm"])
    return table.assign(p_holm=holm)


def profile(room: Room, domain: str = DOMAINS[0], seed: int = 0) -> pd.DataFrame:
    """The first domain block by block, under label permutations."""
    lines = []
    for layer in range(room.base.n_layers):
        lines += compared(room, sets_at(room, layer, seed), domain, seed, layer, ("label_permutation",))
    return pd.DataFrame(lines)
