"""Density, co-activation and neighbours of latents, each against figures worked out by hand or by a plain formula."""

import math

import numpy as np
import pytest
import torch

from probes import ActivationStore, InputError, capture
from saes import activation_density, coactivation, encode, nearest_latents
from saes.inspect.density import BINS, Densities
from saes.inspect.neighbours import typical_nearest
from saes.inspect.together import Pairs
from tests.saes.conftest import make_sae

#: Latents 1 and 2 of six tokens in two conversations, and which tokens are the answer's.
HAND = [[0.0, 1.0, 0.0], [0.0, 3.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 4.0], [0.0, 2.0, 1.0], [0.0, 0.0, 0.0]]
CONVERSATIONS, ANSWERS = [0, 0, 0, 1, 1, 1], [False, True, True, False, True, True]


@pytest.fixture
def hand(by_hand):
    """The six tokens as activations of `axis_sae`'s block."""
    return by_hand(HAND, CONVERSATIONS, ANSWERS)


def test_density_by_hand(axis_sae, planted_model, hand):
    found = activation_density(axis_sae, planted_model, hand, [1, 2, 5])
    one, two, none = found[1], found[2], found[5]
    assert (one.n_tokens, one.n_active, one.n_conversations, one.n_active_conversations) == (6, 3, 2, 2)
    assert (one.mean, one.top, one.share, one.share_conversations) == (2.0, 3.0, 0.5, 1.0)
    assert one.prompt == (1, 2) and one.response == (2, 4) and (one.share_prompt, one.share_response) == (0.5, 0.5)
    assert two.width == 8 / BINS and sum(two.counts) == 3  # 4 is put below 8
    assert {i: n for i, n in enumerate(two.counts) if n} == {8: 1, 16: 1, 32: 1}
    assert (none.n_active, none.counts, none.mean, none.width) == (0, (), 0.0, 0.0)


