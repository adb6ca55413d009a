"""Pooling, order and refusal of bad values in captured activations; the store on disk."""

import pytest
import torch

from probes import ActivationStore, Conversation, InputError, capture, capture_blocks, render
from probes.capture import pooled


def reference(model, conversations, layers, pool):
    """One conversation at a time, in float64, by plain indexing."""
    rows = []
    for conversation in conversations:
        rendered = render(model.tokenizer, [conversation])
        values = capture_blocks(model, rendered, layers)[:, 0].double()
        mask = {"response_mean": rendered.response, "prompt_mean": rendered.prompt, "last_prompt": rendered.last_prompt}
        rows.append(values[:, mask[pool][0]].mean(dim=1))
    return torch.stack(rows, dim=1).float()


@pytest.mark.parametrize("pool", ["response_mean", "prompt_mean", "last_prompt"])
def test_pools_equal_the_reference(tiny_model, tiny_conversations, pool):
    layers = (3, 1)
    ours = capture(tiny_model, tiny_conversations, layers=layers, pool=pool, batch_size=3)
    assert torch.allclose(ours.values, reference(tiny_model, tiny_conversations, layers, pool), atol=1e-4)
    assert ours.conversation_index.tolist() == [0, 1, 2, 3] and ours.token_ids is None
    assert torch.equal(ours.at(1), ours.values[1]) and len(ours) == 4


def test_tokens_come_in_order(tiny_model, tiny_conversations):
    ours = capture(tiny_model, tiny_conversations, layers=(2,), pool="tokens", batch_size=2)
    for row, conversation in enumerate(tiny_conversations):
        rendered = render(tiny_model.tokenizer, [conversation])
        part = ours.select(ours.conversation_index == row)
        assert part.token_ids.tolist() == rendered.input_ids[0].tolist()
        assert part.positions.tolist() == list(range(len(part)))
        assert part.in_response.tolist() == rendered.response[0].tolist()
        assert torch.allclose(part.at(2), capture_blocks(tiny_model, rendered, (2,))[0, 0], atol=1e-4)


def test_batch_size_does_not_matter(tiny_model, tiny_conversations):
    one, all_ = (capture(tiny_model, tiny_conversations, layers=(0, 3), batch_size=size) for size in (1, 8))
    assert torch.allclose(one.values, all_.values, atol=1e-4)


def test_progress_is_reported(tiny_model, tiny_conversations):
    seen = []
    capture(tiny_model, tiny_conversations, layers=(0,), batch_size=3, progress=lambda *told: seen.append(told))
    assert seen == [(3, 4, "activations"), (4, 4, "activations")]


def test_means_do_not_drift(tiny_model):
    values = torch.full((1, 1, 100_000, 1), 0.1)
    mean = pooled(values, torch.ones(1, 100_000, dtype=torch.bool))
    assert mean.item() == pytest.approx(0.1, abs=1e-8)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": (7,)}, "layer 7"),
        ({"layers": ()}, "no layers"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments(tiny_model, tiny_conversations, changes, told):
    with pytest.raises(InputError, match=told):
        capture(tiny_model, tiny_conversations, **({"layers": (1,)} | changes))


def test_bad_rows(tiny_model):
    with pytest.raises(InputError, match="no conversations"):
        capture(tiny_model, [], layers=(1,))
    with pytest.raises(InputError, match="conversation 0 has no answer"):
        capture(tiny_model, [Conversation.of("Hi?")], layers=(1,))
    assert len(capture(tiny_model, [Conversation.of("Hi?")], layers=(1,), pool="last_prompt")) == 1
    held = capture(tiny_model, [Conversation.of("Hi?")], layers=(1,), pool="prompt_mean")
    with pytest.raises(InputError, match="layer 2 was not captured"):
        held.at(2)


def test_a_value_that_is_not_finite_is_refused(tiny_model, tiny_conversations):
    weight = tiny_model.hf.model.layers[2].mlp.down_proj.weight
    kept = weight.data.clone()
    try:
        weight.data[0, 0] = float("nan")
        with pytest.raises(InputError, match="block 2 on conversation"):
            capture(tiny_model, tiny_conversations, layers=(1, 2))
    finally:
        weight.data = kept


def test_store_round_trip(tmp_path, tiny_model, tiny_conversations):
    store = ActivationStore.create(tmp_path / "store", {"model": "tiny"})
    empty = capture(tiny_model, tiny_conversations, layers=(0, 2), pool="tokens", batch_size=2, store=store)
    direct = capture(tiny_model, tiny_conversations, layers=(0, 2), pool="tokens", batch_size=2)
    again = ActivationStore.open(tmp_path / "store")
    loaded = again.load()
    assert len(empty) == 0 and again.rows == len(direct) and len(list(again.iter_shards())) == 2
    assert torch.equal(loaded.values, direct.values) and torch.equal(loaded.positions, direct.positions)
    assert loaded.layers == (0, 2) and loaded.template_hash == direct.template_hash
    assert again.meta == {"model": "tiny"} and again.conversations() == {0, 1, 2, 3}
    again.verify()


def test_store_resumes(tmp_path, tiny_model, tiny_conversations):
    store = ActivationStore.create(tmp_path / "store")

    class Killed(Exception):
        pass

    def kill(done, total, what):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        capture(tiny_model, tiny_conversations, layers=(1,), batch_size=1, store=store, progress=kill)
    assert len(store.conversations()) == 2
    store = ActivationStore.open(tmp_path / "store")
    capture(tiny_model, tiny_conversations, layers=(1,), batch_size=1, store=store)
    assert torch.allclose(store.load().values, capture(tiny_model, tiny_conversations, layers=(1,)).values, atol=1e-4)


def test_store_resumes_with_another_batch_size(tmp_path, tiny_model, tiny_conversations):
    """No conversation is stored twice, whatever the batches were when the run broke off."""
    store = ActivationStore.create(tmp_path / "store")
    first = capture(tiny_model, tiny_conversations[:1], layers=(1,))
    store.append(first)
    capture(tiny_model, tiny_conversations, layers=(1,), batch_size=4, store=store)
    assert store.load().conversation_index.tolist() == [0, 1, 2, 3]


def test_store_refuses_what_does_not_fit(tmp_path, tiny_model, tiny_conversations):
    store = ActivationStore.create(tmp_path / "store")
    store.append(capture(tiny_model, tiny_conversations, layers=(1,)))
    with pytest.raises(InputError, match="holds layers"):
        store.append(capture(tiny_model, tiny_conversations, layers=(2,)))
    with pytest.raises(InputError, match="there already"):
        ActivationStore.create(tmp_path / "store")
    with pytest.raises(InputError, match="no activation store"):
        ActivationStore.open(tmp_path)


def test_truncated_and_changed_shards(tmp_path, tiny_model, tiny_conversations):
    store = ActivationStore.create(tmp_path / "store")
    store.append(capture(tiny_model, tiny_conversations, layers=(1,)))
    shard = next(store.path.glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    with pytest.raises(InputError, match="truncated"):
        store.load()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="changed"):
        store.verify()
    shard.unlink()
    with pytest.raises(InputError, match="missing"):
        store.verify()


def test_a_crash_between_shard_and_manifest_is_harmless(tmp_path, tiny_model, tiny_conversations):
    store = ActivationStore.create(tmp_path / "store")
    activations = capture(tiny_model, tiny_conversations, layers=(1,))
    (store.path / "shard-00000.safetensors").write_bytes(b"half a shard")
    assert store.rows == 0
    store.append(activations)
    store.verify()
    assert torch.equal(store.load().values, activations.values)
