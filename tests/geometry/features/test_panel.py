"""Panels: corrected p against their definitions by hand, joint draws, blocks, and the level under the null."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from geometry.features import FeatureSet, FrequencyMatched, compare_many, compare_sets, panel
from geometry.features.panel import _joint, corrected
from probes.errors import InputError

RATES = torch.rand(64, generator=torch.Generator().manual_seed(7))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def named(sae, **latents):
    return {name: FeatureSet.of(sae, ids) for name, ids in latents.items()}


def test_corrections_follow_their_definitions():
    p = [0.04, 0.001, 0.5, 0.02, 0.02]
    found = corrected(p)
    by_hand = [min(1.0, max((5 - np.sum(np.array(p) < x)) * x for x in p if x <= own)) for own in p]
    assert found["p_holm"] == pytest.approx(by_hand)
    ordered = sorted(p)
    q = [min(5 * x / (max(i for i, y in enumerate(ordered) if y == x) + 1) for x in ordered if x >= own) for own in p]
    assert found["q"] == pytest.approx(q)
    assert corrected([0.03]) == {"p_holm": [0.03], "q": [0.03]}


@pytest.mark.parametrize("null", ["label_permutation", "random_features", FrequencyMatched(RATES, bins=3)])
def test_the_planted_data_set_stands_out_of_many(planted, null):
    sets = named(planted, bad=range(10, 18), plain=range(20, 28), other=range(24, 32), shared=(10, 11, 50, 51, 52, 53))
    benign, harmful = named(planted, b=range(40, 50), h=range(10)).values()
    found = compare_many(planted, sets, benign, harmful, generator=generator(), n_permutations=500, null=null)
    table = found.table.set_index("name")
    corrections = ["p_holm", "q"] + (["p_max"] if null != "label_permutation" else [])
    assert list(table.columns[-len(corrections) :]) == corrections
    for name in corrections:
        assert table.loc["bad", name] < 0.05 < table.loc["plain", name]
        assert (table[name] >= table["p"] - 0.03).all()  # a correction makes nothing more sure, but for other draws
    alone = compare_sets(planted, sets["bad"], benign, harmful, generator=generator(), n_permutations=500, null=null)
    assert table.loc["bad", "effect"] == pytest.approx(alone.effect) and table.loc["bad", "p"] == alone.p
    assert "4 comparisons" in found.multiplicity and len(found.figure().data[1].x) == 4


def test_of_many_sets_without_effect_few_are_found(sae):
    """Five random data sets each time: alone, one often seems to lie nearer; together, one time in twenty."""
    drawing, alone, together = generator(3), 0, 0
    for _ in range(100):
        order = torch.randperm(64, generator=drawing).tolist()
        sets = named(sae, **{f"s{i}": order[8 * i : 8 * i + 8] for i in range(5)})
        benign, harmful = FeatureSet.of(sae, order[40:52]), FeatureSet.of(sae, order[52:])
        given = {"generator": drawing, "n_permutations": 99, "null": "random_features"}
        alone += any(_joint(sae, {name: one}, benign, harmful, **given)[0] < 0.0501 for name, one in sets.items())
        together += min(_joint(sae, sets, benign, harmful, **given)) < 0.0501
    assert alone >= 10 and together <= 11  # 2.8 standard deviations above 5


def test_a_profile_over_blocks(planted, sae):
    tables = {}
    for layer, one in ((3, sae), (8, planted)):
        here = replace(one, layer=layer)
        three = named(here, a=range(10, 20), b=range(30, 40), c=range(10)).values()
        tables[layer] = compare_sets(here, *three, generator=generator(), n_permutations=200)
    found = panel(tables, kind="block")
    assert found.table.name.tolist() == [3, 8] and found.table.effect.tolist() == [t.effect for t in tables.values()]
    assert found.table.p_holm[1] < 0.05 < found.table.p_holm[0]
    figure = found.figure()
    assert figure.layout.xaxis.title.text == "block" and "1 of 2 blocks" in figure.layout.title.text
    band = tables[8].nulls.effect.quantile([0.05, 0.95]).tolist()
    assert found.table.loc[1, ["null_low", "null_high"]].tolist() == pytest.approx(band)


def test_bad_panels_are_refused(planted):
    three = list(named(planted, a=range(10, 20), b=range(30, 40), c=range(10)).values())
    tables = {
        null: compare_sets(planted, *three, generator=generator(), n_permutations=5, null=null)
        for null in ("label_permutation", "random_features")
    }
    for call, message in (
        (lambda: panel({}, kind="block"), "no comparisons"),
        (lambda: panel(tables, kind="data set"), "several nulls"),
        (lambda: compare_many(planted, {}, *three[1:], generator=generator()), "no feature sets"),
        (lambda: compare_many(planted, {"a": three[1]}, *three[1:], generator=generator()), "keeps 0 latent"),
    ):
        with pytest.raises(InputError, match=message):
            call()
