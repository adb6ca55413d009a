"""sae-lens as a second opinion: agreement on every kind, and a figure that shows what was changed behind its back."""

from dataclasses import replace

import pytest
import torch

from saes import peer, sae_lens_error, save_sae


def test_sae_lens_sees_the_same(sae, rows):
    before = torch.get_rng_state()
    assert sae_lens_error(sae, rows) < 1e-6
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "change"), [("b_enc", 0.0), ("b_dec", 0.0), ("W_dec", 1.01), ("W_enc", 1.01)])
def test_a_difference_shows(sae, rows, monkeypatch, name, change):
    other = replace(sae, **{name: getattr(sae, name) * change})
    monkeypatch.setattr(peer, "save_sae", lambda _, folder: save_sae(other, folder))
    assert sae_lens_error(sae, rows) > 5e-3
