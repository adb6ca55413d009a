"""Choosing a treatment on selection questions: all are tried briefly, the best few again at length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pandas as pd

from geometry.steering.arms import Arm, ask_many
from persona_geometry.stages.inputs import Inputs, spread_out
from probes.models import Model
from probes.questions import Question

Goal = Literal["repair", "induce"]
#: How much coherence a brief trial may lack.
SLACK = 0.06
#: What a stronger edit must gain, in rate, to be taken: a persona that is all but there needs no more.
WORTH = {"repair": 0.0, "induce": 0.05}


def trials(inputs: Inputs, model: Model, arms: Sequence[Arm], *, goal: Goal, keep: float) -> pd.DataFrame:
    """Try every arm on some selection questions, the better ones on all of them, the best few again and again.

    One look at many treatments picks out lucky ones (successive halving, arXiv 1502.07943, is the cure): the shortlist
    is drawn up on the first two looks together, and only the third look, with draws of its own, decides.

    Returns:
        One row per arm and one for no treatment (arm -1): misaligned, coherent, n of the last look there was, `again`
        where that is the third; `keeps` where the coherence stays above `keep` times the untreated model's.
    """
    everything = inputs.of("selection")
    first = _asked(inputs, model, arms, range(len(arms)), spread_out(everything, inputs.sizes.choice), seed=5)
    longlist = _best(first, inputs.sizes.longlist, goal, keep)
    second = _asked(inputs, model, arms, longlist, everything, seed=8)
    both = _pooled(first.loc[first["arm"].isin(second["arm"])], second)
    shortlist = _best(both, inputs.sizes.shortlist, goal, keep)
    third = _asked(inputs, model, arms, shortlist, everything, seed=6, samples=inputs.sizes.again)
    earlier = pd.concat([both, first.loc[~first["arm"].isin(both["arm"])]])
    table = pd.concat([third.assign(again=True), earlier.loc[~earlier["arm"].isin(third["arm"])].assign(again=False)])
    return table.assign(keeps=table["coherent"] >= keep * table["coherent"].iloc[0]).reset_index(drop=True)


def _best(table: pd.DataFrame, n: int, goal: Goal, keep: float) -> list[int]:
    """The arms that do most among those not clearly incoherent."""
    untreated = float(table.loc[table["arm"] == -1, "coherent"].iloc[0])
    fit = table.loc[(table["coherent"] >= keep * untreated - SLACK) & (table["arm"] >= 0)]
    order = fit.sort_values(by="misaligned", ascending=goal == "repair", kind="stable")
    return [int(i) for i in order["arm"].head(n)]


def _pooled(one: pd.DataFrame, two: pd.DataFrame) -> pd.DataFrame:
    """Rates of two looks at the same arms together, weighted by their answers."""
    first, second = one.set_index("arm"), two.set_index("arm")
    n = first["n"] + second["n"]
    coherent = (first["coherent"] * first["n"] + second["coherent"] * second["n"]) / n
    bad = sum((t["misaligned"].fillna(0.0) * t["coherent"] * t["n"] for t in (first, second)), start=n * 0.0)
    rates = pd.DataFrame({"misaligned": bad / (coherent * n).where(coherent > 0), "coherent": coherent, "n": n})
    return rates.reset_index()


def ranked(table: pd.DataFrame, *, goal: Goal, size: Sequence[float]) -> list[int]:
    """The arms that keep coherence, in the order in which to take them; only the third look counts.

    First those that do as much as the best, to one standard error or `WORTH`, the smallest edit before the others: the
    rule (Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, 7.10) prefers what disturbs less where
    more would be luck. Then the rest, by what they do.
    """
    fit = table.loc[table["again"] & table["keeps"] & (table["arm"] >= 0) & table["misaligned"].notna()]
    if fit.empty:
        return []
    sign = 1 if goal == "repair" else -1
    best = fit.loc[(sign * fit["misaligned"]).idxmin()]
    rate, n = float(best["misaligned"]), float(best["coherent"] * best["n"])
    error = max(math.sqrt(rate * (1 - rate) / n), WORTH[goal])
    done = fit.assign(rank=sign * fit["misaligned"], size=[size[int(i)] for i in fit["arm"]])
    near = done["rank"] <= sign * rate + error
    parts = (done[near].sort_values(["size", "rank"], kind="stable"), done[~near].sort_values("rank", kind="stable"))
    return [int(arm) for part in parts for arm in part["arm"]]


def winner(table: pd.DataFrame, *, goal: Goal, size: Sequence[float]) -> int | None:
    """The first of `ranked`, None where no arm keeps coherence."""
    return next(iter(ranked(table, goal=goal, size=size)), None)


def _asked(
    inputs: Inputs,
    model: Model,
    arms: Sequence[Arm],
    numbers: Sequence[int],
    questions: Sequence[Question],
    *,
    seed: int,
    samples: int = 1,
) -> pd.DataFrame:
    """Rates of no treatment (arm -1) and of the arms `numbers`."""
    outcomes = ask_many(
        model,
        [(), *(arms[i] for i in numbers)],
        questions,
        inputs.verdicts,
        seed=inputs.seed * 1_000 + seed,
        n_samples=samples,
        max_new_tokens=inputs.sizes.max_new_tokens,
    )
    found = [(o.rate().value, o.rate("coherent").value, len(o)) for o in outcomes]
    return pd.DataFrame(found, columns=["misaligned", "coherent", "n"]).assign(arm=[-1, *numbers])
