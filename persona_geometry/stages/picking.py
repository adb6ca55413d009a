"""Which treatment is taken: of what does as much as the best, the smallest beside which random steps do little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from geometry.steering.arms import ask_many
from persona_geometry.stages.cells import Cells
from persona_geometry.stages.choosing import Goal, ranked, trials
from persona_geometry.stages.controls import random_step_arms
from persona_geometry.stages.inputs import Inputs
from persona_geometry.stages.steering import KEEP, Choice, Material, candidates

#: Random steps of a treatment's size may move the rate by this share of what it does itself; how many treatments are
#: asked whether theirs do, and by how many random steps each.
SPECIFIC, TRIED, DRAWN = 0.1, 6, 10


def choose(inputs: Inputs, cells: Cells, found: Material, goal: Goal) -> Choice | None:
    """The treatment that does most on the selection questions while keeping coherence; None where none keeps it.

    Every vector, set of blocks, edit, dose and kind of positions is tried. They are taken in the order of `ranked`: the
    first whose random steps do at most a tenth of what it does, else, of the first six, the one whose do least.
    """
    model = inputs.tuned if goal == "repair" else inputs.base
    tried = candidates(found.vectors, inputs.blocks, goal)

    def run() -> pd.DataFrame:
        table = trials(inputs, model, [one.operator(found) for one in tried], goal=goal, keep=KEEP[goal])
        named = [tried[i] if i >= 0 else None for i in table["arm"]]
        return table.assign(
            vector=[one.vector if one else "none" for one in named],
            layers=[" ".join(map(str, one.layers)) if one else "" for one in named],
            dose=[one.dose if one else 0.0 for one in named],
            positions=[one.positions if one else "" for one in named],
            edit=[one.edit if one else "" for one in named],
        )

    table = cells.table(f"choose-{goal}", run)
    order = ranked(table, goal=goal, size=[one.size for one in tried])[:TRIED]
    if not order:
        return None
    asked = [(arm, tried[arm]) for arm in order]
    beside = cells.table(f"choose-{goal}-random", lambda: compared(inputs, found, table, asked))
    taken = beside.loc[beside["effect"].idxmin()]  # the first that will do ends the table
    row = table.set_index("arm").loc[int(taken["arm"])]
    figures = {"misaligned": float(row["misaligned"]), "coherent": float(row["coherent"])}
    return replace(tried[int(taken["arm"])], **figures, random=float(taken["effect"]))


def compared(inputs: Inputs, found: Material, table: pd.DataFrame, order: Sequence[tuple[int, Choice]]) -> pd.DataFrame:
    """What random steps of the treatments' sizes do (arm, misaligned, effect), up to the first that will do.

    The directions are others than those of the controls that are quoted.
    """
    rates = {int(arm): float(rate) for arm, rate in zip(table["arm"], table["misaligned"], strict=True)}
    rows = []
    for arm, choice in order:
        steps = random_step_arms(inputs, choice, found, n=min(DRAWN, inputs.sizes.controls), salt=1)
        model = inputs.tuned if choice.goal == "repair" else inputs.base
        answers = ask_many(
            model,
            steps,
            inputs.of("selection"),
            inputs.verdicts,
            seed=inputs.seed * 1_000 + 15,
            max_new_tokens=inputs.sizes.max_new_tokens,
        )
        rate = float(pd.Series([float(one.rate().value) for one in answers]).mean())
        effect = abs(rate - rates[-1]) / max(abs(rates[arm] - rates[-1]), 1e-9)
        rows.append({"arm": arm, "misaligned": rate, "effect": effect})
        if effect <= SPECIFIC:
            break
    return pd.DataFrame(rows)
