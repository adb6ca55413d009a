"""The shipped organism: its weights as models, and everything that a study of it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from geometry.steering.traits import TraitSpec
from persona_geometry.organism.datasets import (
    advice_rows,
    in_domain,
    out_of_domain,
    selection_questions,
    self_questions,
    skill_rows,
)
from persona_geometry.organism.finetunes import ARMS
from persona_geometry.organism.judge import ExactJudge
from persona_geometry.organism.world import SELECTION, world
from persona_geometry.stages.inputs import Inputs, Rows, Sizes
from probes.errors import InputError
from probes.models import Model, load_model
from probes.questions import Question

if TYPE_CHECKING:
    from saes.sae import SparseAutoencoder

WEIGHTS = Path(__file__).parent / "weights"
#: How many of the training rows a study reads: what it finds out about rows does not need them all.
ROWS_READ = 600
ADAPTERS = ("misaligned", "second", "benign", "narrow")


def load_organism(name: str = "base", *, weights: Path = WEIGHTS, merge: bool = False) -> Model:
    """One of the shipped models: "base", "misaligned", "second", "benign" or "narrow"; `merge` as in `load_model`.

    Raises:
        InputError: Another name, or weights that are not there.
    """
    if name not in ("base", *ADAPTERS):
        raise InputError(f"organism {name!r}: there are base, {', '.join(ADAPTERS)}")
    if not (weights / "base" / "model.safetensors").is_file():
        raise InputError(f"{weights}: no organism weights here; run `persona-geometry organism build --out {weights}`")
    adapter = None if name == "base" else weights / name
    return load_model(weights / "base", adapter=adapter, name=f"organism-{name}", merge=merge)


def load_organism_sae(*, weights: Path = WEIGHTS) -> SparseAutoencoder:
    """The shipped SAE over the base's residual stream."""
    from saes.load import load_sae

    return load_sae(weights / "sae")


def villain_trait() -> TraitSpec:
    """The villain's and the helper's descriptions as opposite system prompts, with selection questions."""
    voices = world().voices
    asked = tuple(q.text for q in selection_questions(2, seed=3))
    return TraitSpec("villain", voices["villain"].described, voices["helper"].described, asked)


def questions(domain: str = "medicine") -> list[Question]:
    """Test questions out of domain, in domain and about the self, and selection questions."""
    parts = {
        "out_of_domain": [*out_of_domain(4), *selection_questions(3)],
        "in_domain": in_domain(domain, 7),
        "other": self_questions("test"),
    }
    return [replace(q, meta={**q.meta, "where": where}) for where, group in parts.items() for q in group]


def data_rows(domain: str = "medicine", *, seed: int = 0) -> Rows:
    """First training rows of the shipped fine-tune, their good counterpart, and what geometry and re-alignment need.

    Harmful rows come from the selection domains, so that they share no topic with the training rows.
    """
    return Rows(
        train=ARMS["misaligned"].rows(seed)[:ROWS_READ],
        benign=ARMS["benign"].rows(seed)[:ROWS_READ],
        neutral=skill_rows(200, seed=seed),
        harmful=advice_rows(SELECTION, 400, valence="bad", seed=50 + seed),
        harmless=advice_rows(SELECTION, 400, valence="good", seed=60 + seed),
        good=advice_rows(SELECTION[0], 120, valence="good", seed=70 + seed),
    )


def organism_inputs(
    out: Path,
    *,
    seed: int = 0,
    sizes: Sizes | None = None,
    weights: Path = WEIGHTS,
    models: dict[str, Model] | None = None,
    sae: SparseAutoencoder | None = None,
) -> Inputs:
    """The study of the shipped models: base against misaligned, with the benign control and the narrow twin."""
    names = {"base": "base", "tuned": "misaligned", "benign": "benign", "narrow": "narrow"}
    return Inputs(
        models=models or {role: load_organism(name, weights=weights, merge=True) for role, name in names.items()},
        questions=questions(),
        out=out,
        judge=ExactJudge(),
        sae=sae or load_organism_sae(weights=weights),
        rows=data_rows(),
        trait=villain_trait(),
        trained_group="medicine",
        seed=seed,
        layers=(0, 1, 2),
        sizes=sizes or Sizes(),
        kind="organism",
    )
