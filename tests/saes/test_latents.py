"""Latents of tensors, captured activations and stores, and their statistics."""

import pytest
import torch

from probes import Activations, ActivationStore, InputError, capture
from saes import encode, encode_store, latent_stats


@pytest.fixture
def acts(tiny_model, tiny_conversations) -> Activations:
    """Every token of four conversations, blocks 1 and 2 of the tiny model."""
    return capture(tiny_model, tiny_conversations, layers=[1, 2], pool="tokens")


def test_encode_reads_the_layer_of_the_sae(sae, acts):
    latents = encode(sae, acts)
    torch.testing.assert_close(latents, sae.encode(acts.values[1]))
    assert latents.shape == (len(acts), 64)
    torch.testing.assert_close(encode(sae, acts, latents=[5, 2]), latents[:, [5, 2]], rtol=1e-5, atol=1e-5)


def test_response_and_prompt_make_up_the_whole(sae, acts):
    latents = encode(sae, acts)
    response, prompt = (encode(sae, acts, where=where) for where in ("response", "prompt"))
    torch.testing.assert_close(response, latents[acts.in_response], rtol=1e-5, atol=1e-5)
    assert len(response) + len(prompt) == len(latents) and len(response) > 0 < len(prompt)


def test_statistics_are_means_over_rows(sae, acts, monkeypatch):
    latents = encode(sae, acts).double()
    for size in (256, 5):
        monkeypatch.setattr("saes.latents.block_rows", lambda _, size=size: size)
        stats = latent_stats(sae, acts)
        torch.testing.assert_close(stats.mean, latents.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(stats.freq, (latents > 0).double().mean(0))
        assert stats.n == len(acts) and stats.mean.dtype == torch.float64
    active = [column[column > 0].mean().item() if (column > 0).any() else 0.0 for column in latents.T]
    torch.testing.assert_close(stats.mean_active, torch.tensor(active).double(), rtol=1e-5, atol=1e-6)


def test_the_order_of_rows_does_not_matter(sae, rows):
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    one, other = latent_stats(sae, rows), latent_stats(sae, rows[order])
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.freq, other.freq)


def test_a_store_gives_what_memory_gives(sae, acts, tiny_model, tiny_conversations, tmp_path):
    store = ActivationStore.create(tmp_path / "store", {})
    capture(tiny_model, tiny_conversations, layers=[1, 2], pool="tokens", store=store, batch_size=2)
    streamed = torch.cat(list(encode_store(sae, store)))
    assert len(streamed) == len(acts)
    on_disk, in_memory = latent_stats(sae, store), latent_stats(sae, acts)
    torch.testing.assert_close(on_disk.mean, in_memory.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        latent_stats(sae, store, where="response").mean,
        latent_stats(sae, acts, where="response").mean,
        rtol=1e-4,
        atol=1e-4,
    )


def test_no_gradients_are_kept(sae, rows):
    assert not encode(sae, rows.requires_grad_()).requires_grad


def test_bad_input(topk, acts, rows):
    with pytest.raises(InputError, match="latent 64 does not exist"):
        encode(topk, rows, latents=[64])
    with pytest.raises(InputError, match="where='response' needs captured activations"):
        encode(topk, rows, where="response")
    with pytest.raises(InputError, match="one row per token"):
        encode(topk, rows[None])
    last = Activations(rows[None], (2,), "last_prompt", "hash", torch.arange(300))
    assert len(encode(topk, last)) == 300
    with pytest.raises(InputError, match="where='prompt' needs every token"):
        encode(topk, last, where="prompt")
    rows = rows.clone()
    rows[3, 3] = torch.inf
    with pytest.raises(InputError, match="of block 2 is not finite"):
        latent_stats(topk, rows)
