"""The store's contract: what is appended comes back, in order, in its dtype; what does not fit is refused."""

import hashlib
import json
import os
import socket
import time
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from probes import ActivationStore, InputError
from probes.store.journal import runs


def equal(one, other):
    """Whether two activations are the same in every part."""
    names = ("values", "conversation_index", "token_ids", "positions", "in_response", "in_reasoning")
    same = all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
    facts = ("layers", "pool", "scope", "site", "template_hash")
    return same and all(getattr(one, name) == getattr(other, name) for name in facts)


def test_what_is_appended_comes_back(filled):
    store, whole = filled
    again = ActivationStore.open(store.path)
    assert equal(again.load(), whole) and len(again) == len(whole) and len(again.shards) == 4
    assert again.meta == {"model": "made"} and again.conversations() == set(range(12))
    assert (again.layers, again.d_model, again.dtype, again.kind["site"]) == ((1, 4), 8, torch.float32, "resid_post")
    again.verify()
    one = list(again.iter_shards(layers=(4,)))
    assert [part.layers for part in one] == [(4,)] * 4
    assert torch.equal(torch.cat([part.at(4) for part in one]), whole.at(4))


def test_shards_are_read_by_conversation_not_by_time(made, tmp_path):
    store = ActivationStore.create(tmp_path / "store")
    for first in (6, 0, 3):
        store.append(made(first, first + 3))
    assert [part.conversation_index[0].item() for part in store.iter_shards()] == [0, 3, 6]
    assert equal(store.load(), made(0, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(made, tmp_path, dtype):
    store, part = ActivationStore.create(tmp_path / "store", dtype=dtype), made(0, 3)
    store.append(part)
    assert store.dtype == dtype and store.load().values.dtype == torch.float32
    assert torch.equal(store.load().values, part.values.to(dtype).float())
    assert next(store.iter_shards(dtype=dtype)).values.dtype == dtype
    with safe_open(store.path / store.shards[0].file, "pt") as file:
        assert file.get_tensor("block.1").dtype == dtype


def test_a_number_too_large_for_float16(made, tmp_path):
    store, part = ActivationStore.create(tmp_path / "store", dtype=torch.float16), made(0, 3)
    with pytest.raises(InputError, match=r"does not fit into torch\.float16"):
        store.append(replace(part, values=part.values * 1e5))
    assert len(store) == 0


def test_the_files_can_be_read_without_us(filled):
    """By the layout that docs/capture.md tells, with json, hashlib and safetensors alone."""
    store, whole = filled
    lines = [json.loads(line) for line in (store.path / "shards.jsonl").read_text().splitlines()]
    rows = []
    for line in lines:
        data = (store.path / line["file"]).read_bytes()
        assert len(data) == line["bytes"] and hashlib.sha256(data).hexdigest() == line["sha256"]
        with safe_open(store.path / line["file"], "pt") as file:
            rows.append(file.get_tensor("block.4"))
            found = file.get_tensor("conversation").unique().tolist()
            assert [i for first, stop in line["conversations"] for i in range(first, stop)] == found
            note = json.loads(file.metadata()["persona-geometry"])
    assert torch.equal(torch.cat(rows), whole.at(4))
    assert note["layers"] == [1, 4] and note["site"] == "resid_post" and note["pool"] == "tokens"


def test_the_same_activations_give_the_same_bytes(made, tmp_path):
    stores = [ActivationStore.create(tmp_path / name) for name in ("one", "other")]
    for store in stores:
        for first in (0, 4):
            store.append(made(first, first + 4))
    one, other = ({p.name: p.read_bytes() for p in store.path.iterdir() if "shard" in p.name} for store in stores)
    assert one == other and len(one) == 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": (1, 5)}, r"holds layers \[1, 4\], not \[1, 5\]"),
        ({"pool": "last_prompt"}, "holds pool tokens, not last_prompt"),
        ({"site": "mlp_out"}, "holds site resid_post, not mlp_out"),
        ({"template_hash": "other"}, "holds template_hash hash, not other"),
        ({"scope": "first half"}, "holds scope , not first half"),
        ({"values": torch.zeros(2, 14, 6)}, "holds d_model 8, not 6"),
        ({}, "conversation 1 is in shard-000000000-.* already"),
    ],
)
def test_what_does_not_fit_is_refused(filled, made, changes, told):
    store, _ = filled
    before = (store.path / "shards.jsonl").read_bytes()
    part = made(20, 23) if changes else made(1, 2)
    if "values" in changes:
        changes["values"] = torch.zeros(2, len(part), 6)
    with pytest.raises(InputError, match=told):
        store.append(replace(part, **changes))
    assert (store.path / "shards.jsonl").read_bytes() == before


