"""The SAE itself: against the definitions, and its bad input."""

import dataclasses

import numpy as np
import pytest
import torch

from probes import InputError
from saes import SparseAutoencoder


def test_encode_and_decode_follow_the_definitions(sae, rows, reference):
    latents = sae.encode(rows)
    expected = reference.encode(sae, rows.double().numpy())
    np.testing.assert_allclose(latents.numpy(), expected, atol=2e-5)
    np.testing.assert_allclose(sae.decode(latents).numpy(), reference.decode(sae, expected), atol=2e-5)


def test_latents_of_a_sum_of_orthogonal_features_are_its_coefficients():
    eye = torch.eye(8)
    sae = SparseAutoencoder(eye, eye, torch.zeros(8), torch.zeros(8), kind="topk", layer=0, k=2)
    x = torch.tensor([0.0, 3.0, 0.0, 0.0, 1.5, 0.0, 0.0, 0.0])
    assert torch.equal(sae.encode(x), x)
    assert torch.equal(sae.decode(sae.encode(x)), x)


def test_top_k_keeps_at_most_k_and_nothing_is_negative(sae, rows):
    latents = sae.encode(rows)
    assert (latents >= 0).all()
    if sae.kind == "topk":
        assert (latents > 0).sum(-1).max() <= sae.k


def test_some_latents_are_columns_of_all(sae, rows):
    chosen = [7, 0, 63, 7]
    torch.testing.assert_close(sae.encode_some(rows, chosen), sae.encode(rows)[:, chosen], rtol=1e-5, atol=1e-5)


def test_any_leading_axes_and_single_rows(sae, rows):
    batched = sae.encode(rows.reshape(3, 100, 32))
    torch.testing.assert_close(batched.reshape(300, 64), sae.encode(rows), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.encode(rows[0]), sae.encode(rows)[0], rtol=1e-5, atol=1e-5)


def test_directions_are_unit_rows_and_a_dead_row_stays_zero(sae):
    torch.testing.assert_close(sae.directions.norm(dim=-1), torch.ones(64))
    torch.testing.assert_close(sae.encoder_directions.norm(dim=-1), torch.ones(64))
    dead = dataclasses.replace(sae, W_dec=sae.W_dec * (torch.arange(64) != 3)[:, None])
    assert dead.directions[3].abs().sum() == 0


def test_moving_keeps_all_but_the_number_type(sae, rows):
    wide = sae.to(dtype=torch.float64)
    assert wide.dtype == torch.float64 and wide.encode(rows).dtype == torch.float64
    torch.testing.assert_close(wide.encode(rows).float(), sae.encode(rows), rtol=1e-4, atol=1e-4)
    assert sae.dtype == torch.float32


def test_gradients_flow_to_the_input(sae, rows):
    x = rows[:5].clone().requires_grad_()
    sae.decode(sae.encode(x)).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"W_dec": torch.zeros(64, 31)}, r"W_dec has shape \(64, 31\)"),
        ({"b_enc": torch.zeros(63)}, "b_enc"),
        ({"b_dec": torch.zeros(64)}, "b_dec"),
        ({"kind": "maxout"}, "kind 'maxout' is unknown; use one of topk, jumprelu, standard, gated"),
        ({"kind": "gated", "threshold": None}, "a gated SAE needs a threshold"),
        ({"site": "heads"}, "site 'heads' is unknown; use one of resid_pre"),
        ({"kind": "topk", "k": None}, "needs k between 1 and 64"),
        ({"kind": "topk", "k": 65}, "needs k between 1 and 64"),
        ({"kind": "jumprelu", "threshold": None}, "needs a threshold"),
        ({"kind": "jumprelu", "threshold": torch.zeros(3)}, "threshold"),
        ({"layer": -1}, "layer -1 is negative"),
    ],
)
def test_bad_weights_are_refused(changes, says, topk):
    wrong = object.__new__(SparseAutoencoder)  # past the shape checker of the test run, as users' SAEs come
    for field in dataclasses.fields(topk):
        object.__setattr__(wrong, field.name, changes.get(field.name, getattr(topk, field.name)))
    with pytest.raises(InputError, match=says):
        wrong.__post_init__()


def test_bad_input_is_refused(sae):
    with pytest.raises(InputError, match=r"reads width 32; got activations of shape \(2, 31\)"):
        sae.encode(torch.zeros(2, 31))
    with pytest.raises(InputError, match="has 64 latents"):
        sae.decode(torch.zeros(2, 63))
    with pytest.raises(InputError, match="latent 64 does not exist; it has latents 0 to 63"):
        sae.encode_some(torch.zeros(2, 32), [3, 64])


def test_shown_in_words(topk):
    assert "topk, k=5" in repr(topk) and "output of block 2" in repr(topk)
    assert "mlp_out of block 2" in repr(dataclasses.replace(topk, site="mlp_out"))
    hostile = dataclasses.replace(topk, name="<script>")
    assert "<script>" not in hostile._repr_html_() and "&lt;script&gt;" in hostile._repr_html_()
