"""Latents on disk are those in memory: every row, every column, every statistic; nothing else's are taken for them."""

import dataclasses

import numpy as np
import pytest
import torch

from probes import ActivationStore, InputError
from saes import LatentStore, encode, encode_into, latent_stats


@pytest.fixture
def store(topk, source, tmp_path) -> LatentStore:
    """The latents of the source."""
    made = LatentStore.create(tmp_path / "latents", {"why": "test"})
    encode_into(topk, source, made)
    return made


def test_rows_are_those_of_encode(sae, source, tmp_path):
    store = LatentStore.create(tmp_path / "latents")
    encode_into(sae, source, store)
    whole, acts = encode(sae, source.load()), source.load()
    batches = list(store.iter_batches(7))
    assert max(map(len, batches)) <= 7 and len(store) == len(acts) == sum(map(len, batches))
    for form in ("dense", "scipy", "torch"):
        parts = [getattr(batch, form)() for batch in batches]
        parts = [part.toarray() if form == "scipy" else part.to_dense().numpy() for part in parts]
        np.testing.assert_allclose(np.concatenate(parts), whole.numpy(), rtol=1e-5, atol=1e-5)
    for name in ("conversation", "token_ids", "positions", "in_response"):
        held = torch.cat([getattr(batch.tokens, name) for batch in batches])
        assert torch.equal(held, getattr(acts, {"conversation": "conversation_index"}.get(name, name)))
    assert all(bool((batch.values > 0).all()) and batch.tokens.in_reasoning is None for batch in batches)


def test_columns_and_their_tops(store, topk, source):
    acts = source.load()
    whole = encode(topk, acts)
    for latent, column in zip((5, 0, 63), store.columns([5, 0, 63]), strict=True):
        torch.testing.assert_close(column.dense(), whole[:, latent])
        assert torch.equal(column.tokens.token_ids, acts.token_ids[whole[:, latent] > 0])
        top = column.top(3)
        wanted = whole[:, latent].topk(min(3, len(column))).values
        torch.testing.assert_close(top.values, wanted)
        assert torch.equal(top.tokens.conversation, acts.conversation_index[top.rows])
    with pytest.raises(InputError, match="latent 64 does not exist"):
        store.column(64)


@pytest.mark.parametrize(
    "asked", [{}, {"where": "response"}, {"skip_first": 3}, {"keep": lambda index: index % 2 == 0}]
)
def test_statistics_are_those_of_the_activations(store, topk, source, asked):
    found, wanted = store.stats(**asked), latent_stats(topk, source, **asked)
    torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.freq, wanted.freq)
    assert found.n == wanted.n


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_values_keep_every_firing(topk, source, tmp_path, dtype):
    faint = dataclasses.replace(topk, W_enc=topk.W_enc * 1e-9, b_enc=topk.b_enc * 1e-9)
    for name, sae in (("plain", topk), ("faint", faint)):
        store = LatentStore.create(tmp_path / name, dtype=dtype)
        encode_into(sae, source, store)
        wanted = latent_stats(sae, source)
        assert store.dtype == dtype and torch.equal(store.stats().freq, wanted.freq)
        if name == "plain":
            torch.testing.assert_close(store.stats().mean, wanted.mean, rtol=5e-3, atol=1e-6)
    loud = dataclasses.replace(topk, W_enc=topk.W_enc * 1e9)
    if dtype == torch.float16:
        with pytest.raises(InputError, match="does not fit into float16; make the store with bfloat16"):
            encode_into(loud, source, LatentStore.create(tmp_path / "loud", dtype=dtype))


def test_a_source_that_grows_is_continued(store, topk, source, made):
    before = [shard.file for shard in store.shards]
    source.append(made(20, 23))
    with pytest.raises(InputError, match=r"1 shards of .* are not encoded"):
        store.check_source(source)
    encode_into(topk, source, store)
    store.check_source(source)
    assert [shard.file for shard in store.shards][:5] == before and len(store) == len(source)
    torch.testing.assert_close(store.stats().mean, latent_stats(topk, source).mean, rtol=1e-5, atol=1e-6)


def test_another_sae_and_other_activations_are_refused(store, topk, source, tmp_path, made):
    other = dataclasses.replace(topk, W_dec=topk.W_dec.roll(1, 0))
    with pytest.raises(InputError, match=r"holds sae_digest .* use another store"):
        encode_into(other, source, store)
    with pytest.raises(InputError, match=r"holds latents of 'random topk' .* encode with this SAE into another store"):
        store.check_sae(other)
    store.check_sae(dataclasses.replace(topk, name="the same by another name"))
    elsewhere = ActivationStore.create(tmp_path / "other", {"data": "something else"})
    elsewhere.append(made(0, 4))
    for refuse in (lambda: encode_into(topk, elsewhere, store), lambda: store.check_source(elsewhere)):
        with pytest.raises(InputError, match=r"holds (source|latents of other activations)"):
            refuse()
    twin = ActivationStore.create(tmp_path / "twin", {"data": "made up"})
    twin.append(dataclasses.replace(made(0, 4), values=made(0, 4).values + 1))
    with pytest.raises(InputError, match="conversation 0 were made from other activations"):
        encode_into(topk, twin, store)


def test_what_does_not_fit_is_refused(topk, source, tmp_path):
    def into(sae, name):
        encode_into(sae, source, LatentStore.create(tmp_path / name))

    with pytest.raises(InputError, match="layer 3 was not captured"):
        into(dataclasses.replace(topk, layer=3), "layer")
    with pytest.raises(InputError, match="read at resid_post, and the SAE reads mlp_out"):
        into(dataclasses.replace(topk, site="mlp_out"), "site")
    with pytest.raises(InputError, match=r"reads width 16, and .* holds width 32"):
        wide = {"W_enc": topk.W_enc[:16], "W_dec": topk.W_dec[:, :16], "b_dec": topk.b_dec[:16]}
        into(dataclasses.replace(topk, **wide), "width")
    with pytest.raises(InputError, match="is there already"):
        LatentStore.create(source.path)
    with pytest.raises(InputError, match="of the format persona-geometry/activations"):
        LatentStore.open(source.path)
    with pytest.raises(InputError, match="no store of latents"):
        LatentStore.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nothing was captured into this store yet"):
        LatentStore.create(tmp_path / "empty").column(0)


def test_damage_is_named_and_made_good(store, topk, source):
    path = store.path / store.shards[2].file
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(InputError, match=rf"{path.name}: truncated"):
        list(store.iter_batches())
    with pytest.warns(UserWarning, match="left out, truncated"):
        assert sum(map(len, store.iter_batches(skip_damaged=True))) < len(store)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="1 of 5 shards are damaged"):
        store.verify()
    assert [damage.shard.file for damage in store.drop_damaged()] == [path.name]
    encode_into(topk, source, store)
    store.verify()
    assert path.read_bytes() == whole
