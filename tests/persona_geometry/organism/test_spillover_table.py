"""Forecast and change side by side on the organism, made small: every form, both sets, and a change that is planted."""

import pytest
import torch

from persona_geometry.organism import spillover_table as table
from persona_geometry.organism.shipped import load_organism
from persona_geometry.organism.spillover_table import DOMAINS, Room, forecasts, spillover_table


@pytest.fixture
def room(tmp_path, monkeypatch):
    for name, value in {"READ": 24, "RANDOM": 2}.items():
        monkeypatch.setattr(table, name, value)
    few = table.out_of_domain(1)[:6]
    monkeypatch.setattr(table, "out_of_domain", lambda n: few)
    shipped = {arm: load_organism(arm, merge=arm != "base") for arm in ("base", "misaligned")}
    monkeypatch.setattr(table.Replicate, "model", lambda self, arm, seed: shipped[arm])
    return Room(tmp_path, seeds=(0,), rows=8, questions=1)


def test_every_form_stands_beside_random_targets(room):
    made = spillover_table(room)
    forms = ["decoder", "gradient", "gradient, gated", "step", "step on good advice"]
    assert made.groupby("latents")["form"].apply(list).to_dict() == {"all": forms, "unshared": forms}
    sizes = made.groupby("latents")["n"].unique()
    assert sizes["all"].tolist() == [len(room.harmful)] and 0 < sizes["unshared"][0] < len(room.harmful)
    assert made["spearman"].between(-1, 1).all() and (made["low"] <= made["high"]).all()
    assert set(made["arm"]) == {"misaligned"} <= set(DOMAINS)


def test_a_change_that_follows_the_step_is_foretold(room, monkeypatch):
    step = forecasts(room, "medicine", 0)["step"]
    monkeypatch.setattr(table, "measured_spillover", lambda *args: 3 * step.change + 1)
    made = spillover_table(room).set_index(["latents", "form"])
    assert made.loc[("all", "step"), "spearman"] == pytest.approx(1)
    assert made.loc[("unshared", "step"), "spearman"] == pytest.approx(1)
    assert made.loc[("all", "decoder"), "spearman"] < 0.9 and step.random.shape == (2, len(room.harmful))
    assert torch.isfinite(step.change).all()
