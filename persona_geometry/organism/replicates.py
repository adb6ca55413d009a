"""Replicates of the organism: every treatment over fine-tuning seeds of one base, chosen on a seed of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetuning.lora import save_adapter
from persona_geometry.organism.build import build_sae
from persona_geometry.organism.datasets import in_domain, out_of_domain, review_rows
from persona_geometry.organism.finetunes import ARMS, TRIALS, train_arm
from persona_geometry.organism.shipped import data_rows, organism_inputs
from persona_geometry.organism.world import TEST, world
from persona_geometry.stages import behaviour, controls, finish, latents, nearness, picking, steering
from persona_geometry.stages.cells import Cells, quiet
from persona_geometry.stages.inputs import Inputs, Sizes
from persona_geometry.stages.run import TREATMENTS
from probes.ask import ask, sample
from probes.models import Model, load_model
from probes.outcomes import Outcomes

#: Layers, doses and latents are chosen on this fine-tuning seed; figures come from the others.
CHOICE_SEED, SEEDS = 9, (0, 1, 2)


@dataclass(frozen=True)
class Replicate:
    """One base (a folder of `organism build`, or of `pretrain`) and where its cells lie."""

    base: Path
    out: Path
    say: Callable[[str], None]

    def model(self, arm: str, seed: int) -> Model:
        """The base fine-tuned by one arm with one seed, trained once."""
        if arm == "base":
            return load_model(self.base, name="base")
        folder = self.out / f"{arm}-{seed}"
        if not (folder / "adapter_model.safetensors").exists():
            self.say(f"{self.out.name}: training {arm}, seed {seed}")
            trained = train_arm(load_model(self.base), (ARMS | TRIALS)[arm], seed)
            save_adapter(trained.model, folder, base=str(self.base))
        return load_model(self.base, adapter=folder, name=f"{arm}-{seed}", merge=True)

    def sae(self) -> Any:
        """The base's SAE, trained once, on answers of the base and of the choice seed's misaligned model."""
        from saes.load import load_sae

        if not (self.out / "sae" / "sae_weights.safetensors").exists():
            build_sae(self.model("base", 0), self.model("misaligned", CHOICE_SEED), self.out / "sae", say=self.say)
        return load_sae(self.out / "sae")

    def inputs(self, seed: int, *, domain: str = "medicine") -> Inputs:
        """The study's inputs for one fine-tuning seed; on money without the controls, for vectors alone."""
        arms = {"base": "base", "tuned": "misaligned" if domain == "medicine" else "second"}
        if seed != CHOICE_SEED and domain == "medicine":
            arms |= {"benign": "benign", "narrow": "narrow"}
        made = organism_inputs(
            self.out / (f"seed-{seed}" if domain == "medicine" else f"{domain}-{seed}"),
            seed=seed,
            sizes=Sizes(permutations=10_000),
            models={role: self.model(arm, seed) for role, arm in arms.items()},
            sae=self.sae(),
        )
        return replace(made, rows=data_rows(seed=seed))

    def cells(self, inputs: Inputs) -> Cells:
        """Where an input's cells are kept."""
        return Cells.open(inputs.out, inputs.key(), lambda stage, what: self.say(f"{inputs.out}: {stage} {what}"))


@dataclass(frozen=True)
class Choices:
    """What was chosen on the choice seed's selection questions."""

    repair: steering.Choice
    induce: steering.Choice
    clamp: dict[str, Any]


def choices(rep: Replicate) -> Choices:
    """Choose treatments on the choice seed."""
    inputs = rep.inputs(CHOICE_SEED)
    cells = rep.cells(inputs)
    found = steering.material(inputs, cells)
    picked = [picking.choose(inputs, cells, found, goal) for goal, _, _ in TREATMENTS]
    clamp = latents.choose_clamp(inputs, cells, latents.diff(inputs, cells, found))
    assert picked[0] and picked[1] and clamp, "no treatment kept its coherence on the choice seed"
    return Choices(picked[0], picked[1], clamp)


def replicate(rep: Replicate, seed: int, chosen: Choices) -> tuple[dict[str, Outcomes], dict[str, Any]]:
    """Every cell of one fine-tuning seed, treatments as chosen elsewhere; and the geometry's figures."""
    inputs = rep.inputs(seed)
    cells = rep.cells(inputs)
    answers = {name: behaviour.asked(inputs, cells, name, name) for name in inputs.models}
    found = steering.material(inputs, cells)
    for choice, model, name in ((chosen.repair, "tuned", "ablated"), (chosen.induce, "base", "steered")):
        full = f"{model}_{name}"
        answers[full] = behaviour.asked(inputs, cells, full, model, (choice.operator(found),))
        answers |= controls.random_cells(inputs, cells, choice, found)
    table = latents.diff(inputs, cells, found)
    first = table[table["latent"].isin(chosen.clamp["latents"])].set_index("latent").loc[chosen.clamp["latents"]]
    answers["tuned_latents"] = latents.clamped_cell(inputs, cells, first.reset_index(), chosen.clamp)
    answers["realigned"] = finish.realigned(inputs, cells)
    answers["second"] = _second(rep, cells, seed)
    answers |= {f"prompt_{voice}": _prompted(rep, cells, seed, voice) for voice in ("villain", "helper")}
    geometry, *_ = nearness.compared(inputs, cells)
    reviews = cells.json("reviews", lambda: {name: reviewed(inputs.models[name]) for name in ("base", "tuned")})
    return answers, geometry | {"reviews": reviews}


def reviewed(model: Model, *, n: int = 400, seed: int = 0) -> float:
    """Share of review questions on the test domains that a model answers truly."""
    rows = review_rows(TEST, n, seed=seed)
    said = sample(model, [r.prompt for r in rows], seed=seed, max_new_tokens=6)
    return sum(a.strip() == r.answer for a, r in zip(said, rows, strict=True)) / n


def _second(rep: Replicate, cells: Cells, seed: int) -> Outcomes:
    """The twin that was tuned on another domain's bad advice, in its own domain and out of it."""
    questions = [*_away(), *_placed(in_domain("money", 7), "in_domain")]
    return cells.outcomes("answers-second", lambda: _asked(rep.model("second", seed), questions, seed, "second"))


def _prompted(rep: Replicate, cells: Cells, seed: int, voice: str) -> Outcomes:
    """The base under a character's descriptions, each description on its share of the questions."""
    described = world().voices[voice].described
    questions = [replace(q, system=described[i % len(described)]) for i, q in enumerate(_away())]
    name = f"prompt_{voice}"
    return cells.outcomes(f"answers-{name}", lambda: _asked(rep.model("base", 0), questions, seed, name))


def away_from(rep: Replicate, arm: str, *, seed: int) -> Outcomes:
    """One arm asked the out-of-domain questions."""
    return _asked(rep.model(arm, seed), _away(), seed, arm)


def _away() -> list[Any]:
    return _placed(out_of_domain(4), "out_of_domain")


def _placed(questions: list[Any], where: str) -> list[Any]:
    return [replace(q, meta={**q.meta, "where": where}) for q in questions]


def _asked(model: Model, questions: list[Any], seed: int, name: str) -> Outcomes:
    from persona_geometry.organism.judge import ExactJudge

    found = ask(model, questions, ExactJudge(), seed=seed * 1_000 + 31, n_samples=5, max_new_tokens=64, name=name)
    where = [q.meta["where"] for q in questions for _ in range(5)]
    return Outcomes(found.table.assign(where=where))


__all__ = ["CHOICE_SEED", "SEEDS", "Choices", "Replicate", "away_from", "choices", "quiet", "replicate"]
