"""Nearest neighbours: exact at every block size, with and without queries, for halves, copies and bad questions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from geometry.features import nearest, pairwise_cosine
from probes.errors import InputError


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("own", [False, True])
def test_neighbours_equal_a_brute_force_search(block, own):
    directions, queries = random(120, 12), None if own else random(9, 12, seed=4)
    found = nearest(directions, 5, queries=queries, block=block)
    peer = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(directions)
    distance, index = peer.kneighbors(queries)  # of None: among the rows themselves, each left out of its own list
    assert found.index.tolist() == index.tolist()
    assert np.allclose(1 - found.similarity.numpy(), distance, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(1, 12), st.integers(1, 15), st.integers(0, 1000), st.booleans())
def test_neighbours_are_the_largest_cosines(n, k, block, seed, own):
    directions = random(n, 4, seed=seed)
    k = min(k, n - own)
    found = nearest(directions, k, queries=None if own else directions[:3], block=block)
    cosines = pairwise_cosine(directions, directions)
    cosines = cosines.fill_diagonal_(-2) if own else cosines[:3]
    assert torch.allclose(found.similarity, cosines.sort(dim=1, descending=True).values[:, :k], atol=1e-5)
    assert all(len(set(row)) == k for row in found.index.tolist())


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 20), st.integers(0, 1000))
def test_rotation_scale_and_order_change_nothing(n, seed):
    directions = random(n, 5, seed=seed)
    first = nearest(directions, 2)
    rotation = torch.linalg.qr(random(5, 5, seed=seed + 1)).Q
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    back = order.argsort()
    for other, shuffled in (
        (directions @ rotation, False),
        (directions * random(n, 1, seed=seed + 2).abs().add(0.1), False),
        (directions[order], True),
    ):
        found = nearest(other, 2, block=3)
        similarity = found.similarity[back] if shuffled else found.similarity
        assert torch.allclose(similarity, first.similarity, atol=1e-5)


def test_neighbours_of_half_precision_and_copies():
    directions = random(30, 8).half()
    assert nearest(directions, 1, queries=directions).index[:, 0].tolist() == list(range(30))
    same = torch.ones(4, 8)
    found = nearest(same, 3, block=2)
    assert found.similarity.flatten().tolist() == pytest.approx([1] * 12)
    assert [sorted([i, *row]) for i, row in enumerate(found.index.tolist())] == [[0, 1, 2, 3]] * 4


@pytest.mark.parametrize(
    ("k", "queries", "message"),
    [
        (0, None, "k=0"),
        (4, None, "k=4 neighbours asked of 3 other"),
        (5, random(2, 8), "k=5 neighbours asked of 4 dir"),
        (1, random(2, 7), "widths 8 and 7"),
    ],
)
def test_bad_questions_are_refused(k, queries, message):
    with pytest.raises(InputError, match=message):
        nearest(random(4, 8), k, queries=queries)
