"""Treatments by name: which safeguard a name and a strength stand for, and what it is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from finetuning.compare.choice import Treatment
from finetuning.safeguards.base import Safeguard, Together
from finetuning.safeguards.inoculation import PROMPT
from geometry.features.filtering import RowScores
from geometry.steering.operators import Unit
from geometry.steering.vectors import PersonaVector
from probes.conversations import Conversation
from probes.errors import InputError
from probes.models import Model
from saes.latents import LatentStats
from saes.sae import SparseAutoencoder


@dataclass(frozen=True)
class Latents:
    """An SAE with the latents that the harmful fine-tune raises and lowers; `stats` are for the random control."""

    sae: SparseAutoencoder
    rises: tuple[int, ...]
    falls: tuple[int, ...] = ()
    stats: LatentStats | None = None


@dataclass(frozen=True, eq=False)
class Materials:
    """What treatments are made of, each part made when a treatment first asks for it; a part may be missing (None).

    Attributes:
        rows: Training rows, for the template's own tokens.
        safe: Safe rows to mix in.
        own: Rows to stay near to the base on (its own answers to other questions); None: the safe ones.
        base: The model to be trained.
        misaligned: Models that score safe rows by the perplexity gap.
        unaligned: The model from which the aligned one differs by its alignment.
        vector: Persona vector, from the ordinary to the trait; its blocks are those treated.
        unit: What a strength along the vector is counted in.
        latents: Latents to be held back.
        prompt: What inoculation says.
        blocks: Blocks that LDIFS holds; none: every fifth.
    """

    base: Model
    rows: Sequence[Conversation] = ()
    safe: Callable[[], Sequence[Conversation]] | None = None
    own: Callable[[], Sequence[Conversation]] | None = None
    misaligned: Callable[[], Sequence[Model]] | None = None
    unaligned: Callable[[], Model] | None = None
    vector: Callable[[], PersonaVector] | None = None
    unit: Unit = "raw"
    latents: Callable[[], Latents] | None = None
    prompt: str = PROMPT
    blocks: tuple[int, ...] = ()
    made: dict[str, Any] = field(default_factory=dict, repr=False)

    def get(self, part: str, treatment: str) -> Any:
        """One part, made once. Raises InputError where the treatment needs it and it is missing."""
        make = getattr(self, part)
        if make is None:
            raise InputError(f"treatment {treatment!r} needs {NEEDS[part]}; give it, or leave the treatment out")
        if part not in self.made:
            self.made[part] = make()
        return self.made[part]

    @cached_property
    def scores(self) -> RowScores:
        """The safe rows' perplexity gap."""
        from finetuning.perplexity_gap import perplexity_gap

        safe, misaligned = (self.get(part, "interleave+") for part in ("safe", "misaligned"))
        return perplexity_gap(safe, aligned=self.base, misaligned=misaligned)


#: What each part of `Materials` is called where it is missing.
NEEDS = {
    "safe": "safe rows (--safe)",
    "own": "rows to stay near to the base on (--safe)",
    "misaligned": "a misaligned model (--misaligned)",
    "unaligned": "an unaligned model (--unaligned)",
    "vector": "a persona vector (--vector)",
    "latents": "an SAE and its harmful latents (--sae, --latents)",
}


def _kl(material: Materials, strength: float, seed: int) -> Safeguard:
    from finetuning.safeguards.kl import KLOnBatch

    return KLOnBatch(weight=strength)


def _kl_other(material: Materials, strength: float, seed: int) -> Safeguard:
    from finetuning.safeguards.kl import KLToBase

    return KLToBase(material.get("own" if material.own else "safe", "kl_other"), weight=strength, seed=seed)


def _ldifs(material: Materials, strength: float, seed: int) -> Safeguard:
    from finetuning.safeguards.ldifs import LDIFS

    return LDIFS(weight=strength, layers=material.blocks)


def _safe_lora(form: str) -> Make:
    def make(material: Materials, strength: float, seed: int) -> Safeguard:
        from finetuning.safeguards.safe_lora import SafeLoRA

        unaligned = material.get("unaligned", "safe_lora")
        return SafeLoRA(unaligned, tau=strength, form="outside" if form == "outside" else "fast")

    return make


def _preventative(kind: str) -> Make:
    def make(material: Materials, strength: float, seed: int) -> Safeguard:
        from finetuning.safeguards.preventative import PreventativeSteering

        vector, sign = material.get("vector", "preventative"), "away" if kind == "away" else "toward"
        found = PreventativeSteering(vector, strength=strength, unit=material.unit, sign=sign)
        return found.random(1_000 + seed) if kind == "random" else found

    return make


