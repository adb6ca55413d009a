"""Random controls of a treatment, and its dose curve beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch

from geometry.steering.arms import ask_many
from geometry.steering.doses import Controls, dose_response
from geometry.steering.operators import SetProjection
from geometry.steering.random_controls import Kind, edit_sizes, random_controls, random_projections
from persona_geometry.stages.cells import Cells
from persona_geometry.stages.inputs import Inputs, spread_out
from persona_geometry.stages.steering import Choice, Edit, Material
from probes.ask import sample
from probes.capture import capture
from probes.hooks import Operator
from probes.outcomes import Outcomes

#: Doses of the curve, by edit; the chosen one joins them.
CURVE: Mapping[Edit, tuple[float, ...]] = {
    "set": (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5),
    "subtract": (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0),
    "floor": (-1.0, 0.0, 1.0, 1.5, 2.0, 2.5, 3.0),
    "prompted": (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
}


def random_rule_arms(inputs: Inputs, choice: Choice, found: Material) -> list[Operator]:
    """The same rule on random directions: the projection is brought to where the base stands on each, plus the dose."""
    acts = {
        name: capture(inputs.models[name], said, layers=choice.layers, pool="response_mean")
        for name, said in (("base", found.base), ("tuned", found.tuned))
    }
    generator = torch.Generator().manual_seed(inputs.seed * 7_919)
    setting = replace(choice, edit="set").operator(found)
    assert isinstance(setting, SetProjection)
    arms = random_projections(setting, inputs.sizes.controls, generator, base=acts["base"], tuned=acts["tuned"])
    if choice.edit == "subtract":
        return [choice.subtracting(arm.vector, arm.levels, choice.dose) for arm in arms]
    return list(arms)


def random_step_arms(
    inputs: Inputs,
    choice: Choice,
    found: Material,
    *,
    kind: Kind = "norm",
    dose: float | None = None,
    n: int | None = None,
    salt: int = 0,
) -> list[Any]:
    """At each block and position a step of the treated run's own mean size, along random directions.

    The size is measured once, on answers written under the treatment: a random direction that is *set* to a level never
    settles, since each block finds it disturbed anew, and would be the stronger treatment of the two. `n` is their
    number (default: the study's); another `salt` draws other directions.
    """
    seed = inputs.seed * 7_919 + {"norm": 1, "covariance": 2}[kind] + 100 * salt
    model, said = (inputs.tuned, found.tuned) if choice.goal == "repair" else (inputs.base, found.base)
    operator = choice.operator(found, dose)
    pool = "last_prompt" if choice.positions == "last_prompt" else "response_mean"
    prompts = [c.prompt for c in spread_out(said, 24)]
    answers = sample(model, prompts, seed=seed, operators=(operator,), max_new_tokens=inputs.sizes.max_new_tokens)
    written = [p.answered(a) for p, a in zip(prompts, answers, strict=True) if a.strip()]
    return random_controls(
        operator,
        n or inputs.sizes.controls,
        torch.Generator().manual_seed(seed),
        sizes=edit_sizes(model, operator, written or spread_out(said, 24)),
        activations=capture(model, said, layers=choice.layers, pool=pool),
        kind=kind,
    )


def random_cells(inputs: Inputs, cells: Cells, choice: Choice, found: Material) -> dict[str, Outcomes]:
    """The random controls' answers out of domain, by the name of the cell.

    Beside a repair: the same rule on random directions, and steps of the edit's own size along random
    directions, which disturb as much as it does. Beside an induction only the latter.
    """
    steps = partial(random_step_arms, inputs, choice, found)
    if choice.goal == "induce":
        arms = {"base_random_steered": steps}
    else:
        same = partial(random_rule_arms, inputs, choice, found)
        arms = {"tuned_random_ablated": same, "tuned_random_steps": steps}
    return {name: random_cell(inputs, cells, choice, make, name) for name, make in arms.items()}


def random_cell(
    inputs: Inputs, cells: Cells, choice: Choice, arms: Callable[[], Sequence[Operator]], name: str
) -> Outcomes:
    """One kind of control out of domain: each control asks `control_answers` test questions once."""

    def run() -> Outcomes:
        model = inputs.tuned if choice.goal == "repair" else inputs.base
        asked = spread_out(inputs.of("test", "out_of_domain"), inputs.sizes.control_answers)
        outcomes = ask_many(
            model,
            arms(),
            asked,
            inputs.verdicts,
            seed=inputs.seed * 1_000 + 9,
            max_new_tokens=inputs.sizes.max_new_tokens,
        )
        parts = [o.table.assign(model=name, control=i, where="out_of_domain") for i, o in enumerate(outcomes)]
        return Outcomes(pd.concat(parts, ignore_index=True))

    return cells.outcomes(f"answers-{name}", run)


def curve(inputs: Inputs, cells: Cells, choice: Choice, found: Material) -> pd.DataFrame:
    """Dose curve on selection questions, with two kinds of random controls at three doses each."""
    on = "tuned" if choice.goal == "repair" else "base"
    asked = spread_out(inputs.of("selection"), inputs.sizes.choice)

    def run() -> pd.DataFrame:
        model, doses = inputs.models[on], CURVE[choice.edit]
        marks = sorted({doses[0], choice.dose, doses[-1]})
        doses = tuple(sorted({*doses, choice.dose}))
        few = spread_out(inputs.of("selection"), max(5, inputs.sizes.control_answers // 5))
        kinds: tuple[Kind, ...] = ("norm", "covariance")
        controls = [
            Controls(
                f"random_{kind}",
                lambda dose, kind=kind: random_step_arms(inputs, choice, found, kind=kind, dose=dose),
                marks,
                few,
            )
            for kind in kinds
        ]
        made = dose_response(
            model,
            lambda dose: choice.operator(found, dose),
            doses,
            asked,
            inputs.verdicts,
            seed=inputs.seed * 1_000 + 13,
            n_samples=2,
            controls=controls,
            on=on,
            max_new_tokens=inputs.sizes.max_new_tokens,
        )
        return made.choose(choice.dose).table

    return cells.table(f"dose-{on}", run)
