"""The harvest on Ray: what one process would have stored, every row once, with a worker killed on the way."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from probes import ActivationStore, Conversation, InputError, Reading, Workers, capture, harvest, load_model

pytest.importorskip("ray.data", reason="ray is not installed: pip install 'persona-geometry[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # ray warns of much that is not ours

READING = Reading(layers=(1, 3), pool="tokens", site="resid_mid", batch_size=8)


def actors():
    """Process ids of the model actors below this process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = parent, (folder / "cmdline").read_text()
        except (OSError, ValueError):
            continue
    ours = {os.getpid()}
    while grown := {pid for pid, (parent, _) in found.items() if parent in ours} - ours:
        ours |= grown
    return sorted(pid for pid in ours if pid in found and "ray::MapWorker" in found[pid][1])


@pytest.fixture(scope="module")
def rows():
    text = "Have a mechanic look at the brakes before you drive again. "
    return [Conversation.of(f"Number {i}: " + text * (i % 3), text * (1 + i % 4)) for i in range(80)]


@pytest.fixture
def stores(tmp_path):
    """Two empty stores: for one process, and for the cluster."""
    return [ActivationStore.create(tmp_path / name, shard_tokens=250) for name in ("alone", "cluster")]


@pytest.fixture(scope="module")
def cluster():
    """One Ray for all tests of this file: starting it takes most of the time."""
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
def test_a_killed_worker_loses_and_doubles_nothing(tiny_folder, tiny_model, rows, stores, cluster):
    alone, shared = stores
    capture(tiny_model, rows, **vars(READING), store=alone)
    killed, told = [], []

    def kill(done, total, what):
        told.append((done, total))
        if not killed and done < 60:
            killed.append(actors()[0])
            os.kill(killed[0], signal.SIGKILL)

    work = {"tokenizer": tiny_model.tokenizer, "reading": READING, "workers": Workers(2)}
    harvest(partial(slow_model, str(tiny_folder)), rows, store=shared, progress=kill, **work)
    assert killed and killed[0] not in actors() and told[-1] == (80, 80)
    one, other = alone.load(), shared.load()
    assert [shard.conversations for shard in shared.shards] == [shard.conversations for shard in alone.shards]
    assert torch.equal(one.conversation_index, other.conversation_index) and torch.equal(one.positions, other.positions)
    torch.testing.assert_close(other.values, one.values, atol=1e-6, rtol=1e-6)
    assert shared.kind == alone.kind
    shared.verify()

    # A store that is complete is left alone; one that lacks a shard gets that shard again, by either way.
    lost = shared.shards[2]
    (shared.path / lost.file).unlink()
    assert [damage.shard for damage in shared.drop_damaged()] == [lost]
    harvest(partial(load_model, tiny_folder), rows, store=shared, **work)
    assert lost in shared.shards and len(shared.shards) == len(alone.shards)
    with pytest.raises(InputError, match="holds site resid_mid, not mlp_out"):
        harvest(
            partial(load_model, tiny_folder),
            rows,
            store=shared,
            **work | {"reading": Reading((1, 3), "tokens", "mlp_out")},
        )


def slow_model(folder):
    """A model that answers late, so that there is time to kill it."""
    model = load_model(folder)
    model.blocks[3].register_forward_hook(lambda *_: time.sleep(0.05))
    return model


def test_what_a_worker_refuses_is_told_in_one_line(tiny_folder, tiny_model, rows, stores, cluster):
    work = {"tokenizer": tiny_model.tokenizer, "store": stores[1], "workers": Workers(1)}
    with pytest.raises(InputError, match="layer 9: tiny has blocks 0 to 3"):
        harvest(partial(load_model, tiny_folder), rows[:4], reading=Reading((9,)), **work)
    assert len(stores[1]) == 0
