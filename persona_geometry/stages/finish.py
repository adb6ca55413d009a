"""What a study ends with: re-alignment, who writes the direction, vectors for other programs, the self-test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from finetuning.loop import Schedule
from finetuning.realign import realign
from geometry.steering.writers import direction_writers
from persona_geometry.stages.behaviour import everywhere
from persona_geometry.stages.cells import Cells
from persona_geometry.stages.inputs import Inputs, spread_out
from persona_geometry.stages.steering import Choice, Material
from probes.capture import capture
from probes.conversations import Conversation
from probes.models import Model
from probes.outcomes import Outcomes
from probes.verify import Check, self_test
from saes.peer import sae_lens_error
from saes.sae import SparseAutoencoder

#: Relative error of latents and reconstructions against sae-lens: rounding in float32 stays well below.
SAE_LIMIT = 1e-5


def realigned(inputs: Inputs, cells: Cells) -> Outcomes:
    """The tuned model after a small dose of good data, on the test questions."""

    def run() -> Outcomes:
        schedule = Schedule(steps=inputs.sizes.realign_steps, lr=2e-3, batch=4)
        model, _ = realign(inputs.tuned, inputs.rows.good, seed=inputs.seed, schedule=schedule)
        return everywhere(inputs, model, "realigned")

    return cells.outcomes("answers-realigned", run)


def writers(inputs: Inputs, cells: Cells, found: Material, choice: Choice) -> pd.DataFrame:
    """What heads and MLPs write along the chosen direction, in base and tuned, on the tuned model's answers."""

    def run() -> pd.DataFrame:
        few = spread_out(found.tuned, 64)
        return direction_writers(inputs.base, inputs.tuned, few, found.vectors[choice.vector], choice.layers[-1]).table

    return cells.table("writers", run)


def layer_curve(found: Material) -> pd.DataFrame:
    """By block: agreement of the two vectors, split-half cosine, shift in residual norms."""
    shift = found.vectors["shift"]
    cosines = shift.cosine(found.vectors["prompts"]) if "prompts" in found.vectors else {}
    rows = [
        {
            "layer": i,
            "cosine": cosines.get(i, float("nan")),
            "split_half": shift.split_half.get(i),
            "effect": shift.norm(i) / shift.resid_norms[i],
        }
        for i in shift.layers
    ]
    return pd.DataFrame(rows)


def checks(inputs: Inputs, cells: Cells, found: Material) -> list[dict[str, Any]]:
    """The self-test on both models, and what sae-lens says of the SAE."""

    def run() -> list[dict[str, Any]]:
        out = []
        for name in ("base", "tuned"):
            out += [{**asdict(c), "name": f"{name}: {c.name}"} for c in self_test(inputs.models[name], found.base[:8])]
        return out + ([] if inputs.sae is None else [asdict(_sae_check(inputs.sae, inputs.base, found.base[:8]))])

    return cells.json("self-test", run)


def _sae_check(sae: SparseAutoencoder, model: Model, said: Sequence[Conversation]) -> Check:
    """Does sae-lens see the same latents in the SAE's weights?"""
    rows = capture(model, said, layers=[sae.layer], pool="tokens").at(sae.layer)
    error = sae_lens_error(sae, rows)
    return Check("SAE: sae-lens encodes and decodes the same", error <= SAE_LIMIT, error, SAE_LIMIT, "SAELens#436", "")


def exported(inputs: Inputs, found: Material, choice: Choice | None) -> list[dict[str, Any]]:
    """Write the vectors: safetensors of every vector, and a llama.cpp control vector that subtracts the chosen one."""
    folder = inputs.out / "vectors"
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for name, vector in found.vectors.items():
        vector.save(folder / f"{name}.safetensors")
        load = f'from geometry import PersonaVector; PersonaVector.load("{name}.safetensors")'
        out.append({"name": name, "file": f"vectors/{name}.safetensors", "format": "safetensors", "how_to_load": load})
    if choice and any(choice.layers):  # llama.cpp does not steer block 0
        out.append(_control_vector(inputs, found, choice))
    return out


def _control_vector(inputs: Inputs, found: Material, choice: Choice) -> dict[str, Any]:
    from geometry.steering.export.gguf import write_gguf

    vector = found.vectors[choice.vector].only(*[i for i in choice.layers if i])
    levels = found.levels[choice.vector]
    parts = len(choice.layers) if choice.edit == "subtract" else 1
    moved = {i: (levels.at(i, choice.dose) - levels.at(i, 1.0)) / parts / vector.norm(i) for i in vector.layers}
    scaled = type(vector)(**{**vars(vector), "directions": {i: vector.at(i) * moved[i] for i in vector.layers}})
    write_gguf(scaled, inputs.out / "vectors" / "repair.gguf")
    return {
        "name": "repair",
        "file": "vectors/repair.gguf",
        "format": "llama.cpp control vector (GGUF)",
        "how_to_load": "llama-cli -m MODEL.gguf --control-vector repair.gguf",
    }
