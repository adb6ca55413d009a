"""Latents found again: partners against every assignment there is, baselines, dead latents, correlations."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from probes import InputError
from saes import encode, latent_stability, match_latents
from tests.saes.conftest import make_sae


def shuffled(sae, order, noise: float = 0.0, seed: int = 1):
    """The same SAE with its latents in another order, some noise on the directions."""
    w_dec = sae.W_dec[order] + noise * torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(sae, W_enc=sae.W_enc[:, order], W_dec=w_dec, b_enc=sae.b_enc[order], name="shuffled")


def test_an_order_is_found_again_whatever_the_lengths(topk):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    other = shuffled(topk, order)
    match = match_latents(topk, dataclasses.replace(other, W_dec=3 * other.W_dec))
    assert torch.equal(match.index, order.argsort()) and torch.equal(match.nearest, match.index)
    torch.testing.assert_close(match.cosine, torch.ones(64)) and torch.testing.assert_close(match.best, torch.ones(64))


def test_partners_are_the_best_of_all_assignments():
    one, other = make_sae("topk", d_model=4, d_sae=6), make_sae("topk", d_model=4, d_sae=6, seed=9)
    cosines = (one.directions @ other.directions.T).double().numpy()
    wanted = max(sum(cosines[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(6)))
    match = match_latents(one, other)
    assert float(match.cosine.sum()) == pytest.approx(wanted, abs=1e-6)
    np.testing.assert_allclose(match.best, cosines.max(1), atol=1e-6)
    assert (match.best >= match.cosine - 1e-6).all() and sorted(match.index.tolist()) == list(range(6))


def test_fewer_latents_leave_some_without_a_partner():
    one, other = make_sae("standard", d_sae=40), make_sae("standard", d_sae=24, seed=3)
    match = match_latents(one, other)
    assert int((match.index < 0).sum()) == 16 and torch.equal(match.index < 0, match.cosine.isnan())
    table = latent_stability([one, other], draws=2).table.set_index("sae")
    assert table.loc["0: random standard", "latents"] == 40
    near = torch.where(match.cosine.isnan(), 0.0, match.cosine) >= 0.7
    assert table.loc["0: random standard", "one_to_one_0.7"] == pytest.approx(float(near.double().mean()))


def test_strangers_are_as_near_as_random_directions_and_kin_are_nearer():
    strangers = latent_stability({"a": make_sae("topk"), "b": make_sae("topk", seed=5)}, draws=20)
    for row in strangers.table.to_dict("records"):
        slack = row["random_best_high"] - row["random_best_low"]
        assert abs(row["best"] - row["random_best"]) < 2 * slack
        assert row["random_best_low"] < row["random_best"] < row["random_best_high"]
    a = make_sae("topk")
    kin = latent_stability({"a": a, "b": shuffled(a, torch.arange(64).flip(0), noise=0.08)}).table
    assert (kin["best"] > kin["random_best_high"] + 0.2).all() and (kin["one_to_one_0.7"] > 0.9).all()


def test_directions_that_all_lie_in_a_plane_are_near_by_covariance_alone():
    flat = torch.tensor([1.0, 1.0] + [0.01] * 30)
    flattened = [dataclasses.replace(make_sae("topk", seed=seed), name=str(seed)) for seed in (0, 1)]
    flattened = [dataclasses.replace(sae, W_dec=sae.W_dec * flat) for sae in flattened]
    row = latent_stability(flattened).table.iloc[0]
    assert row["best_0.9"] > 0.9 and row["random_best_0.9"] == 0  # uniform directions would call that stable
    assert row["covariance_best_0.9"] == pytest.approx(row["best_0.9"], abs=0.1)


def test_rows_leave_out_the_dead_and_correlate_partners(rows):
    one, other = make_sae("standard"), make_sae("standard", seed=2)
    b_enc = one.b_enc.clone()
    b_enc[:5] = -1e6
    one = dataclasses.replace(one, b_enc=b_enc)
    found = latent_stability({"one": one, "other": other}, activations=rows)
    row, match = found.table.iloc[0], found.matches["one", "other"]
    assert row["latents"] == 59 and bool((match.index[:5] == -1).all()) and bool(match.best[:5].isnan().all())
    x, y = (encode(sae, rows).double().numpy() for sae in (one, other))
    pairs = [(i, int(j)) for i, j in enumerate(match.index) if j >= 0 and y[:, int(j)].std() > 0]
    wanted = np.mean([np.corrcoef(x[:, i], y[:, j])[0, 1] for i, j in pairs])
    assert row["correlation"] == pytest.approx(wanted, rel=1e-4) and len(pairs) == 59


def test_several_seeds_and_a_figure():
    saes = {str(seed): make_sae("topk", seed=seed) for seed in range(3)}
    found = latent_stability(saes, draws=2)
    assert len(found.table) == 6 and found.figure().layout.title.text.startswith("0% of the latents come again")
    again = latent_stability(saes, draws=2)
    assert found.table.equals(again.table) and not found.table.equals(latent_stability(saes, draws=2, seed=1).table)
    assert "random_best" in found._repr_html_() and "_low" not in found._repr_html_()


def test_bad_input(topk):
    with pytest.raises(InputError, match="1 SAEs and 5 draws"):
        latent_stability([topk])
    with pytest.raises(InputError, match="block 1 resid_post of width 32, block 2 resid_post of width 32"):
        latent_stability([topk, make_sae("topk", layer=1)])
    with pytest.raises(InputError, match="have widths 32 and 16"):
        match_latents(topk, make_sae("topk", d_model=16))
    with pytest.raises(InputError, match="no latent to match"):
        latent_stability([topk, dataclasses.replace(topk, W_dec=topk.W_dec * 0)])
