"""Subspaces: angles against SciPy, overlap and its null against draws by QR, planted overlap, the causal product."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geometry.features import (
    FeatureSet,
    FrequencyMatched,
    causal_product,
    compare_sets,
    pairwise_cosine,
    principal_angles,
    set_distance,
    set_subspaces,
    subspace_overlap,
)
from geometry.features.subspaces import _random_overlaps
from geometry.steering.vectors import Subspace
from probes.errors import InputError


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(6, 12), st.integers(0, 1000))
def test_angles_equal_scipys_and_change_with_nothing(r, s, d, seed):
    a, b = random(r, d, seed=seed), random(s, d, seed=seed + 1)
    found = principal_angles(a, b)
    expected = np.rad2deg(np.sort(scipy.linalg.subspace_angles(a.double().numpy().T, b.double().numpy().T)))
    assert np.allclose(found, expected, atol=1e-5)
    rotation = torch.linalg.qr(random(d, d, seed=seed + 2)).Q
    for one, other in ((a @ rotation, b @ rotation), (a.flip(0) * 3, b * -0.1), (torch.cat([a, a]), b), (b, a)):
        assert np.allclose(principal_angles(one, other), found, atol=1e-3)


def test_equal_and_orthogonal_spans():
    eye = torch.eye(9)
    assert principal_angles(eye[:3], eye[[2, 1, 0]] * 5).tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    assert principal_angles(eye[:3], eye[3:5]).tolist() == pytest.approx([90, 90])
    tilted = torch.tensor([[1.0, 1e-6, 0]], dtype=torch.float64)
    assert principal_angles(torch.eye(3, dtype=torch.float64)[:1], tilted).item() == pytest.approx(np.rad2deg(1e-6))


@pytest.mark.parametrize(("r", "s", "d"), [(1, 1, 5), (2, 4, 9), (4, 2, 40), (3, 3, 4), (3, 3, 3)])
def test_the_null_is_that_of_random_subspaces(r, s, d):
    """Overlaps drawn by two small matrices are distributed as those of orthonormalised Gaussian ones."""
    fast = _random_overlaps(r, s, d, 3000, generator())
    draws = random(3000, d, r + s, seed=1).double()
    one, other = (torch.linalg.qr(x).Q for x in draws.split([r, s], dim=2))
    slow = (one.mT @ other).square().sum(dim=(1, 2)) / min(r, s)
    assert fast.mean() == pytest.approx(max(r, s) / d, abs=0.02)
    levels = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    assert torch.allclose(fast.quantile(levels), slow.quantile(levels), atol=0.04)


def test_overlap_of_planted_subspaces():
    shared = random(2, 60)
    a, b = torch.cat([shared, random(2, 60, seed=1)]), torch.cat([shared, random(2, 60, seed=2)])
    found = subspace_overlap(a, b, generator=generator())
    assert 0.5 < found.overlap < 0.6 and found.p == 1 / 1001 and found.angles[:2] == pytest.approx((0, 0), abs=1e-3)
    assert found.expected == pytest.approx(4 / 60, abs=0.01) and found.low < found.expected < found.high
    spaces = [Subspace.spanned(3, rows) for rows in (a, b)]
    assert subspace_overlap(*spaces, generator=generator()).overlap == pytest.approx(spaces[0].overlap(spaces[1]))
    apart = subspace_overlap(random(3, 60, seed=4), random(3, 60, seed=5), generator=generator())
    assert apart.p > 0.01 and apart.overlap < 0.2


def test_sets_of_a_common_span_are_found(sae):
    decoder = sae.W_dec.clone()
    decoder[:12] = random(12, 3) @ random(3, 16, seed=1) + 0.02 * random(12, 16, seed=2)
    planted = replace(sae, W_dec=decoder)
    a, b = FeatureSet.of(planted, range(6)), FeatureSet.of(planted, range(6, 12))
    rates = FrequencyMatched(torch.rand(64, generator=generator(4)), bins=2)
    for null in ("random_features", rates):
        found = set_subspaces(planted, a, b, rank=3, null=null, generator=generator())
        assert found.overlap > 0.9 and found.p < 0.02 and found.expected < 0.6
    other = set_subspaces(planted, FeatureSet.of(planted, range(20, 26)), b, rank=3, generator=generator())
    assert other.p > 0.02
    shared = FeatureSet.of(planted, (0, 30, 31))
    assert set_subspaces(planted, shared, a, rank=2, generator=generator()).angles[0] > 1  # latent 0 is left out
    with pytest.raises(InputError, match="nothing that the other"):
        set_subspaces(planted, a, a, generator=generator())
    with pytest.raises(InputError, match="rank 4 of 3"):
        set_subspaces(planted, FeatureSet.of(planted, (20, 21, 22)), b, rank=4, generator=generator())


def test_the_causal_product_whitens_what_reads_and_keeps_pairings(sae):
    unembedding = random(500, 16, seed=3) @ random(16, 16, seed=4)
    product = causal_product(unembedding)
    covariance = np.cov(unembedding.double().numpy().T)
    read, written = random(5, 16, seed=5), random(4, 16, seed=6)
    assert np.allclose(np.cov(product.mapped(unembedding.double(), "encoder").numpy().T), np.eye(16), atol=1e-8)
    pairs = product.mapped(read, "encoder") @ product.mapped(written, "decoder").T
    assert torch.allclose(pairs, read @ written.T, atol=1e-3)

    def by_formula(x, y):  # lambda^T Cov(gamma) lambda', arXiv 2311.03658
        return x @ covariance @ y / np.sqrt((x @ covariance @ x) * (y @ covariance @ y))

    a, b = FeatureSet.of(sae, (1,)), FeatureSet.of(sae, (7,))
    expected = by_formula(*(sae.W_dec[i].double().numpy() for i in (1, 7)))
    assert set_distance(sae, a, b, product=product).similarity == pytest.approx(expected, abs=1e-5)
    three = [FeatureSet.of(sae, ids) for ids in (range(10, 20), range(30, 40), range(10))]
    mapped = product.mapped(sae.W_dec, "decoder")
    near = pairwise_cosine(mapped, mapped[:10]).mean(1)
    for null in ("label_permutation", "random_features"):
        table = compare_sets(sae, *three, generator=generator(), n_permutations=20, null=null, product=product)
        assert table.effect == pytest.approx(float(near[10:20].mean() - near[30:40].mean()), abs=1e-5)


def test_an_isotropic_unembedding_changes_no_angle(sae):
    rotation = torch.linalg.qr(random(16, 16).double()).Q
    product = causal_product(torch.cat([rotation, -rotation]) * 2)
    assert torch.allclose(
        pairwise_cosine(*[product.mapped(sae.W_dec.double(), "decoder")] * 2),
        pairwise_cosine(*[sae.W_dec.double()] * 2),
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: causal_product(random(10, 16)), "rank 9 of 16"),
        (lambda: causal_product(random(1, 16)), "1 rows"),
        (lambda: causal_product(random(40, 4), ridge=-1.0), "ridge=-1.0"),
        (
            lambda: causal_product(random(40, 4)).mapped(random(2, 5), "decoder"),
            "width 5 and a causal product of width 4",
        ),
        (lambda: principal_angles(random(2, 5), random(2, 4)), "widths 5 and 4"),
        (lambda: principal_angles(torch.zeros(2, 5), random(2, 5)), "direction 0 is zero"),
        (lambda: subspace_overlap(random(2, 5), torch.full((1, 5), torch.nan), generator=generator()), "NaN"),
    ],
)
def test_what_has_no_angle_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
    assert causal_product(random(10, 16), ridge=0.1).root.shape == (16, 16)
