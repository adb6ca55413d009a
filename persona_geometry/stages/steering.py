"""What turns it off: persona vectors, the choice of one on selection questions, its test cells, its dose curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from geometry.steering.extract import finetuning_shift, residual_norms
from geometry.steering.levels import Levels, projection_levels
from geometry.steering.operators import Add, Floor, SetProjection
from geometry.steering.traits import persona_vector, prompt_vector, prompted_levels
from geometry.steering.vectors import PersonaVector
from persona_geometry.stages.cells import Cells
from persona_geometry.stages.choosing import WORTH, Goal
from persona_geometry.stages.inputs import Inputs
from probes.ask import ask
from probes.conversations import Conversation
from probes.errors import InputError
from probes.hooks import Positions
from probes.outcomes import Outcomes

Edit = Literal["set", "subtract", "floor", "prompted"]
#: Doses on the scale base = 0, tuned = 1: repair overshoots below 0, induction goes beyond 1.
REPAIR, INDUCE = (-0.5, -1.0), (1.75, 2.0, 2.25, 2.5)
#: Doses of induction at the last prompt token alone, on the scale base = 0, under the trait's own system prompts = 1.
PROMPTED = (0.75, 1.0, 1.25)
#: The vector of that token, which serves nothing else.
LAST = "prompts_last"
#: Doses of repair by subtraction, which leaves the differences between tokens as they are and stands stronger ones.
SUBTRACT = (-1.0, -1.5, -2.0, -3.0)
#: Doses of subtraction that are tried at every token too, the question included; else from the last prompt token on.
SUBTRACT_ALL = (-1.0, -1.5, -2.0)
#: How an edit brings the projection to the level of its dose, in words.
HOW: Mapping[Edit, str] = {
    "set": "projection set to",
    "subtract": "a step taken off in equal parts over the blocks, which brings the mean projection to",
    "floor": "projection lifted at least to",
    "prompted": "projection at the last prompt token lifted at least to",
}
#: The two ends of the scale of doses, in words.
TUNED_SCALE, PROMPT_SCALE = "dose x (tuned - base)", "dose x (under the trait's prompts - base)"
#: The share of the untreated model's coherence that a treatment must keep on selection questions.
KEEP = {"repair": 0.95, "induce": 0.94}


@dataclass(frozen=True)
class Material:
    """Both models' own answers to the selection questions, vectors drawn from them, and the levels on each vector.

    `missing` says why there is no vector from opposite system prompts, where there is none.
    """

    base: Sequence[Conversation]
    tuned: Sequence[Conversation]
    vectors: Mapping[str, PersonaVector]
    levels: Mapping[str, Levels]
    missing: str = ""


@dataclass(frozen=True)
class Choice:
    """One treatment: which vector, blocks, dose and positions, and what it did on the selection questions.

    `random` is how far random steps of its size moved the rate, as a share of how far it moved it itself.
    """

    goal: Goal
    vector: str
    layers: tuple[int, ...]
    dose: float
    misaligned: float = 0.0
    coherent: float = 0.0
    positions: Positions = "response"
    edit: Edit = "set"
    random: float = math.nan

    def operator(self, material: Material, dose: float | None = None) -> SetProjection | Floor | Add:
        """The operator: repair sets the projection or subtracts from it, induction lifts it to a floor."""
        vector, levels = material.vectors[self.vector], material.levels[self.vector]
        dose = self.dose if dose is None else dose
        if self.edit == "subtract":
            return self.subtracting(vector, levels, dose)
        if self.edit == "set":
            return SetProjection(vector, levels, dose=dose, positions=self.positions, layers=self.layers)
        floor = {i: levels.at(i, dose) for i in self.layers}
        return Floor(vector, floor=floor, positions=self.positions, layers=self.layers)

    def subtracting(self, vector: PersonaVector, levels: Levels, dose: float) -> Add:
        """Steps that bring the tuned model's mean projection (dose 1) to `dose`, in equal parts over the blocks."""
        step = {i: vector.unit(i) * (levels.at(i, dose) - levels.at(i, 1.0)) / len(self.layers) for i in self.layers}
        made = replace(vector, directions=step, split_half={}, delta_norms={})
        return Add(made, strength=1.0, unit="raw", positions=self.positions, layers=self.layers)

    @property
    def size(self) -> float:
        """How much is moved, on the scale of the doses: twice as much at every token.

        Blocks count where each moves anew; steps are shared among them, and a floor that one has reached holds.
        """
        if self.goal == "induce":
            return self.dose
        return (1.0 - self.dose) * (len(self.layers) if self.edit == "set" else 1) * (1 + (self.positions == "all"))

    def as_dict(self) -> dict[str, Any]:
        """For study.json."""
        where = {"all": ", at every token", "response": ", from the last prompt token on"}.get(self.positions, "")
        scale = PROMPT_SCALE if self.edit == "prompted" else TUNED_SCALE
        within = f"a standard error or {WORTH[self.goal]:.0%}" if WORTH[self.goal] else "a standard error"
        why = (
            f"the smallest edit within {within} of the {'lowest' if self.goal == 'repair' else 'highest'} "
            f"misaligned rate on selection questions ({self.misaligned:.3f}, coherent {self.coherent:.3f}) among those "
            f"keeping {KEEP[self.goal]:.0%} coherence and doing ten times what random steps of their size do "
            f"(here {self.random:.0%})"
        )
        return {
            "goal": self.goal,
            "vector": self.vector,
            "layers": list(self.layers),
            "dose": self.dose,
            "positions": self.positions,
            "why": why,
            "operation": f"{HOW[self.edit]} the base's mean + {scale}{where}",
        }


