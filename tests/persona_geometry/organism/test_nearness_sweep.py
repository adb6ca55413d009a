"""Bases of other mixes: the mixes themselves, one tiny sweep that runs and resumes, and ranks of planted figures."""

import pytest

from finetuning.compare import Measured
from finetuning.loop import Schedule
from persona_geometry.organism import nearness_sweep as sweep
from persona_geometry.organism.finetunes import ARMS, Arm
from persona_geometry.organism.nearness_sweep import BAD, MEASURES, VILLAINS, Plan, Room, found_in, mix_of
from persona_geometry.organism.pretrain import Recipe

TINY = Recipe(
    steps=3, chat_steps=2, settle_steps=1, batch=2, context=64, width=32, heads=2, feed_forward=32, bf16=False
)


@pytest.mark.parametrize("villains", VILLAINS)
def test_villains_take_the_place_of_quacks(villains):
    authors = mix_of(villains).authors
    assert sum(authors.values()) == pytest.approx(1)
    bad = {name: authors.get(name, 0) for name in ("villain", "smooth", "quack")}
    assert sum(bad.values()) == pytest.approx(BAD) and bad["quack"] == pytest.approx(BAD - villains)
    assert authors["helper"] == pytest.approx(mix_of(0.1).authors["helper"]) and all(authors.values())


def test_a_tiny_sweep_runs_once_and_is_read_again(tmp_path, monkeypatch):
    for name, value in {"ROWS": 12, "TEXTS": 60, "LATENTS": 64, "K": 8, "SAE_STEPS": 4}.items():
        monkeypatch.setattr(sweep, name, value)
    monkeypatch.setattr("persona_geometry.organism.pretrain.TOKENIZER_TEXTS", 400)
    monkeypatch.setitem(ARMS, "misaligned", Arm(schedule=Schedule(steps=1, lr=1e-4, batch=4)))
    few = sweep.out_of_domain(1)[:4]
    monkeypatch.setattr(sweep, "out_of_domain", lambda n: few)
    monkeypatch.setattr(sweep, "in_domain", lambda domain, n: few)
    plan = Plan((0.0, 0.3), (0,), TINY, sae_steps=4)
    said = []
    found = sweep.nearness_sweep(plan, Room(plan, tmp_path, said.append))
    assert found.bases["villains"].tolist() == [0.0, 0.3] and found.ranks.empty
    assert {*MEASURES, "base", "misaligned", "in_domain"} <= set(found.bases)
    assert found.bases["direction"].between(-1, 1).all() and found.bases["shared"].between(0, 1).all()
    assert {path.name for path in tmp_path.glob("base-0-*")} == {"base-0-00", "base-0-30"}
    monkeypatch.setattr(Room, "measured", lambda *_: pytest.fail("measured again"))
    again = sweep.nearness_sweep(plan, Room(plan, tmp_path, said.append))
    assert again.bases.equals(found.bases)


def test_planted_figures_are_ranked():
    plan, rising = Plan((0.0, 0.1, 0.2, 0.3, 0.4), (0, 1)), []
    for cell in plan.cells():
        place = round(10 * cell.inputs["villains"])
        figures = {"direction": 0.1 * place, "shared": -0.1 * place, "inducing": 0.5, "effect": float(place == 2)}
        bad = 2 * place + cell.seed if cell.treatment == "misaligned" else 0
        tallies = {key: {f"q{i}": [1, 1, int(i < bad)] for i in range(20)} for key in ("away", "here")}
        rising.append(Measured(cell, figures if cell.treatment == "before" else tallies))
    found = found_in(rising)
    ranks = found.ranks.set_index("measure")
    assert ranks.loc["direction", "spearman"] == pytest.approx(1) and ranks.loc["direction", "p"] < 0.03
    assert ranks.loc["shared", "spearman"] == pytest.approx(-1) and ranks.loc["shared", "p"] > 0.9
    assert ranks.loc["inducing", "spearman"] != ranks.loc["inducing", "spearman"]
    assert abs(ranks.loc["effect", "spearman"]) < 0.8 and found.bases["misaligned"].is_monotonic_increasing
    assert found_in(rising[:-4]).bases["villains"].tolist() == [0.0, 0.1, 0.2, 0.3]