def test_bad_arguments(filled, made, tmp_path):
    store, whole = filled
    with pytest.raises(InputError, match="there already"):
        ActivationStore.create(store.path)
    with pytest.raises(InputError, match="no activation store"):
        ActivationStore.open(tmp_path)
    with pytest.raises(InputError, match=r"dtype torch\.int8"):
        ActivationStore.create(tmp_path / "other", dtype=torch.int8)
    with pytest.raises(InputError, match="shard_tokens 0"):
        ActivationStore.create(tmp_path / "other", shard_tokens=0)
    with pytest.raises(InputError, match="without samples"):
        store.append(whole.select(torch.zeros(len(whole), dtype=torch.bool)))
    with pytest.raises(InputError, match="layer 2 was not captured"):
        next(store.iter_shards(layers=(2,)))
    with pytest.raises(InputError, match="nothing was captured"):
        _ = ActivationStore.create(tmp_path / "empty").kind
    (store.path / "manifest.json").write_text('{"format": "persona-geometry/activations/1"}')
    with pytest.raises(InputError, match="activations/1, not persona-geometry/activations/2"):
        ActivationStore.open(store.path)


def test_runs():
    assert runs([5, 1, 2, 3, 9, 5]) == ((1, 4), (5, 6), (9, 10)) and runs([]) == ()


def test_a_second_writer_is_told_who_the_first_is(filled, made, forked):
    store, _ = filled
    ready, sign = os.pipe()

    def hold():
        with store.writer():
            os.write(sign, b".")
            time.sleep(60)

    child = forked(hold)
    os.read(ready, 1)
    with pytest.raises(InputError, match=f"process {child.pid} on {socket.gethostname()} is writing"):
        store.append(made(12, 15))
    assert len(store.load()) == len(store)  # readers do not care
    child.kill()
    assert child.wait() == "killed"
    store.append(made(12, 15))
    assert equal(store.load(), made(0, 15))


def test_the_same_process_cannot_write_twice(filled):
    store, _ = filled
    with store.writer(), pytest.raises(InputError, match=f"process {os.getpid()} on"), store.writer():
        pass


def test_reading_while_another_process_writes(made, tmp_path, forked):
    store = ActivationStore.create(tmp_path / "store")

    def write():
        with store.writer() as writer:
            for first in range(0, 120, 3):
                writer.append(made(first, first + 3))

    child, whole, seen = forked(write), made(0, 120), [0]
    end = time.monotonic() + 60
    while seen[-1] < len(whole) and time.monotonic() < end:
        parts = list(store.iter_shards())
        seen.append(sum(map(len, parts)))
        assert seen[-1] >= seen[-2]
        if parts:
            values = torch.cat([part.values for part in parts], dim=1)
            assert torch.equal(values, whole.values[:, : seen[-1]])
            drawn = torch.cat([part.token_ids for part in store.iter_batches(7)])
            assert len(drawn) >= seen[-1] and torch.equal(drawn, whole.token_ids[: len(drawn)])
    assert child.wait() == 0
    assert len(set(seen)) > 3, "the reader never saw the store half written"


def test_opening_and_appending_do_not_grow_with_the_square_of_the_shards(made, tmp_path):
    """What is written beside a shard is one line, however many there are."""
    store, sizes = ActivationStore.create(tmp_path / "store"), []
    with store.writer() as writer:
        for first in range(80):
            writer.append(made(first, first + 1, width=1))
            sizes.append((store.path / "shards.jsonl").stat().st_size)
    lines = torch.tensor(sizes).diff()
    assert lines.max() - lines.min() < 10 and (store.path / "manifest.json").stat().st_size < 1000
    assert len(store.shards) == 80
