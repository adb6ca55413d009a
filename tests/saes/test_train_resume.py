"""A training that is killed at any moment goes on from its checkpoint and ends with the same bytes."""

import itertools
import os
import random
import signal
import time
from pkgutil import resolve_name

import pytest
import torch

from probes import Activations, ActivationStore, InputError
from probes.progress import silent
from saes import SAERecipe, train_saes
from saes.train.checkpoint import CHECKPOINT
from saes.train.source import RowSource

KILLS, STEPS = 2, 90
SETTINGS = {"d_sae": 48, "steps": STEPS, "lr": 3e-3, "batch": 64}
#: Architectures whose state differs: plain, with a threshold that is averaged, with a price that rises.
KINDS = {
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "jumprelu": {"k": 4, "sparsity": 1.0},
}
#: Where a training may die: the function that does not return, at which of its calls, and which files are there then.
POINTS = {
    "before the first checkpoint is whole": ("saes.train.checkpoint.save_file", 1, set()),
    "before a checkpoint has its name": ("probes.io.publish", 2, {CHECKPOINT}),
    "between the weights and their configuration": ("saes.train.train.publish", 2, {CHECKPOINT, "cfg.json"}),
    "before the record": (
        "saes.train.train.write_json",
        1,
        {CHECKPOINT, "cfg.json", "sae_weights.safetensors"},
    ),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """1,500 rows of 30 conversations in two blocks, in five shards."""
    store = ActivationStore.create(tmp_path_factory.mktemp("resume") / "store")
    for part in range(5):
        index = torch.arange(300) // 50 + 6 * part
        values = torch.randn(2, 300, 16, generator=torch.Generator().manual_seed(part))
        store.append(Activations(values, (0, 1), "tokens", "hash", index, index + 1, index + 2, index > 3))
    return store


@pytest.fixture(scope="module")
def job(store):
    """`job(out, architecture)`: begin or continue two SAEs in one pass, with a checkpoint every seven steps."""

    def run(out, architecture="topk", progress=silent):
        recipe = SAERecipe(architecture=architecture, **SETTINGS, **KINDS[architecture])
        train_saes(store, layers=(0, 1), seeds=(3,), out=out, recipe=recipe, checkpoint_every=7, progress=progress)

    return run


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """Per architecture, the files of a training that nobody disturbed."""
    folders = {architecture: tmp_path_factory.mktemp("whole") for architecture in KINDS}
    for architecture, out in folders.items():
        job(out, architecture)
    return {architecture: files(out) for architecture, out in folders.items()}


def files(out):
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("architecture", ["batchtopk", "jumprelu"])
def test_sigkill_at_random_moments(job, whole, forked, tmp_path, architecture):
    done, draw, out = torch.zeros(1).share_memory_(), random.Random(1), tmp_path / "out"
    for kill in range(KILLS):
        child = forked(lambda: job(out, architecture, lambda now, *_: done.fill_(now)))
        target = draw.uniform(0.7, 1.3) * (kill + 1) * STEPS * 2 / (KILLS + 1)
        while done < target:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.01))
        child.kill()
        assert child.wait() == "killed"
        assert not list(out.rglob("training.json"))
    assert len(list(out.rglob(CHECKPOINT))) == 2
    job(out, architecture)
    assert files(out) == whole[architecture] and len(whole[architecture]) == 6


@pytest.mark.parametrize("point", POINTS)
def test_sigkill_at_the_worst_moments(job, whole, forked, tmp_path, monkeypatch, point):
    place, number, left = POINTS[point]
    real, calls = resolve_name(place), itertools.count(1)

    def die(*args, **kwargs):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    def work():
        monkeypatch.setattr(place, die)
        job(tmp_path / "out")

    assert forked(work).wait() == "killed"
    first = tmp_path / "out" / "layer_0_seed_3"
    assert {file.name for file in first.glob("[!.]*")} == left
    job(tmp_path / "out")
    assert files(tmp_path / "out") == whole["topk"]


class Enough(Exception):
    """Raised by a progress that has seen enough."""


def test_what_was_read_is_not_read_again_and_what_does_not_fit_is_refused(job, whole, tmp_path, monkeypatch):
    def stop(done, *_):
        if done == 2 * STEPS - 30:
            raise Enough

    with pytest.raises(Enough):
        job(tmp_path, "topk", stop)
    with pytest.raises(InputError, match="was begun with architecture='topk', not 'batchtopk'"):
        job(tmp_path, "batchtopk")
    path = tmp_path / "layer_0_seed_3" / CHECKPOINT
    written = path.read_bytes()
    path.write_bytes(written[:100])
    with pytest.raises(InputError, match="no checkpoint of a training"):
        job(tmp_path)
    path.write_bytes(written)
    passes, real = [], RowSource.chunks
    monkeypatch.setattr(RowSource, "chunks", lambda self, g: (passes.append(g.initial_seed()), real(self, g))[1])
    job(tmp_path)
    assert files(tmp_path) == whole["topk"]
    assert passes[:2] == [0, 0] and min(passes[2:]) == 2  # twice to look at the rows, then from the pass of the break
