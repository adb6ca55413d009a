"""A capture that is killed at any moment goes on from there: every token once, byte for byte as if nothing happened."""

import random
import time

import pytest
import torch

from probes import ActivationStore, Conversation, capture
from tests.forking import killing, store_files

KILLS = 25
#: Where a capture may die: the function that does not return, at which of its calls, and what is there then:
#: (shards that count, files of shards, whether the journal ends in half a line).
POINTS = {
    "before what is captured is known": ("probes.store.writer.write_json", 2, (0, 0, False)),
    "before a shard has its name": ("probes.store.shards.publish", 2, (1, 1, False)),
    "before a line names the shard": ("probes.store.writer.append_line", 2, (1, 2, False)),
    "in the middle of that line": ("probes.store.journal.os.write", 2, (1, 2, True)),
    "before that line is on the disk": ("probes.store.journal.os.fsync", 9, (2, 2, False)),
}


@pytest.fixture(scope="module")
def rows():
    """40 conversations of many lengths."""
    words, draw = ("cool", "the", "burn", "under", "running", "water", "loosely"), random.Random(0)
    texts = [[" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(2)] for _ in range(40)]
    return [Conversation.of(*pair) for pair in texts]


@pytest.fixture(scope="module")
def job(_tiny_model, rows):
    """`job(path)`: begin or continue the capture of the rows into a store of some 20 shards."""

    def run(path):
        begun = (path / "manifest.json").exists()
        made = {} if begun else {"dtype": torch.bfloat16, "shard_tokens": 60}
        store = ActivationStore.open(path) if begun else ActivationStore.create(path, **made)
        capture(_tiny_model, rows, layers=(0, 3), pool="tokens", batch_size=4, batch_tokens=120, store=store)

    return run


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """The files of a capture that nobody disturbed, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    job(folder / "warm")
    start = time.monotonic()
    job(folder / "store")
    seconds = time.monotonic() - start
    assert len(store_files(folder / "store")) > 15
    return store_files(folder / "store"), seconds


def test_sigkill_at_random_moments(job, whole, forked, tmp_path):
    wanted, seconds = whole
    draw, killed, survived, stages = random.Random(1), 0, 0, set()
    while killed < KILLS:
        path = tmp_path / f"store-{survived}"
        child = forked(lambda path=path: job(path))
        time.sleep(draw.uniform(0.0, 0.4) * seconds)
        child.kill()
        if child.wait() == "killed":
            killed += 1
            stages.add(check(path))
        else:
            survived += 1  # it was done before: the next kills are for another store
            assert store_files(path) == wanted
    job(path)
    assert store_files(path) == wanted
    assert len(stages) > 5, f"kills met only {stages} shards"


def check(path):
    """What a reader finds after a kill: whole shards only; how many."""
    if not (path / "manifest.json").exists():
        return 0
    store = ActivationStore.open(path)
    store.verify()
    found = [index for shard in store.shards for index in shard.indices()]
    assert len(found) == len(set(found))
    assert sum(map(len, store.iter_shards())) == len(store)
    return len(store.shards)


@pytest.mark.parametrize("point", POINTS)
def test_sigkill_at_the_worst_moments(job, whole, forked, tmp_path, monkeypatch, point):
    (place, number, left), path = POINTS[point], tmp_path / "store"
    work = killing(place, number, lambda: job(path), monkeypatch)
    assert forked(work).wait() == "killed"
    journal = path / "shards.jsonl"
    torn = journal.exists() and not journal.read_bytes().endswith(b"\n")
    assert (check(path), len(list(path.glob("shard-*"))), torn) == left
    job(path)
    assert store_files(path) == whole[0]
