"""One epoch in batches: every sample once, well mixed, the same for the same seed, in bounded memory."""

import resource
from dataclasses import replace

import pytest
import torch

from probes import Activations, ActivationStore, InputError


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Ten shards of 2,000 single tokens, one conversation each; a sample's id is its number."""
    store = ActivationStore.create(tmp_path_factory.mktemp("large") / "store", dtype=torch.bfloat16)
    with store.writer() as writer:
        for number in range(10):
            ids = torch.arange(2000) + 2000 * number
            values = torch.stack([ids % 256, ids // 256]).float()[..., None].expand(2, 2000, 16)
            index = torch.full((2000,), number)
            writer.append(Activations(values, (0, 1), "tokens", "hash", index, ids, ids % 2000, ids % 3 == 0))
    return store


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("settings", [{}, {"shuffle": True}, {"shuffle": True, "buffer": 700}, {"where": "response"}])
@pytest.mark.parametrize("size", [1000, 512, 30_000])
def test_every_sample_once(large, settings, size):
    batches = list(large.iter_batches(size, **settings, generator=seeded()))
    assert {len(batch) for batch in batches[:-1]} <= {size} and 0 < len(batches[-1]) <= size
    ids = torch.cat([batch.token_ids for batch in batches])
    wanted = torch.arange(20_000)
    wanted = wanted[wanted % 3 == 0] if "where" in settings else wanted
    assert torch.equal(ids.sort().values, wanted) and torch.equal(ids, wanted) != ("shuffle" in settings)
    for batch in batches:  # everything still belongs together
        assert torch.equal(batch.at(0)[:, 0], (batch.token_ids % 256).float())
        assert torch.equal(batch.at(1)[:, 15], (batch.token_ids // 256).float())
        assert torch.equal(batch.conversation_index, batch.token_ids // 2000)
        assert torch.equal(batch.in_response, batch.token_ids % 3 == 0)


def test_the_seed_decides(large):
    def order(seed):
        batches = large.iter_batches(4096, layers=(1,), shuffle=True, generator=seeded(seed))
        return torch.cat([batch.token_ids for batch in batches])

    assert torch.equal(order(0), order(0)) and not torch.equal(order(0), order(1))
    generator = seeded()
    first, second = (next(large.iter_batches(64, shuffle=True, generator=generator)) for _ in range(2))
    assert not torch.equal(first.token_ids, second.token_ids)  # the next epoch has another order


def test_a_batch_comes_from_all_over_the_store(large):
    """256 of 20,000 samples, from a buffer of 16 pieces or more: many shards, and no neighbours in line."""
    batch = next(large.iter_batches(256, shuffle=True, generator=seeded(), buffer=4096))
    assert len(batch.conversation_index.unique()) >= 8
    assert (batch.token_ids.diff() == 1).float().mean() < 0.02


@pytest.mark.parametrize("size", [100, 1000])
def test_dtype_and_layers(large, size):
    batch = next(large.iter_batches(size, layers=(1,), dtype=torch.bfloat16))
    assert batch.layers == (1,) and batch.values.shape == (1, size, 16) and batch.values.dtype == torch.bfloat16
    assert next(large.iter_batches(size)).values.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"shuffle": True}, "without a generator"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"layers": (7,)}, "layer 7 was not captured"),
    ],
)
def test_bad_arguments(large, settings, told):
    with pytest.raises(InputError, match=told):
        next(large.iter_batches(**{"batch_size": 8} | settings))


def test_where_needs_tokens(large, tmp_path):
    store = ActivationStore.create(tmp_path / "store")
    assert list(store.iter_batches(4)) == []
    part = replace(next(large.iter_shards()), pool="last_prompt", token_ids=None, positions=None, in_response=None)
    store.append(part)
    with pytest.raises(InputError, match="needs single tokens, and this store holds last_prompt"):
        next(store.iter_batches(4, where="response"))


def test_memory_is_that_of_the_buffer(tmp_path, forked):
    """Shuffled, an epoch of 120 MB lets the peak of a child grow by less than half of that, mapped files counted."""
    store = ActivationStore.create(tmp_path / "store")
    values = torch.randn(1, 3000, 1024)
    with store.writer() as writer:
        for number in range(10):
            writer.append(Activations(values, (0,), "last_prompt", "hash", torch.arange(3000) + 3000 * number))

    def epoch():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        batches = store.iter_batches(256, shuffle=True, generator=seeded(), buffer=1024)
        assert sum(map(len, batches)) == 30_000
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        (tmp_path / "grown").write_text(str(grown))

    assert forked(epoch).wait() == 0
    assert float((tmp_path / "grown").read_text()) < 60
