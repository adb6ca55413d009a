"""Edits of SAE latents: the latent's change is added, and nothing else happens to the residual."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from geometry import Add, AddLatent, ClampLatent, PerRow, When, decompose, from_latent
from probes import InputError, capture
from saes import SparseAutoencoder


def test_clamp_against_loops(sae: SparseAutoencoder, batch, mask, reference) -> None:
    latents, values = (3, 11), (2.0, -1.0)
    after = ClampLatent(sae, latents, to=values)(batch, layer=2, mask=mask)
    assert torch.equal(after[~mask], batch[~mask])
    for at in mask.nonzero().tolist():
        h = batch[tuple(at)].double().numpy()
        hand = h.copy()
        for latent, value in zip(latents, values, strict=True):
            hand += (value - reference.topk_latent(h, sae, latent)) * sae.W_dec[latent].double().numpy()
        np.testing.assert_allclose(after[tuple(at)].numpy(), hand, atol=2e-5)


def test_clamping_moves_along_the_decoder_only(sae: SparseAutoencoder, batch, mask) -> None:
    active = int(sae.encode(batch[mask]).mean(0).argmax())
    change = ClampLatent(sae, active, to=0.0)(batch, layer=2, mask=mask) - batch
    row = sae.directions[active]
    torch.testing.assert_close(change, (change @ row)[..., None] * row, atol=1e-5, rtol=1e-4)
    assert float((change @ row).min()) < -0.1 and float((change @ row).max()) <= 1e-5


def test_identities(sae: SparseAutoencoder, batch, mask) -> None:
    def run(operator) -> torch.Tensor:
        return operator(batch, layer=2, mask=mask)

    silent = int((sae.encode(batch[mask]).amax(0) == 0).nonzero()[0])
    assert torch.equal(run(ClampLatent(sae, silent, to=0.0)), batch)
    assert torch.equal(run(ClampLatent(sae, 5, delta=0.0)), batch)
    assert torch.equal(run(AddLatent(sae, 5, strength=0.0, norm=3.0)), batch)
    torch.testing.assert_close(
        run(ClampLatent(sae, 5, delta=2.0)), run(Add(from_latent(sae, 5), strength=2.0 * 1.5, unit="raw"))
    )
    torch.testing.assert_close(
        run(AddLatent(sae, 5, strength=0.5, norm=8.0)), run(Add(from_latent(sae, 5, 8.0), strength=0.5, unit="raw"))
    )
    both = run(AddLatent(sae, (5, 6), strength=0.5, norm=8.0)) - batch
    single = [run(AddLatent(sae, i, strength=0.5, norm=8.0)) - batch for i in (5, 6)]
    torch.testing.assert_close(both, single[0] + single[1], atol=1e-5, rtol=1e-4)


def test_nothing_masked_and_half_precision(sae: SparseAutoencoder, batch, mask) -> None:
    operator = ClampLatent(sae, 3, to=1.0)
    assert operator(batch, layer=2, mask=torch.zeros_like(mask)) is batch
    assert operator(batch.bfloat16(), layer=2, mask=mask).dtype == torch.bfloat16
    assert operator.layers == (2,) and operator.indices == (3,)


def test_latent_refusals(sae: SparseAutoencoder) -> None:
    for words, act in {
        "either": lambda: ClampLatent(sae, 3),
        "either to= ": lambda: ClampLatent(sae, 3, to=1.0, delta=1.0),
        "2 values for 1": lambda: ClampLatent(sae, 3, to=(1.0, 2.0)),
        "each of them once": lambda: ClampLatent(sae, (3, 3), to=1.0),
        "latent 64": lambda: AddLatent(sae, 64, strength=1.0, norm=1.0),
        "norm 0": lambda: AddLatent(sae, 3, strength=1.0, norm=0.0),
    }.items():
        with pytest.raises(InputError, match=words):
            act()


@pytest.mark.parametrize("site", ["resid_post", "resid_mid", "mlp_out", "attn_out"])
def test_it_acts_at_the_sae_own_site(sae: SparseAutoencoder, tiny_model, tiny_conversations, site) -> None:
    """What the model hands on at that site is changed as the operator says, alone and inside a PerRow."""
    there = replace(sae, site=site)
    operator = ClampLatent(there, (3, 5), to=4.0)
    before = capture(tiny_model, tiny_conversations, layers=[2], pool="tokens", site=site).at(2)
    expected = operator(before[None], layer=2, mask=torch.ones(1, len(before), dtype=torch.bool))[0]
    assert (expected - before).norm() > 1
    for edit in (operator, PerRow([operator], [0] * len(tiny_conversations))):
        with tiny_model.intervene(edit):
            after = capture(tiny_model, tiny_conversations, layers=[2], pool="tokens", site=site).at(2)
        torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)


def test_other_sites_are_refused_where_outputs_are_meant(sae: SparseAutoencoder, vector) -> None:
    other = replace(sae, site="mlp_out")
    clamp = ClampLatent(other, 3, to=0.0)
    for words, act in {
        "a persona vector is about the output of a block": lambda: from_latent(other, 3),
        "a persona vector is about the output": lambda: decompose(vector, other),
        "at mlp_out inside When": lambda: When(clamp, vector, layer=1, decide="token", threshold=0.0),
        "at sites .'mlp_out', 'resid_post'. in one PerRow": lambda: PerRow(
            [clamp, ClampLatent(sae, 3, to=0.0)], [0, 1]
        ),
        "which cannot be changed": lambda: ClampLatent(replace(sae, site="attn_z"), 3, to=0.0),
    }.items():
        with pytest.raises(InputError, match=words):
            act()