def _inoculation(material: Materials, strength: float, seed: int) -> Safeguard:
    from finetuning.safeguards.inoculation import Inoculation

    return Inoculation(material.prompt)


def _interleave(kind: str) -> Make:
    def make(material: Materials, strength: float, seed: int) -> Safeguard:
        from finetuning.safeguards.interleave import Interleave

        safe = material.get("safe", "interleave")
        if kind == "random":
            return Interleave(safe, strength)
        return Interleave(safe, strength, by="gap", scores=material.scores, refusals="drop" if kind == "++" else "keep")

    return make


def _latent_block(random: bool) -> Make:
    def make(material: Materials, strength: float, seed: int) -> Safeguard:
        from finetuning.safeguards.latent_block import LatentBlock

        found: Latents = material.get("latents", "latent_block")
        block = LatentBlock(found.sae, found.rises, found.falls, weight=strength)
        if not random:
            return block
        if found.stats is None:
            raise InputError(
                "latent_block_random: firing rates are unknown; give Latents(..., stats=latent_stats(...))"
            )
        return block.random(found.stats, 1_000 + seed)

    return make


def _caft(random: bool) -> Make:
    def make(material: Materials, strength: float, seed: int) -> Safeguard:
        from finetuning.safeguards.concept_ablation import ConceptAblation

        found = ConceptAblation((material.get("vector", "caft"),))
        return found.random(1_000 + seed) if random else found

    return make


def _treft(part: str) -> Make:
    def make(material: Materials, strength: float, seed: int) -> Safeguard:
        from finetuning.safeguards.treft import TReFT

        return TReFT(material.rows, weight=strength, part="prefix" if part == "prefix" else "postfix")

    return make


Make = Callable[[Materials, float, int], Safeguard]
#: Name -> how it is made, and the strength where none is given (None: it has no strength). Published strengths:
#: 2508.06249 (kl, ldifs, safe_lora, interleave), 2507.21509 (preventative), 2602.00767, 2606.06667.
NAMED: Mapping[str, tuple[Make, float | None]] = {
    "kl": (_kl, 0.1),
    "kl_other": (_kl_other, 1.0),
    "ldifs": (_ldifs, 1.0),
    "safe_lora": (_safe_lora("fast"), 0.3),
    "safe_lora_outside": (_safe_lora("outside"), 1.0),
    "preventative": (_preventative("toward"), 5.0),
    "preventative_away": (_preventative("away"), 5.0),
    "preventative_random": (_preventative("random"), 5.0),
    "inoculation": (_inoculation, None),
    "interleave": (_interleave("random"), 0.05),
    "interleave+": (_interleave("+"), 0.05),
    "interleave++": (_interleave("++"), 0.05),
    "latent_block": (_latent_block(False), 1e3),
    "latent_block_random": (_latent_block(True), 1e3),
    "caft": (_caft(False), None),
    "caft_random": (_caft(True), None),
    "treft": (_treft("prefix"), 10.0),
    "treft_postfix": (_treft("postfix"), 10.0),
}


def treatment_named(text: str) -> Treatment:
    """A treatment from "kl", "kl=0.3" or "kl 0.3"; without a number the published strength.

    "latent_block=1e-4+interleave++=0.2" is both at once, in that order; the strength of the last one is the treatment's
    own, so a sweep varies that one and holds the others. Raises InputError for a name that is unknown, and for a
    strength where the treatment has none.
    """
    *held, last = [_part_named(part, text) for part in _parts(text)]
    return Treatment("+".join([part.label.replace(" ", "=") for part in held] + [last.name]), last.strength)


def _parts(text: str) -> list[str]:
    """What stands on both sides of a plus sign that a name follows: not those of "interleave++" or 1e+3."""
    return re.split(r"\+(?=[a-z])", text.strip())


def _part_named(part: str, text: str) -> Treatment:
    found = Treatment.of(part)
    if found.name not in NAMED:
        raise InputError(f"treatment {text!r}: use some of {', '.join(NAMED)}, with a strength as kl=0.3")
    usual = NAMED[found.name][1]
    if usual is None and found.strength is not None:
        raise InputError(f"treatment {text!r}: {found.name} has no strength; write the name alone")
    return Treatment(found.name, usual if found.strength is None else found.strength)


def safeguard_named(treatment: Treatment, materials: Materials, *, seed: int) -> Safeguard:
    """The safeguard of a treatment; `seed` draws what is random in it (rows, and directions and latents of controls).

    Raises InputError for an unknown name, a missing part, and what the safeguard refuses.
    """
    label = treatment.label
    parts = [_part_named(part, label) for part in _parts(label)]
    made = [NAMED[part.name][0](materials, float(part.strength or 0.0), seed) for part in parts]
    return made[0] if len(made) == 1 else Together(tuple(made))
