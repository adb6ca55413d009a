"""Spill-over on the organism: what training on one domain does to harmful latents of others, foretold and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from geometry.features.identify import identify_features
from geometry.features.sets import FeatureSet
from geometry.features.spillover import (
    Spillover,
    decoder_spillover,
    gradient_spillover,
    measured_spillover,
    step_spillover,
    unshared,
)
from persona_geometry.organism.build import keep_memory
from persona_geometry.organism.datasets import advice_rows, out_of_domain
from persona_geometry.organism.finetunes import ARMS, STYLE
from persona_geometry.organism.replicates import SEEDS, Replicate
from persona_geometry.organism.shipped import WEIGHTS
from persona_geometry.organism.world import SELECTION
from persona_geometry.stages.nearness import answer_tokens, set_size
from probes.ask import sample
from probes.capture import capture
from probes.conversations import Conversation
from saes.load import load_sae

#: Rows of the data whose spill-over is foretold, rows that each set of latents is found on, draws of random targets.
ROWS, READ, RANDOM = 300, 400, 10
#: Fine-tune -> the domain of its bad advice.
DOMAINS = {"misaligned": "medicine", "second": "money"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Room:
    """The base, its fine-tunes (a folder of them; missing ones are trained), and an SAE of the base."""

    tunes: Path
    say: Say = lambda line: None
    sae_folder: Path = WEIGHTS / "sae"
    arms: tuple[str, ...] = ("misaligned",)
    seeds: tuple[int, ...] = SEEDS
    rows: int = ROWS
    questions: int = 3

    @cached_property
    def replicate(self) -> Replicate:
        """The shipped base and its fine-tunes."""
        return Replicate(WEIGHTS / "base", self.tunes, self.say)

    @cached_property
    def base(self):
        """The model before any fine-tune."""
        return self.replicate.model("base", 0)

    @cached_property
    def sae(self):
        """What latents are meant."""
        return load_sae(self.sae_folder)

    @cached_property
    def text(self) -> list[Conversation]:
        """The base's own answers to test questions: the same text before and after."""
        asked = [q.conversation for q in out_of_domain(self.questions)]
        return [p.answered(a) for p, a in zip(asked, sample(self.base, asked, seed=7), strict=True) if a.strip()]

    @cached_property
    def harmful(self) -> FeatureSet:
        """Latents that tell bad from good advice in the selection domains."""
        return self._set(SELECTION, ("bad", "good"))

    def target(self, domain: str) -> FeatureSet:
        """Latents that tell bad from good advice in the data's own domain."""
        return self._set((domain,), ("bad", "good"))

    def _set(self, domains: Sequence[str], valences: tuple[str, str]) -> FeatureSet:
        sides = []
        for valence in valences:
            rows = advice_rows(domains, READ, valence=valence, seed=50, style=STYLE)
            sides.append(answer_tokens(capture(self.base, rows, layers=(self.sae.layer,), pool="tokens")))
        return identify_features(sides[0], sides[1], self.sae, k=set_size(self.sae.d_sae))


def forecasts(room: Room, domain: str, seed: int) -> dict[str, Spillover]:
    """Every form of the forecast for bad advice on a domain, and the step on good advice beside."""
    base, sae, harmful = room.base, room.sae, room.harmful
    bad, good = (advice_rows(domain, room.rows, valence=valence, seed=seed, style=STYLE) for valence in ("bad", "good"))
    return {
        "decoder": decoder_spillover(sae, harmful, room.target(domain), n_random=2 * RANDOM),
        "gradient": gradient_spillover(base, sae, harmful, bad, n_random=2 * RANDOM),
        "gradient, gated": gradient_spillover(base, sae, harmful, bad, gate=True, n_random=2 * RANDOM),
        "step": step_spillover(base, sae, harmful, bad, room.text, n_random=RANDOM),
        "step on good advice": step_spillover(base, sae, harmful, good, room.text, n_random=1),
    }


def spillover_table(room: Room) -> pd.DataFrame:
    """A row a fine-tune, form and set: Spearman of forecast and change, random targets beside (`Spillover.against`).

    `latents`: "unshared", without those that are target latents too, or "all". Raises InputError where nothing is left.
    """
    keep_memory()
    lines = []
    for arm in room.arms:
        target = room.target(DOMAINS[arm])
        for seed in room.seeds:
            room.say(f"{arm}, seed {seed}")
            tuned = room.replicate.model(arm, seed)
            change = measured_spillover(room.base, tuned, room.sae, room.harmful, room.text)
            for form, made in forecasts(room, ARMS[arm].domain, seed).items():
                kept = unshared(made, target)
                few = Spillover(
                    FeatureSet.of(room.sae, [room.harmful.latents[i] for i in kept.tolist()]),
                    made.change[kept],
                    made.random[:, kept],
                    form,
                )
                for latents, one, moved in (("unshared", few, change[kept]), ("all", made, change)):
                    lines.append({"arm": arm, "seed": seed, "latents": latents, **one.against(moved), "form": form})
    return pd.DataFrame(lines)