def test_only_tokens_that_count_are_counted(axis_sae, planted_model, hand):
    answers = activation_density(axis_sae, planted_model, hand, [1, 2], where="response")
    assert answers[1].prompt == (0, 0) and answers[1].response == (2, 4) and answers[1].share_prompt is None
    late = activation_density(axis_sae, planted_model, hand, [1, 2], skip=1)
    assert (late[1].n_tokens, late[1].n_active, late[2].top) == (4, 2, 2.0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_histogram_is_exact_however_the_stream_is_cut(scale, by_hand):
    values = scale * torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).relu() ** 3
    acts = by_hand([[0.0]] * 300, [i // 20 for i in range(300)])
    rising = torch.arange(300)[values[:, 0].argsort()]  # the bins must double often
    keep = torch.ones(300, dtype=torch.bool)
    whole, parts = Densities(2), Densities(2)
    whole.add(acts, values, keep)
    for rows in rising.split(7):
        parts.add(acts.select(rows), values[rows], keep[rows])
    for column in (0, 1):
        one, other = whole.of(column), parts.of(column)
        assert (one.counts, one.width, one.top) == (other.counts, other.width, other.top)
        active = values[:, column][values[:, column] > 0]
        edges = np.arange(len(one.counts) + 1) * one.width
        assert list(one.counts) == np.histogram(active.double().numpy(), bins=edges)[0].tolist()
        assert one.top < edges[-1] and len(one.counts) > BINS // 2 and math.log2(one.width).is_integer()


def test_coactivation_by_hand(axis_sae, hand):
    found = coactivation(axis_sae, hand, [1, 2])
    assert found.n == 6 and found.both[0, 2] == 2
    # 3 and 3 of 6 tokens, 2 of both, 4 of either
    assert found.jaccard[0, 2] == pytest.approx(2 / 4)
    assert found.phi[0, 2] == pytest.approx((6 * 2 - 3 * 3) / (3 * 3))
    pearson = np.corrcoef(np.array(HAND)[:, 1], np.array(HAND)[:, 2])[0, 1]
    assert found.correlation[0, 2] == pytest.approx(pearson, abs=1e-6)
    [partner] = found.partners(1)
    assert (partner.latent, partner.both) == (2, 2) and partner.phi == found.phi[0, 2]
    assert found.phi[0, 5] == 0 and found.table.query("latent == 2")["other"].tolist() == [1]


@pytest.mark.parametrize("kind", ["tensor", "activations", "store"])
def test_coactivation_is_that_of_all_latents_at_once(kind, tiny_model, tiny_conversations, tmp_path):
    sae = make_sae("standard")
    acts = source = capture(tiny_model, tiny_conversations, layers=[2], pool="tokens")
    if kind == "tensor":
        source = acts.at(2)
    if kind == "store":
        source = ActivationStore.create(tmp_path / "store", shard_tokens=40)
        capture(tiny_model, tiny_conversations, layers=[2], pool="tokens", store=source)
    found = coactivation(sae, source, [3, 40])
    latents = encode(sae, acts).double().numpy()
    fired = latents > 0
    for row, i in enumerate((3, 40)):
        for j in (3, 9, 40, 63):
            both, either = (fired[:, i] & fired[:, j]).sum(), (fired[:, i] | fired[:, j]).sum()
            assert found.both[row, j] == both and found.jaccard[row, j] == pytest.approx(both / either, abs=1e-6)
            assert found.phi[row, j] == pytest.approx(np.corrcoef(fired[:, i], fired[:, j])[0, 1], abs=1e-5)
            exact = np.corrcoef(latents[:, i], latents[:, j])[0, 1]
            assert found.correlation[row, j] == pytest.approx(exact, abs=1e-4)
    partners = found.partners(3, 4)
    assert [one.phi for one in partners] == sorted((one.phi for one in partners), reverse=True)
    assert 3 not in [one.latent for one in partners]


def test_a_latent_that_always_fires_goes_with_none():
    pairs = Pairs(3, [0])
    pairs.add(torch.tensor([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0], [1.0, 5.0, 0.0]]))
    done = pairs.done()
    assert done.phi[0].tolist() == [0, 0, 0] == done.correlation[0].tolist() and done.partners(0) == []


def test_coactivation_of_nothing(axis_sae, hand):
    with pytest.raises(InputError, match="no latents given"):
        coactivation(axis_sae, hand, [])
    with pytest.raises(InputError, match="was not asked for"):
        coactivation(axis_sae, hand, [1]).partners(2)


@pytest.mark.parametrize("by", ["decoder", "encoder"])
@pytest.mark.parametrize("block", [5, 64, 1000])
def test_neighbours_are_the_highest_cosines(by, block, monkeypatch):
    monkeypatch.setattr("saes.inspect.neighbours.BLOCK", block)
    sae = make_sae("topk", seed=2)
    rows = (sae.W_dec if by == "decoder" else sae.W_enc.T).numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for latent, found in nearest_latents(sae, [63, 0, 17], k=4, by=by).items():
        order = [i for i in np.argsort(-unit @ unit[latent], kind="stable") if i != latent]
        assert [one.latent for one in found] == order[:4]
        for one in found:
            assert getattr(one, by) == pytest.approx(float(unit[latent] @ unit[one.latent]), abs=1e-6)
    if by == "decoder":
        cosines = unit @ unit.T - 2 * np.eye(len(unit))
        middle = np.sort(cosines.max(1))[(len(unit) - 1) // 2]
        assert typical_nearest(sae) == pytest.approx(middle, abs=1e-6)


def test_neighbours_refuse_what_they_do_not_know(topk):
    with pytest.raises(InputError, match="latent 64 does not exist"):
        nearest_latents(topk, [64])
    assert len(nearest_latents(topk, [1], k=1000)[1]) == 63


def test_figures(axis_sae, planted_model, hand):
    density = activation_density(axis_sae, planted_model, hand, [1, 5])
    figure = density[1].figure()
    assert sum(figure.data[0].y) == 3 and "50.00% of 6 tokens" in figure.layout.title.text
    with pytest.raises(InputError, match="no active token"):
        density[5].figure()
    grid = coactivation(axis_sae, hand, [1, 2]).figure()
    assert grid.data[0].z[0][1] == pytest.approx(1 / 3) and grid.data[0].z[0][0] is None
    assert "2 and 1 fire together most: phi 0.33" in grid.layout.title.text
