"""Quality: the reference formula, its two ends, and its invariances."""

import dataclasses

import pytest
import torch

from probes import Activations, InputError
from saes import SparseAutoencoder, quality


def test_it_follows_the_definitions(sae, rows, reference):
    found, x = quality(sae, rows), rows.double().numpy()
    latents = reference.encode(sae, x)
    assert found.fvu == pytest.approx(reference.fvu(sae, x), rel=1e-5)
    assert found.l0 == pytest.approx((latents > 0).sum(1).mean(), abs=0.02)
    assert found.dead == pytest.approx((latents <= 0).all(0).mean(), abs=0.02)
    assert found.n == 300


def test_a_perfect_and_an_empty_sae():
    eye, zero = torch.eye(8), torch.zeros(8)
    x = torch.rand(50, 8) + 0.1
    perfect = quality(SparseAutoencoder(eye, eye, zero, zero, kind="standard", layer=0), x)
    assert perfect.fvu < 1e-12 and perfect.l0 == 8 and perfect.dead == 0
    silent = SparseAutoencoder(eye, eye, zero - 100, x.mean(0), kind="standard", layer=0)
    nothing = quality(silent, x)
    assert nothing.fvu == pytest.approx(1) and (nothing.l0, nothing.dead) == (0, 1)


def test_blocks_of_rows_do_not_change_it(sae, rows, monkeypatch):
    whole = quality(sae, rows)
    monkeypatch.setattr("saes.fidelity.block_rows", lambda _: 7)
    parts = quality(sae, rows)
    assert dataclasses.astuple(parts) == pytest.approx(dataclasses.astuple(whole), rel=1e-6)


def test_a_large_common_offset_costs_no_digits(reference):
    far = 1000 + 0.01 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eye = torch.eye(8, dtype=torch.float64)
    sae = SparseAutoencoder(eye, eye, eye[0] * 0, far[:100].mean(0), kind="topk", layer=0, k=3)
    assert quality(sae, far).fvu == pytest.approx(reference.fvu(sae, far.numpy()), rel=1e-6)


def test_bad_input(topk, rows):
    with pytest.raises(InputError, match="all 5 rows of block 2 are equal"):
        quality(topk, rows[:1].expand(5, 32))
    with pytest.raises(InputError, match="no rows of block 2"):
        quality(topk, rows[:0])
    mean = Activations(rows[None], (2,), "response_mean", "hash", torch.arange(300))
    with pytest.raises(InputError, match=r"are means .* capture with pool='tokens'"):
        quality(topk, mean)
    with pytest.raises(InputError, match="layer 2 was not captured"):
        quality(topk, dataclasses.replace(mean, layers=(1,), pool="last_prompt"))


def test_shown_in_words(topk, rows):
    assert "variance unexplained" in quality(topk, rows)._repr_html_()
