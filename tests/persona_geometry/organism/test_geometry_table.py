"""The geometry's table on the organism, made small: every comparison and null, matched rates, every block once."""

import pytest
import torch

from geometry.features.sets import FeatureSet
from persona_geometry.organism.geometry_table import AGAINST, OTHERS, Room, geometry_table, like, profile, spoken
from persona_geometry.organism.shipped import load_organism, load_organism_sae
from persona_geometry.organism.world import SELECTION, TEST, world


@pytest.fixture(scope="module")
def sae():
    return load_organism_sae()


@pytest.fixture
def room(tmp_path, sae, monkeypatch):
    monkeypatch.setattr("persona_geometry.organism.geometry_table.TEXTS", 80)
    said = []
    return Room(load_organism(), sae, tmp_path, said.append, (0,), ("medicine",), rows=40, permutations=99, steps=3)


def test_every_comparison_stands_under_every_null(room):
    table = geometry_table(room)
    nulls = ["label_permutation", "random_features", "frequency_matched"]
    found = table.groupby("against", sort=False)["null"].apply(list).to_dict()
    assert found == {name: nulls for name in AGAINST} | {name: ["bootstrap"] for name in OTHERS}
    assert (table["effect"] - table["inducing"] + table["benign"]).abs().max() < 1e-9
    assert table["p"].between(0, 1).all() and (table["p_holm"] >= table["p"]).all()
    good = table[(table["against"] == "good advice") & (table["null"] == "label_permutation")].iloc[0]
    assert good["low"] < good["effect"] < good["high"] and good["effect"] > 0, "the shipped organism's known sign"


def test_every_block_gets_an_sae_of_its_own_once(room, monkeypatch):
    table = profile(room)
    assert sorted(set(table["layer"])) == list(range(room.base.n_layers)) and set(table["null"]) == {
        "label_permutation",
        "bootstrap",
    }
    assert {path.name for path in room.out.iterdir()} == {
        f"sae-block-{i}" for i in range(room.base.n_layers) if i != room.sae.layer
    }
    assert room.sae_at(room.sae.layer) is room.sae and room.sae_at(0).layer == 0


def test_the_nearest_rates_are_taken_and_none_twice(sae):
    frequency = torch.zeros(sae.d_sae)
    frequency[:10] = torch.tensor([0.5, 0.1, 0.02, 0.4, 0.11, 0.019, 0.9, 0.001, 0.3, 0.2])
    model, wide = FeatureSet.of(sae, [0, 1, 2]), FeatureSet.of(sae, [3, 4, 5, 6, 7, 8, 9])
    assert like(wide, model, frequency, sae).latents == (3, 4, 5)
    twice = frequency.clone()
    twice[1] = 0.5
    assert like(wide, model, twice, sae).latents == (3, 5, 8) and len(like(model, wide, frequency, sae)) == 3


def test_characters_speak_of_the_selection_domains_alone():
    for name in OTHERS:
        rows = spoken(name, 20, 0)
        assert rows == spoken(name, 20, 0) != spoken(name, 20, 1) and all(row.answer for row in rows)
    asked = " ".join(row.messages[0]["content"] for row in spoken("joker", 50, 0))
    needs = {d: [n for t in world().in_domains((d,)) for n in t.needs] for d in (*SELECTION, *TEST)}
    assert any(n in asked for d in SELECTION for n in needs[d]) and not any(n in asked for d in TEST for n in needs[d])
