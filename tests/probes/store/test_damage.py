"""Damage is found and named, the rest stays readable, and the same capture makes it good; so with a disk that fills."""

import contextlib
import os
import resource
import subprocess

import pytest
import torch

from probes import ActivationStore, InputError
from probes.store.shards import read_shard


def flip(file):
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def lengthen(file):
    file.write_bytes(file.read_bytes() + b"\0")


def empty_header(file):
    file.write_bytes(b"\xff" * file.stat().st_size)


DAMAGES = {
    "changed since": flip,
    "truncated": cut,
    "changed: ": lengthen,
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("why", DAMAGES)
def test_each_damage_is_named_and_the_rest_is_readable(filled, made, why):
    store, whole = filled
    bad = store.shards[1]
    DAMAGES[why](store.path / bad.file)
    assert [(damage.shard, damage.why[: len(why)]) for damage in store.damaged()] == [(bad, why)]
    with pytest.raises(InputError, match=rf"1 of 4 shards are damaged \({bad.file}: {why}"):
        store.verify()
    rest = whole.select((whole.conversation_index < 3) | (whole.conversation_index >= 6))
    with pytest.warns(UserWarning, match=f"{bad.file}: left out, {why}"):
        read = list(store.iter_shards(skip_damaged=True))
    assert torch.equal(torch.cat([part.values for part in read], dim=1), rest.values)
    with pytest.warns(UserWarning, match=f"{bad.file}: left out"):
        batches = list(store.iter_batches(4, skip_damaged=True))
    assert torch.equal(torch.cat([batch.token_ids for batch in batches]), rest.token_ids)
    if why != "changed since":  # one changed bit is seen by the checksum alone
        for read in (store.iter_shards, lambda: store.iter_batches(5)):
            with pytest.raises(InputError, match=f"{bad.file}: {why}"):
                list(read())
    assert [damage.shard for damage in store.drop_damaged()] == [bad]
    store.append(made(3, 6))
    store.verify()
    assert torch.equal(store.load().values, whole.values) and [s.file for s in store.shards][1] == bad.file


def test_all_damaged_shards_are_named(filled):
    store, _ = filled
    shards = store.shards
    for shard, damage in zip((shards[0], shards[2], shards[3]), (flip, cut, empty_header), strict=True):
        damage(store.path / shard.file)
    with pytest.raises(InputError, match="3 of 4 shards") as told:
        store.verify()
    assert [shard.file in str(told.value) for shard in shards] == [True, False, True, True]
    with pytest.raises(InputError, match=f"{shards[3].file}: damaged"):
        read_shard(store.path, shards[3], store.kind)


@pytest.mark.parametrize(
    ("tail", "told"),
    [
        (b'{"bytes": 12, "conv', None),
        (b'{"bytes": 12}\n', "shards.jsonl:5: no line of this journal"),
        (b'{"bytes": 1, "conversations": [[0, 1]], "file": "../../x", "rows": 1, "sha256": ""}\n', "shards.jsonl:5"),
        (b"\xff\xfe\n", "shards.jsonl:5"),
    ],
)
def test_the_end_of_the_journal(filled, made, tail, told):
    """An unfinished line is what a killed writer leaves; anything else that is no line of ours is refused."""
    store, whole = filled
    with (store.path / "shards.jsonl").open("ab") as file:
        file.write(tail)
    if told:
        with pytest.raises(InputError, match=told):
            store.load()
        return
    assert torch.equal(store.load().values, whole.values)
    store.append(made(12, 15))
    assert torch.equal(store.load().values, made(0, 15).values)


def test_leftovers_of_a_killed_writer_go(filled, made):
    store, _ = filled
    left = [store.path / name for name in (".shard-000000012.safetensors.x7.safetensors", ".manifest.json.a1.json")]
    left += [store.path / f"shard-000000012-{'0' * 12}.safetensors"]
    foreign = store.path / "notes.txt"
    for file in [*left, foreign]:
        file.write_bytes(b"half")
    assert len(store.load()) == len(store)
    store.append(made(12, 15))
    assert not any(file.exists() for file in left) and foreign.exists()
    store.verify()


@contextlib.contextmanager
def small_disk(folder):
    """A file system of 256 kB; a function makes it larger."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64M", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def small_files(folder):
    """No file may grow past 20 kB; a function lifts that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(os.name != "posix", reason="limits are set by Unix calls")
@pytest.mark.parametrize("limited", [small_disk, small_files])
def test_a_disk_that_fills(made, tmp_path, limited):
    """One clear error; what was stored stays whole; with room again the writer goes on."""
    with limited(tmp_path / "disk") as more:
        store = ActivationStore.create(tmp_path / "disk" / "store")
        with pytest.raises(InputError, match=rf"{store.path}: could not be written to .*free.*what it holds is whole"):
            for number in range(30):
                store.append(made(*span(number), width=64))
        stored = len(store.shards)
        assert 2 < stored < 30 and not list(store.path.glob(".shard*"))
        store.verify()
        more()
        store.append(made(*span(stored), width=64))
        store.verify()
        assert torch.equal(store.load().values, made(0, span(stored)[1], width=64).values)


def span(number):
    """Ever more conversations for one shard after the other: 0 and 1, 2 to 4, 5 to 8, ..."""
    return (number * (number + 3) // 2, (number + 1) * (number + 4) // 2)
