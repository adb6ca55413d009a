"""Maps: exact neighbours as UMAP wants them, the same map from the same seed, trust, groups; one UMAP size for all."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from geometry.features import FeatureSet, decoder_map, neighbour_table, neighbourhood
from geometry.features.maps import _neighbours
from probes.errors import InputError


@pytest.fixture(scope="module")
def clusters() -> torch.Tensor:
    """Three tight bundles of 20 directions in 16 dimensions."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(16)[:3].repeat_interleave(20, dim=0) * 3
    return centres + 0.3 * torch.randn(60, 16, generator=generator)


@pytest.fixture(scope="module")
def drawn(clusters):
    return decoder_map(clusters, seed=0, n_neighbors=8)


def test_bundles_stay_together(clusters, drawn):
    """Nine in ten of the nearest neighbours on the map are of the same bundle."""
    index = NearestNeighbors(n_neighbors=6).fit(drawn.umap).kneighbors(return_distance=False)
    bundle = np.arange(60) // 20
    assert (bundle[index] == bundle[:, None]).mean() > 0.9
    assert drawn.trust_umap > 0.8 and 0.5 < drawn.trust_pca <= 1


def test_same_seed_same_map_and_no_side_effects(clusters, drawn):
    before, state = clusters.clone(), torch.get_rng_state()
    again = decoder_map(clusters, seed=0, n_neighbors=8)
    assert torch.equal(again.umap, drawn.umap) and torch.equal(again.pca, drawn.pca)
    assert torch.equal(clusters, before) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(decoder_map(clusters, seed=1, n_neighbors=8).umap, drawn.umap)


def test_threads_stay_as_they_were(clusters):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        decoder_map(clusters, seed=0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_pca_is_that_of_unit_directions(clusters, drawn):
    unit = torch.nn.functional.normalize(clusters, dim=1)
    expected = PCA(n_components=2, svd_solver="full").fit_transform(unit.numpy())
    assert np.allclose(np.abs(drawn.pca.numpy()), np.abs(expected), atol=1e-5)
    assert 0 < sum(drawn.explained) <= 1


def test_length_does_not_matter(clusters, drawn):
    assert torch.allclose(decoder_map(clusters * 4, seed=0, n_neighbors=8).pca, drawn.pca, atol=1e-5)


def test_neighbours_put_the_row_itself_first(clusters):
    unit = torch.nn.functional.normalize(clusters, dim=1)
    index, distance = _neighbours(unit, 5)
    expected = NearestNeighbors(n_neighbors=5, metric="cosine").fit(unit).kneighbors(return_distance=False)[:, :4]
    assert index[:, 0].tolist() == list(range(60)) and (index[:, 1:] == expected).all()
    assert (distance[:, 0] == 0).all() and (np.diff(distance, axis=1) >= 0).all()


def test_neighbours_of_many_copies():
    unit = torch.nn.functional.normalize(torch.cat([torch.ones(9, 4), torch.eye(4)]), dim=1)
    index, distance = _neighbours(unit, 3)
    assert index[:, 0].tolist() == list(range(13)) and (distance[:, 0] == 0).all()
    assert all(len(set(row)) == 3 for row in index.tolist())


def test_table_names_the_groups(sae, drawn):
    sets = {"harmful": FeatureSet.of(sae, (0, 1)), "inducing": FeatureSet.of(sae, (1, 2))}
    table = drawn.table(sets, {2: "insult"})
    assert table.group.tolist()[:4] == ["harmful", "shared", "inducing", "other"]
    assert table.label.tolist()[:3] == ["", "", "insult"] and len(table) == 60
    assert np.allclose(table[["x", "y"]], drawn.umap)


def test_the_neighbours_of_the_harmful_set_come_with_their_groups(sae):
    sets = {"harmful": FeatureSet.of(sae, (3, 9)), "inducing": FeatureSet.of(sae, range(10, 40))}
    table = neighbour_table(sae.W_dec, sets, n=4, labels=dict.fromkeys(range(64), "word"))
    peer = NearestNeighbors(n_neighbors=5, metric="cosine").fit(sae.W_dec)
    distance, index = peer.kneighbors(sae.W_dec[[3, 9]])
    assert table.latent.tolist() == [3] * 4 + [9] * 4 and table["rank"].tolist() == [1, 2, 3, 4] * 2
    assert table.neighbour.tolist() == index[:, 1:].flatten().tolist() and set(table.label) == {"word"}
    assert np.allclose(1 - table.cosine, distance[:, 1:].flatten(), atol=1e-5)
    expected = {i: "inducing" if 10 <= i < 40 else "harmful" if i in (3, 9) else "other" for i in range(64)}
    assert table.group.tolist() == [expected[i] for i in table.neighbour]
    with pytest.raises(InputError, match="no feature set 'evil'"):
        neighbour_table(sae.W_dec, sets, of="evil")


def test_neighbourhood_is_the_latents_and_their_nearest(clusters):
    kept = neighbourhood(clusters, [0, 25], n=3)
    unit = torch.nn.functional.normalize(clusters, dim=1)
    near = NearestNeighbors(n_neighbors=4, metric="cosine").fit(unit).kneighbors(unit[[0, 25]], return_distance=False)
    assert kept.tolist() == sorted(set(near.flatten().tolist()))
    assert neighbourhood(clusters, [3], n=500).tolist() == list(range(60))


@pytest.mark.parametrize(
    ("directions", "given", "message"),
    [
        (torch.zeros(9, 4), {}, "direction 0 is zero"),
        (torch.ones(9, 4), {}, "the same"),
        (torch.full((9, 4), torch.nan), {}, "NaN"),
        (torch.eye(4), {"n_neighbors": 4}, "n_neighbors=4 for 4 directions"),
        (torch.eye(4), {"n_neighbors": 1}, "n_neighbors=1"),
        (torch.eye(4), {"latents": [1, 2]}, "2 latent names"),
    ],
)
def test_bad_maps_are_refused(directions, given, message):
    with pytest.raises(InputError, match=message):
        decoder_map(directions, seed=0, **({"n_neighbors": 3} | given))


def test_empty_neighbourhood_is_refused(clusters):
    with pytest.raises(InputError, match="no latents"):
        neighbourhood(clusters, [])