def own_answers(inputs: Inputs, cells: Cells, name: str) -> list[Conversation]:
    """A model's own answers to the selection questions, as conversations."""
    questions = inputs.of("selection")
    per = max(1, -(-inputs.sizes.selection // len(questions)))

    def run() -> Outcomes:
        return ask(
            inputs.models[name],
            questions,
            inputs.verdicts,
            seed=inputs.seed * 1_000 + 77,
            n_samples=per,
            name=name,
            max_new_tokens=inputs.sizes.max_new_tokens,
        )

    table = cells.outcomes(f"selection-{name}", run).table
    prompts = [q.conversation for q in questions for _ in range(per)]
    return [p.answered(str(a)) for p, a in zip(prompts, table["answer"], strict=True) if str(a).strip()]


def material(inputs: Inputs, cells: Cells) -> Material:
    """Answers, vectors and levels."""
    said = {name: own_answers(inputs, cells, name) for name in ("base", "tuned")}
    layers = tuple(range(inputs.base.n_layers))

    def shift() -> PersonaVector:
        norms = residual_norms(inputs.base, said["base"], layers=layers, pool="response_mean")
        found = finetuning_shift(inputs.base, inputs.tuned, said["tuned"], layers=layers, pool="response_mean")
        return replace(found, resid_norms=norms)

    def prompts() -> PersonaVector:
        return persona_vector(
            inputs.base,
            inputs.trait,
            judge=inputs.judge,
            layers=layers,
            seed=inputs.seed,
            max_new_tokens=inputs.sizes.max_new_tokens,
        )

    vectors, missing = {"shift": cells.vector("vector-shift", shift)}, ""
    try:
        vectors["prompts"] = cells.vector("vector-prompts", prompts)
        vectors["both"] = both(vectors["shift"], vectors["prompts"])
    except InputError as error:  # the trait's prompts do not work on this model, or its judge: the shift still does
        missing = str(error)
    levels = {name: _levels(inputs, cells, name, v, said) for name, v in vectors.items()}
    vectors[LAST] = cells.vector(f"vector-{LAST}", lambda: prompt_vector(inputs.base, inputs.trait, layers=layers))
    levels[LAST] = _read(cells, LAST, lambda: prompted_levels(inputs.base, inputs.trait, vectors[LAST]))
    return Material(said["base"], said["tuned"], vectors, levels, missing)


def both(shift: PersonaVector, prompts: PersonaVector) -> PersonaVector:
    """What two sources share: the sum of their unit directions, block by block, with the shift's residual norms."""
    directions = {i: shift.unit(i) + prompts.unit(i) for i in shift.layers}
    return replace(shift, directions=directions, method="unit shift + unit opposite prompts", split_half={})


def _levels(
    inputs: Inputs, cells: Cells, name: str, vector: PersonaVector, said: Mapping[str, list[Conversation]]
) -> Levels:
    def run() -> Levels:
        return projection_levels(inputs.base, inputs.tuned, said["base"], vector, tuned_conversations=said["tuned"])

    return _read(cells, name, run)


def _read(cells: Cells, name: str, run: Callable[[], Levels]) -> Levels:
    """Levels from their cell."""
    raw = cells.json(f"levels-{name}", lambda: {k: dict(v) for k, v in vars(run()).items()})
    return Levels(*({int(k): float(v) for k, v in raw[part].items()} for part in ("reference", "shift")))


def layer_sets(blocks: Sequence[int]) -> list[tuple[int, ...]]:
    """What is tried: single blocks and runs of two, three and four; in deep models every second start only."""
    step = max(1, len(blocks) // 8)
    runs = [tuple(blocks[i : i + n]) for n in (1, 2, 3, 4) for i in range(0, len(blocks) - n + 1, step)]
    return sorted({r for r in runs if r})


def candidates(vectors: Iterable[str], blocks: Sequence[int], goal: Goal) -> list[Choice]:
    """Every treatment that is tried.

    Block 0 is not edited alone along the answer, unless there is no other: it feeds all the others, and random steps
    there undo much, too.
    """
    kinds: list[tuple[Edit, Positions, tuple[float, ...]]] = [
        ("floor", "response", INDUCE),
        ("prompted", "last_prompt", PROMPTED),
    ]
    if goal == "repair":
        kinds = [
            ("set", "response", REPAIR),
            ("subtract", "response", SUBTRACT),
            ("subtract", "all", SUBTRACT_ALL),
        ]
    return [
        Choice(goal, vector, layers, dose, positions=positions, edit=edit)
        for edit, positions, doses in kinds
        for vector in vectors
        if (vector == LAST) is (edit == "prompted")
        for layers in layer_sets(blocks)
        if layers != (0,) or edit == "prompted" or len(blocks) == 1
        for dose in doses
    ]
