"""Encoding that is killed goes on from there, byte for byte as if nothing had happened; its memory does not grow."""

import random
import subprocess
import sys
import time

import pytest

from saes import LatentStore, encode_into
from tests.forking import killing, store_files

#: Where encoding may die, and what is there then: (shards that count, files of shards, half a line in the journal).
POINTS = {
    "before what is encoded is known": ("probes.store.writer.write_json", 2, (0, 0, False)),
    "before a shard has its name": ("probes.store.shards.publish", 3, (2, 2, False)),
    "before a line names the shard": ("probes.store.writer.append_line", 3, (2, 3, False)),
    "in the middle of that line": ("probes.store.journal.os.write", 3, (2, 3, True)),
}


@pytest.fixture
def job(topk, source):
    """`job(path)`: begin or continue to encode the source."""

    def run(path):
        begun = (path / "manifest.json").exists()
        encode_into(topk, source, LatentStore.open(path) if begun else LatentStore.create(path))

    return run


@pytest.mark.parametrize("point", POINTS)
def test_sigkill_at_the_worst_moments(job, forked, tmp_path, monkeypatch, point):
    (place, number, left), path = POINTS[point], tmp_path / "store"
    job(tmp_path / "whole")
    assert forked(killing(place, number, lambda: job(path), monkeypatch)).wait() == "killed"
    journal, store = path / "shards.jsonl", LatentStore.open(path)
    store.verify()
    torn = journal.exists() and not journal.read_bytes().endswith(b"\n")
    assert (len(store.shards), len(list(path.glob("shard-*"))), torn) == left
    job(path)
    assert store_files(path) == store_files(tmp_path / "whole")


def test_sigkill_at_random_moments(job, forked, tmp_path):
    start = time.monotonic()
    job(tmp_path / "whole")
    seconds, draw, killed, path = time.monotonic() - start, random.Random(2), 0, tmp_path / "store"
    for attempt in range(100):
        child = forked(lambda path=path: job(path))
        time.sleep(draw.uniform(0, seconds))
        child.kill()
        if child.wait() == "killed":
            killed += 1
        else:
            assert store_files(path) == store_files(tmp_path / "whole")
            path = tmp_path / f"store-{attempt}"
        if killed == 12:
            break
    job(path)
    assert killed == 12 and store_files(path) == store_files(tmp_path / "whole")


MEMORY = """
import resource, sys, torch
from pathlib import Path
from probes import Activations, ActivationStore
from saes import Contrast, LatentStore, SparseAutoencoder, encode_into, group_stats, quality

torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
w = torch.randn(128, 256, generator=g)
sae = SparseAutoencoder(w, w.T.contiguous(), torch.zeros(256), torch.zeros(128), "topk", 0, k=8)

for shards in (3, 15):
    folder = Path(sys.argv[1]) / str(shards)
    source = ActivationStore.create(folder / "acts")
    with source.writer() as writer:
        for shard in range(shards):
            index = torch.arange(400 * shard, 400 * shard + 400).repeat_interleave(20)
            values = torch.randn(1, 8000, 128, generator=g)
            writer.append(Activations(values, (0,), "tokens", "hash", index, index + 1, index + 2, index > 3))
    store = LatentStore.create(folder / "latents")
    encode_into(sae, source, store)
    store.stats(), store.column(3), quality(sae, source)
    labels = ["ab"[i % 2] for i in range(400 * shards)]
    group_stats(store, None, labels, contrast=Contrast(entries=50_000))  # beyond these, histograms
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_store(tmp_path):
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    few, many = map(float, done.stdout.split())  # activations of 12 and 61 MB
    assert many - few < 30, f"{few:.0f} MB for 3 shards, {many:.0f} MB for 15"
