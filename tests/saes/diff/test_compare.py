"""Model diffing: signs, ranks, controls, and a planted shift that it must find."""

import numpy as np
import pytest
import torch

from probes import InputError, capture
from saes import diff_latents, encode


def test_columns_follow_their_definitions(sae, rows):
    tuned = rows + 0.7 * sae.directions[11]
    diff = diff_latents(rows, tuned, sae, control=rows + 0.1)
    before, after, control = (encode(sae, x).double() for x in (rows, tuned, rows + 0.1))
    table = diff.table
    assert list(table["latent"]) == list(range(64))
    np.testing.assert_allclose(table["delta_mean"], (after.mean(0) - before.mean(0)), atol=1e-6)
    np.testing.assert_allclose(table["control_delta"], (control.mean(0) - before.mean(0)), atol=1e-6)
    np.testing.assert_allclose(table["delta_freq"], table["tuned_freq"] - table["base_freq"])
    np.testing.assert_allclose(table["delta_mean"], table["tuned_mean"] - table["base_mean"])
    assert sorted(table["rank"]) == list(range(1, 65))
    assert table.sort_values("rank")["delta_mean"].is_monotonic_decreasing
    assert (diff.sae_name, diff.layer, diff.n_base, diff.n_tuned) == (sae.name, 2, 300, 300)


def test_a_planted_shift_comes_first_and_its_opposite_last(topk, rows):
    tuned = rows + 4 * topk.directions[11] - 4 * topk.directions[40] * (rows @ topk.directions[40] > 0)[:, None]
    diff = diff_latents(rows, tuned, topk)
    assert diff.top(1)["latent"].item() == 11 and diff.bottom(1)["latent"].item() == 40
    assert diff.top(1)["delta_mean"].item() > 0 > diff.bottom(1)["delta_mean"].item()
    assert len(diff.top(7)) == len(diff.bottom(7)) == 7 and len(diff.top(1000)) == 64


def test_swapping_the_models_turns_every_sign(sae, rows):
    tuned = rows + torch.randn(32, generator=torch.Generator().manual_seed(1))
    there, back = diff_latents(rows, tuned, sae).table, diff_latents(tuned, rows, sae).table
    np.testing.assert_array_equal(there["delta_mean"], -back["delta_mean"])
    np.testing.assert_array_equal(there["delta_freq"], -back["delta_freq"])


def test_equal_models_differ_in_nothing(sae, rows):
    table = diff_latents(rows, rows, sae, control=rows).table
    assert not table[["delta_mean", "delta_freq", "control_delta"]].to_numpy().any()
    assert list(table["rank"]) == list(range(1, 65))


def test_without_a_control_there_is_no_figure_for_it(sae, rows):
    assert diff_latents(rows, rows + 1, sae).table["control_delta"].isna().all()


def test_two_real_models(sae, tiny_model, tiny_tuned, tiny_conversations):
    base, tuned = (capture(m, tiny_conversations, layers=[2], pool="tokens") for m in (tiny_model, tiny_tuned))
    diff = diff_latents(base, tuned, sae, where="response")
    assert diff.n_base == diff.n_tuned == int(base.in_response.sum())
    assert diff.table["delta_mean"].abs().max() > 0
    assert "tokens" in diff._repr_html_() and len(diff) == 64


def test_other_layers_are_refused(topk, tiny_model, tiny_conversations):
    acts = capture(tiny_model, tiny_conversations, layers=[1], pool="tokens")
    with pytest.raises(InputError, match="layer 2 was not captured"):
        diff_latents(acts, acts, topk)
