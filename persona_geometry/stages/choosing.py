"""Choosing a treatment on selection questions: all are tried briefly, the best few again at length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from geometry.steering.arms import Arm, ask_many
from persona_geometry.stages.inputs import Inputs, spread_out
from probes.models import Model

Goal = Literal["repair", "induce"]
#: How many treatments are tried again, and how much coherence a brief trial may lack.
SHORTLIST, SLACK = 8, 0.06


def trials(inputs: Inputs, model: Model, arms: Sequence[Arm], *, goal: Goal, keep: float) -> pd.DataFrame:
    """Try every arm on the selection questions, then the shortlist again with other draws.

    One look at many treatments picks out lucky ones; only the second look decides.

    Returns:
        One row per arm and one for no treatment (arm -1): misaligned, coherent, n of the second look where there was
        one (`again`), else of the first; `keeps` where the coherence stays above `keep` times the untreated model's.
    """
    few = spread_out(inputs.of("selection"), inputs.sizes.choice)
    first = _asked(inputs, model, arms, few, samples=1, seed=5)
    good = first["coherent"] >= keep * first["coherent"].iloc[0] - SLACK
    fit = first.loc[good & (first["arm"] >= 0)]
    order = fit.sort_values(by="misaligned", ascending=goal == "repair", kind="stable")
    picked = [int(i) for i in order["arm"].head(SHORTLIST)]
    chosen = [arms[i] for i in picked]
    second = _asked(inputs, model, chosen, inputs.of("selection"), samples=inputs.sizes.again, seed=6)
    second["arm"] = [-1, *picked]
    table = pd.concat([second.assign(again=True), first[~first["arm"].isin(second["arm"])].assign(again=False)])
    return table.assign(keeps=table["coherent"] >= keep * table["coherent"].iloc[0]).reset_index(drop=True)


def winner(table: pd.DataFrame, *, goal: Goal, size: Sequence[float]) -> int | None:
    """The arm that does most among those that keep coherence at the second look; of equals (to a point) the least."""
    fit = table[table["again"] & table["keeps"] & (table["arm"] >= 0) & table["misaligned"].notna()]
    if fit.empty:
        return None
    sign = 1 if goal == "repair" else -1
    ranked = fit.assign(rank=(sign * fit["misaligned"]).round(2), size=[size[int(i)] for i in fit["arm"]])
    return int(ranked.sort_values(by=["rank", "size"], kind="stable")["arm"].iloc[0])


def _asked(
    inputs: Inputs, model: Model, arms: Sequence[Arm], questions: Sequence, *, samples: int, seed: int
) -> pd.DataFrame:
    outcomes = ask_many(
        model,
        [(), *arms],
        questions,
        inputs.verdicts,
        seed=inputs.seed * 1_000 + seed,
        n_samples=samples,
        max_new_tokens=inputs.sizes.max_new_tokens,
    )
    found = [(o.rate().value, o.rate("coherent").value, len(o)) for o in outcomes]
    table = pd.DataFrame(found, columns=["misaligned", "coherent", "n"])
    return table.assign(arm=np.arange(-1, len(arms)))
