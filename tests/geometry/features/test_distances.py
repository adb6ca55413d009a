"""Distances: cosines against a double loop, set aggregates against numpy, symmetry, what has no angle."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from geometry.features import FeatureSet, distance_table, nearest, pairwise_cosine, set_distance, similarity_to
from geometry.features.distances import Aggregate
from probes.errors import InputError


def cosine(a, b) -> float:
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cosines_equal_a_double_loop():
    a, b = random(5, 8), random(7, 8, seed=1) * 3
    expected = [[cosine(x, y) for y in b.double().numpy()] for x in a.double().numpy()]
    assert np.allclose(pairwise_cosine(a, b), expected, atol=1e-6)
    assert torch.allclose(pairwise_cosine(a, b), pairwise_cosine(b, a).T, atol=1e-6)
    assert torch.allclose(pairwise_cosine(a * 7, b), pairwise_cosine(a, b), atol=1e-6)
    assert pairwise_cosine(a, -a).diagonal().tolist() == pytest.approx([-1] * 5)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_similarity_to_a_set(block):
    a, b = random(10, 8), random(20, 8, seed=1)
    cosines = pairwise_cosine(a, b)
    got = {name: similarity_to(a, b, aggregate=name, block=block) for name in get_args(Aggregate)}
    unit = torch.nn.functional.normalize(b, dim=1)
    assert torch.allclose(got["mean"], cosines.mean(1), atol=1e-6)
    assert torch.allclose(got["max"], cosines.amax(1), atol=1e-6)
    assert torch.allclose(got["top_q"], cosines.sort(1, descending=True).values[:, :2].mean(1), atol=1e-6)
    assert np.allclose(got["quantile"], np.quantile(cosines, 0.9, axis=1), atol=1e-6)
    assert torch.allclose(got["centroid"], pairwise_cosine(a, unit.mean(0)[None])[:, 0], atol=1e-6)


def test_top_q_lies_between_mean_and_max():
    a, b = random(10, 8), random(20, 8, seed=1)
    assert torch.allclose(similarity_to(a, b, aggregate="top_q", q=1.0), similarity_to(a, b), atol=1e-6)
    assert torch.allclose(
        similarity_to(a, b, aggregate="top_q", q=1e-9), similarity_to(a, b, aggregate="max"), atol=1e-6
    )


def test_set_distance_identities(sae):
    a, b = FeatureSet.of(sae, (1, 2, 3)), FeatureSet.of(sae, (7, 8))
    for aggregate in ("mean", "centroid"):
        there, back = (set_distance(sae, x, y, aggregate=aggregate).similarity for x, y in ((a, b), (b, a)))
        assert there == pytest.approx(back, abs=1e-6)
    for aggregate in ("max", "top_q", "centroid"):
        assert set_distance(sae, a, a, aggregate=aggregate).similarity == pytest.approx(1, abs=1e-6)
    near = set_distance(sae, a, b)
    assert near.similarity == pytest.approx(float(near.per_latent.mean())) and near.distance == 1 - near.similarity
    one = set_distance(sae, FeatureSet.of(sae, (1,)), FeatureSet.of(sae, (7,)))
    assert one.similarity == pytest.approx(cosine(sae.W_dec[1].numpy(), sae.W_dec[7].numpy()), abs=1e-6)


def test_encoder_side_reads_encoder_columns(sae):
    other = replace(sae, W_enc=random(16, 64, seed=9))
    a, b = FeatureSet.of(other, (1,)), FeatureSet.of(other, (7,))
    expected = cosine(other.W_enc[:, 1].numpy(), other.W_enc[:, 7].numpy())
    assert set_distance(other, a, b, side="encoder").similarity == pytest.approx(expected, abs=1e-6)
    assert set_distance(other, a, b).similarity == pytest.approx(set_distance(sae, a, b).similarity)


def test_distance_table_has_a_row_per_latent(sae):
    harmful = FeatureSet.of(sae, (7, 8))
    table = distance_table(sae, {"a": FeatureSet.of(sae, (1, 2)), "b": FeatureSet.of(sae, (3,))}, harmful)
    assert table["set"].tolist() == ["a", "a", "b"] and table.latent.tolist() == [1, 2, 3]
    expected = pairwise_cosine(sae.W_dec[[1, 2, 3]], sae.W_dec[[7, 8]]).mean(1)
    assert np.allclose(table.similarity, expected, atol=1e-6)


def with_row(value, row=3, rows=10):
    directions = random(rows, 8)
    directions[row] = value
    return directions


@pytest.mark.parametrize(("value", "message"), [(0.0, "direction 3 is zero"), (torch.nan, "direction 3 holds NaN")])
def test_a_direction_without_an_angle_is_named(value, message):
    broken, good = with_row(value), random(4, 8)
    for attempt in (
        lambda: pairwise_cosine(broken, good),
        lambda: pairwise_cosine(good, broken),
        lambda: similarity_to(broken, good, block=2),
        lambda: similarity_to(good, broken),
        lambda: nearest(broken, 1, block=2),
        lambda: nearest(broken, 1, queries=good, block=2),
        lambda: nearest(good, 1, queries=broken),
    ):
        with pytest.raises(InputError, match=message):
            attempt()


def test_bad_questions_are_refused(sae):
    good, pair = random(4, 8), FeatureSet.of(sae, (1, 2))
    with pytest.raises(InputError, match="cancel out"):
        similarity_to(good, torch.stack([good[0], -good[0]]), aggregate="centroid")
    with pytest.raises(InputError, match="is no share"):
        similarity_to(good, good, aggregate="top_q", q=0.0)
    with pytest.raises(InputError, match="no feature sets"):
        distance_table(sae, {}, pair)
    with pytest.raises(InputError, match="first feature set is empty"):
        set_distance(sae, FeatureSet.of(sae, ()), pair)
    with pytest.raises(InputError, match="different SAEs"):
        set_distance(replace(sae, name="other"), pair, pair)
