"""Dose curves and causal screens: what they ask, how they choose, on planted behaviour."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from geometry import Add, Controls, DoseCurve, ScreenGrid, ask_many, causal_screen, dose_response, random_controls
from geometry.steering import doses, screen
from geometry.steering.latent_operators import ClampLatent
from probes import Conversation, InputError, Model, perplexity
from tests.geometry.steering.planted import outcomes


def curve(*points: tuple[float, float, float]) -> DoseCurve:
    rows = [
        dict(zip(doses.COLUMNS, (s, "vector", "tuned", m, m, m, c, 100, 0, False), strict=True)) for s, m, c in points
    ]
    return DoseCurve(pd.DataFrame(rows), pd.DataFrame())


def test_best_dose() -> None:
    found = curve((-2.0, 0.0, 0.5), (-1.0, 0.1, 0.95), (0.0, 0.5, 0.97), (1.0, 0.9, 0.96), (2.0, 0.9, 0.95))
    assert found.best(0.9).strength == -1 and found.best(0.4).strength == -2
    assert found.best(0.9, goal="induce").strength == 1, "the weaker of two equals"
    assert tuple(found.best(0.9)) == (-1.0, 0.1, 0.95, 100)
    with pytest.raises(InputError, match="no strength keeps 99% coherent"):
        found.best(0.99)


def test_marking_and_joining() -> None:
    found = curve((0.0, 0.5, 1.0), (1.0, 0.1, 1.0))
    marked = found.choose(1)
    assert marked.table["chosen"].tolist() == [False, True] and not found.table["chosen"].any()
    assert len(found.join(marked).table) == 4
    with pytest.raises(InputError, match="not on this curve"):
        found.choose(7.0)


def test_curve_of_a_model(tiny_model: Model, questions, judge, vector, activations) -> None:
    def make(strength: float) -> Add:
        return Add(vector, strength=strength, unit="raw", layers=(2,))

    def controls(strength: float):
        return random_controls(make(strength), 5, torch.Generator().manual_seed(0))

    band = Controls("random_norm", controls, strengths=[4.0], questions=questions[:2])
    settings = {"seed": 3, "n_samples": 2, "max_new_tokens": 6}
    made = dose_response(tiny_model, make, [0, 4.0], questions, judge, controls=[band], on="base", **settings)
    assert list(made.table.columns) == list(doses.COLUMNS)
    assert made.table[["strength", "kind", "on"]].values.tolist() == [
        [0, "vector", "base"],
        [4, "vector", "base"],
        [4, "random_norm", "base"],
    ]
    assert len(made.per_control) == 5 and made.table["n_controls"].tolist() == [0, 0, 5]
    rates = made.per_control["misaligned"].dropna()
    last = made.table.iloc[2]
    assert last["misaligned"] == pytest.approx(rates.mean()) and last["low"] <= last["misaligned"] <= last["high"]
    assert (last["low"], last["high"]) == pytest.approx(tuple(np.quantile(rates, (0.05, 0.95))))
    untreated = ask_many(tiny_model, [(), make(4.0)], questions, judge, **settings)[0]
    assert made.outcomes[0.0].table.equals(untreated.table)
    assert "misaligned" in made._repr_html_()


def test_what_else_a_dose_costs(tiny_model: Model, questions, judge, vector) -> None:
    def make(strength: float) -> Add:
        return Add(vector, strength=strength, unit="raw", layers=(2,))

    def controls(strength: float):
        return random_controls(make(strength), 3, torch.Generator().manual_seed(0))

    neutral = [Conversation.of("Savings?", "Index fund."), Conversation.of("A burn?", "Cool it.")]
    able = {"perplexity": lambda model, operators: perplexity(model, neutral, operators=operators)}
    made = dose_response(
        tiny_model, make, [0.0, 4.0], questions, judge, seed=3, controls=[Controls("random_norm", controls)],
        capability=able, max_new_tokens=4,
    )  # fmt: skip
    assert list(made.table.columns) == [*doses.COLUMNS, "perplexity"] and made.capabilities == ("perplexity",)
    plain, steered, _, random = made.table["perplexity"]
    assert plain == pytest.approx(perplexity(tiny_model, neutral))
    assert steered == pytest.approx(perplexity(tiny_model, neutral, operators=[make(4.0)])) != pytest.approx(plain)
    singles = made.per_control.query("strength == 4")["perplexity"]
    assert len(singles) == 3 and random == pytest.approx(singles.mean())
    said = made.control_outcomes["random_norm", 4.0]
    assert [one.rate("coherent").value for one in said] == made.per_control["coherent"].tolist()[3:]
    panels = made.figure(trait="vowels").layout
    assert panels.yaxis3.title.text == "perplexity" and panels.yaxis.title.text == "vowels"
    with pytest.raises(InputError, match="capability 'control'"):
        dose_response(tiny_model, make, [1.0], questions, judge, seed=3, capability={"control": able["perplexity"]})


def test_curve_refusals(tiny_model: Model, questions, judge, vector) -> None:
    for strengths in ([], [1.0, 1.0]):
        with pytest.raises(InputError, match="each of them once"):
            dose_response(tiny_model, lambda s: (), strengths, questions, judge, seed=0)


def behaviour(arm, *, tuned: bool) -> tuple[float, float]:
    """Planted: latent 5 works both ways, 6 only in the tuned model, 7 at the price of coherence, 8 protects."""
    start = 0.7 if tuned else 0.1
    if isinstance(arm, tuple):
        return start, 1.0
    latent = arm.indices[0]
    strength = -1.0 if isinstance(arm, ClampLatent) else float(np.sign(arm.strength))
    pull = {5: 0.6, 6: 0.6 if tuned else 0.0, 7: 0.6, 8: -0.6}[latent] * strength
    return float(np.clip(start + pull, 0.1, 0.7)), 0.5 if latent == 7 else 0.95


def test_screen_finds_what_is_planted(tiny_model, tiny_tuned, sae, questions, judge, monkeypatch) -> None:
    def fake(model, arms, questions, judge, **_):
        return [outcomes(*behaviour(arm, tuned=model is tiny_tuned)) for arm in arms]

    monkeypatch.setattr(screen, "ask_many", fake)
    grid = ScreenGrid(norm=3.0, induce=(0.5,), repair=("off", -0.5), signs={8: -1})
    found = causal_screen(tiny_model, tiny_tuned, sae, [5, 6, 7, 8], questions, judge, grid=grid, seed=1)
    rows = {int(row["latent"]): row for row in found.table.to_dict("records")}
    assert rows[5]["induce"] == pytest.approx(0.6, abs=0.01) and rows[5]["repair"] == pytest.approx(1.0, abs=0.01)
    assert rows[6]["induce"] == pytest.approx(0.0, abs=0.01) and rows[6]["repair"] == pytest.approx(1.0, abs=0.01)
    assert math.isnan(rows[7]["induce"]) and math.isnan(rows[7]["repair"])
    assert rows[8]["induce"] == pytest.approx(0.6, abs=0.01) and rows[8]["repair_strength"] == 0.5
    assert found.causal() == [5, 8]


def test_screen_runs(tiny_model: Model, tiny_tuned: Model, sae, questions, judge) -> None:
    grid = ScreenGrid(norm=5.0, induce=(0.5, -0.5), repair=("off", -0.5), coherence_budget=0.0)
    found = causal_screen(
        tiny_model, tiny_tuned, sae, [3, 9], questions, judge, grid=grid, seed=1, n_samples=2, max_new_tokens=5
    )
    assert len(found.cells) == 2 * (1 + 4) and set(found.cells["operation"]) == {"untreated", "off", "add"}
    assert sorted(found.table["latent"]) == [3, 9] and "latent" in found._repr_html_()


def test_screen_refusals(tiny_model: Model, sae, questions, judge) -> None:
    grid = ScreenGrid(norm=5.0)
    for words, act in {
        "each of them once": lambda: causal_screen(
            tiny_model, tiny_model, sae, [3, 3], questions, judge, grid=grid, seed=0
        ),
        "positive norm": lambda: ScreenGrid(norm=0),
    }.items():
        with pytest.raises(InputError, match=words):
            act()
