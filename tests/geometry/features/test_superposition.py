"""Superposition: coherence and interference by loops, and a toy model whose fine-tuning is foretold by nearness."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from geometry.features import ToyModel, coherence, interference, pairwise_cosine, toy_inputs, toy_model
from probes.errors import InputError

PAIRS = ((0, 1), (2, 3))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def toys():
    """Two toy models of 12 features in 5 dimensions, of which two pairs are always active together."""
    return [toy_model(12, 5, generator=generator(seed), density=0.08, correlated=PAIRS, steps=800) for seed in range(2)]


@pytest.mark.parametrize("block", [1, 3, 100])
def test_coherence_and_interference_equal_a_double_loop(block):
    directions = torch.randn(9, 4, generator=generator()) * torch.linspace(0.1, 5, 9)[:, None]
    rows = directions.numpy()
    cosines = [abs(float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))) for a in rows for b in rows]
    table = np.array(cosines).reshape(9, 9)
    np.fill_diagonal(table, 0)
    found = coherence(directions, block=block)
    assert (found.largest, found.mean) == pytest.approx((table.max(), table.sum() / 72), abs=1e-6)
    assert np.allclose(interference(directions, block=block), (table**2).sum(axis=1), atol=1e-5)
    assert found.largest >= found.welch == pytest.approx(math.sqrt(5 / 32))


def test_known_coherence():
    assert coherence(torch.eye(4)).largest == coherence(torch.eye(4)).welch == 0
    assert interference(torch.eye(4)).tolist() == [0] * 4
    corners = torch.tensor([[1.0, 0], [-0.5, math.sqrt(3) / 2], [-0.5, -math.sqrt(3) / 2]])
    frame = coherence(corners)  # three directions in a plane at their least coherence
    assert frame.largest == pytest.approx(frame.welch, abs=1e-6) and frame.mean == pytest.approx(0.5, abs=1e-6)
    assert coherence(torch.ones(3, 2)).largest == pytest.approx(1)
    assert interference(torch.ones(3, 2)).tolist() == pytest.approx([2] * 3)


def test_more_features_than_dimensions_are_stored_on_top_of_each_other(toys):
    for toy in toys:
        kept = toy.W.norm(dim=1) > 0.5
        assert kept.sum() > 5 and coherence(toy.W[kept]).largest > 0.2
        x = toy_inputs(4000, 12, generator=generator(9), density=0.08, correlated=PAIRS)
        error = (toy.read(toy.hidden(x)) - x).square().sum() / x.square().sum()
        assert error < 0.5


def test_features_that_come_together_are_never_opposite(toys):
    """Features of one pair interfere each time they are active: they do not lie against each other."""
    cosines = [float(pairwise_cosine(toy.W, toy.W)[pair]) for toy in toys for pair in PAIRS]
    assert min(cosines) > -0.3


def test_spill_follows_the_derivation(toys):
    """Where every feature is read above zero, the change is alpha <w_j, w_target> / |w_target|, exactly."""
    toy = toys[0]
    x = torch.zeros(1, 12)
    above = ToyModel(toy.W, torch.full((12,), 10.0))
    target = toy.W[4] / toy.W[4].norm()
    assert torch.allclose(above.spill(x, 4, 0.3), 0.3 * toy.W @ target, atol=1e-5)


def test_nearness_foretells_what_training_one_feature_does_to_the_others(toys):
    """The target alone is trained; the others change in the order of their cosines to it, not of shuffled ones."""
    agreed, shuffled = [], []
    for toy in toys:
        x = toy_inputs(3000, 12, generator=generator(5), density=0.3, correlated=PAIRS)
        for target in toy.W.norm(dim=1).topk(6).indices.tolist():
            tuned = toy.tuned(x, target, steps=300, rate=0.3)
            others = [j for j in range(12) if j != target]
            near = (toy.W @ toy.W[target] / toy.W[target].norm())[others].numpy()
            change = tuned.change[others].numpy()
            assert tuned.change[target] > 0.5  # training did its work
            agreed.append(spearmanr(near, change).statistic)
            shuffled.append(spearmanr(np.random.default_rng(target).permutation(near), change).statistic)
            first_order = np.corrcoef(toy.spill(x, target, 0.5)[others].numpy(), change)[0, 1]
            assert first_order > 0.9
    assert np.mean(agreed) > 0.7 and abs(np.mean(shuffled)) < 0.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coherence(torch.ones(1, 3)), "needs two"),
        (lambda: interference(torch.zeros(2, 3)), "direction 0 is zero"),
        (lambda: toy_inputs(5, 3, generator=generator(), density=0.0), "density=0.0"),
        (lambda: toy_model(0, 3, generator=generator()), "0 features"),
        (
            lambda: toy_model(3, 2, generator=generator(), steps=1).tuned(torch.rand(4, 3), 3, steps=1, rate=0.1),
            "feature 3",
        ),
    ],
)
def test_bad_toys_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_training_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, two = (toy_model(4, 2, generator=generator(), steps=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(one.W, two.W)
