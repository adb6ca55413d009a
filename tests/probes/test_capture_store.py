"""Capture into a store: shard by shard as the rows come, on from where it stopped, and with nothing else in it."""

import copy
from dataclasses import replace

import pytest
import torch

from probes import ActivationStore, Conversation, InputError, capture, render


def lengths(model, rows):
    return [render(model.tokenizer, [row]).input_ids.shape[1] for row in rows]


def test_a_stream_is_never_held_whole(tiny_model, tiny_conversations, tmp_path):
    """When a shard is written, the stream has been read no further than the first row of the next one."""
    store, read, ahead = ActivationStore.create(tmp_path / "store", shard_tokens=100), [], []

    def stream():
        for number in range(40):
            read.append(number)
            yield tiny_conversations[number % 4]

    def watch(done, total, what):
        ahead.append(len(read) - done)

    capture(tiny_model, stream(), layers=(1,), store=store, batch_size=1, progress=watch)
    assert store.conversations() == set(range(40)) and len(store.shards) > 8
    assert max(ahead) <= max(len(shard.indices()) for shard in store.shards) + 1


@pytest.mark.parametrize("pool", ["tokens", "response_mean"])
def test_into_a_store(tmp_path, tiny_model, tiny_conversations, pool):
    rows = tiny_conversations * 3
    store = ActivationStore.create(tmp_path / "store", shard_tokens=100)
    asked = {"layers": (0, 2), "pool": pool, "batch_size": 2, "site": "mlp_out"}
    empty = capture(tiny_model, rows, **asked, store=store)
    direct, loaded = capture(tiny_model, rows, **asked), store.load()
    assert len(empty) == 0 and empty.site == loaded.site == "mlp_out" and loaded.pool == pool
    torch.testing.assert_close(loaded.values, direct.values, atol=1e-4, rtol=1e-4)
    for name in ("conversation_index", "token_ids", "positions", "in_response", "in_reasoning"):
        one, other = getattr(loaded, name), getattr(direct, name)
        assert one is other is None or torch.equal(one, other)
    tokens, spans = lengths(tiny_model, rows), [shard.conversations for shard in store.shards]
    assert [first for ((first, _),) in spans[1:]] == [stop for ((_, stop),) in spans[:-1]]
    sums = [sum(tokens[first:stop]) for ((first, stop),) in spans]
    assert max(sums) <= 100 and all(sums[i] + tokens[spans[i + 1][0][0]] > 100 for i in range(len(sums) - 1))
    assert tiny_model.name in store.kind["model"]
    before = [file.stat().st_mtime_ns for file in sorted(store.path.glob("shard*"))]
    told = []
    capture(tiny_model, rows, **asked, store=store, progress=lambda *report: told.append(report))
    assert told[-1] == (12, 12, "activations")
    assert [file.stat().st_mtime_ns for file in sorted(store.path.glob("shard*"))] == before


def test_a_store_resumes_with_other_batches(tmp_path, tiny_model, tiny_conversations):
    """No conversation is stored twice, whatever the shards were when the run broke off."""
    store = ActivationStore.create(tmp_path / "store", shard_tokens=60)
    middle = capture(tiny_model, tiny_conversations, layers=(1,)).select(torch.tensor([1]))
    store.append(middle)
    capture(tiny_model, tiny_conversations, layers=(1,), batch_size=4, store=store)
    assert store.load().conversation_index.tolist() == [0, 1, 2, 3]


def changed(rows, at):
    return [Conversation.of("Other?", "Text.") if i == at else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m, t, rows: (t, rows), "holds model tiny .*, not tiny\\+adapter"),
        (lambda m, t, rows: (m, changed(rows, 1)), "was begun with other conversations"),
        (lambda m, t, rows: (m, rows[:3]), "was begun with other conversations"),
        (lambda m, t, rows: (m, rows[:2]), "holds conversation 3, and these end with 1"),
    ],
)
def test_another_model_or_text_is_refused(tmp_path, tiny_model, tiny_tuned, tiny_conversations, change, told):
    tokens = lengths(tiny_model, tiny_conversations)
    store = ActivationStore.create(tmp_path / "store", shard_tokens=max(tokens[0] + tokens[1], tokens[2] + tokens[3]))
    capture(tiny_model, tiny_conversations, layers=(1,), store=store)
    assert [shard.conversations for shard in store.shards] == [((0, 2),), ((2, 4),)]
    model, rows = change(tiny_model, tiny_tuned, tiny_conversations)
    with pytest.raises(InputError, match=told):
        capture(model, rows, layers=(1,), store=store)
    assert len(store) == 4


def test_a_template_of_another_kind_is_refused(tmp_path, tiny_model, tiny_conversations):
    store = ActivationStore.create(tmp_path / "store")
    capture(tiny_model, tiny_conversations, layers=(1,), store=store)
    tokenizer = copy.deepcopy(tiny_model.tokenizer)
    tokenizer.chat_template += "{# another #}"
    with pytest.raises(InputError, match=r"holds template_hash \w+, not \w+; use another store"):
        capture(replace(tiny_model, tokenizer=tokenizer), tiny_conversations, layers=(1,), store=store)


def test_float16_that_overflows_is_named(tmp_path, tiny_model, tiny_conversations):
    store = ActivationStore.create(tmp_path / "store", dtype=torch.float16)
    weight = tiny_model.hf.model.layers[1].mlp.down_proj.weight
    kept = weight.data.clone()
    try:
        weight.data *= 1e6
        with pytest.raises(InputError, match=r"block 1 on conversation \d is not finite in torch.float16"):
            capture(tiny_model, tiny_conversations, layers=(1,), store=store)
    finally:
        weight.data = kept
    assert len(store) == 0


def test_shards_that_were_dropped_come_back_the_same(tmp_path, tiny_model, tiny_conversations):
    """Not put together with what is missing elsewhere, though all of it would fit into one shard."""
    store = ActivationStore.create(tmp_path / "store", shard_tokens=400)
    short = [Conversation.of("Hi?", f"Number {i}.") for i in range(2)]
    for at in (0, 6, 12):  # three shards by hand: what lies between and behind them is left to the capture
        rows = [short[0], *tiny_conversations, short[1]]
        part = capture(tiny_model, rows, layers=(1,))
        store.append(replace(part, conversation_index=part.conversation_index + at + 2))
    rows = [short[i % 2] for i in range(22)]
    capture(tiny_model, rows, layers=(1,), store=store)
    spans = [shard.conversations for shard in store.shards]
    assert spans == [((0, 2),), ((2, 8),), ((8, 14),), ((14, 20),), ((20, 22),)]
    before = store.shards
    for number in (0, 4):
        (store.path / before[number].file).unlink()
    assert len(store.drop_damaged()) == 2
    capture(tiny_model, rows, layers=(1,), store=store)
    assert store.shards == before
