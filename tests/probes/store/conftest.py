"""What the store's tests share: made-up activations, and children that are forked from the warm test process."""

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable

import pytest
import torch

from probes import Activations, ActivationStore


@pytest.fixture(scope="session")
def made():
    """`made(first, stop, width=8)`: token activations of blocks 1 and 4, whose numbers say where they belong."""

    def build(first: int, stop: int, width: int = 8) -> Activations:
        counts = torch.tensor([3 + index % 4 for index in range(first, stop)])
        index = torch.arange(first, stop).repeat_interleave(counts)
        positions = torch.cat([torch.arange(count) for count in counts.tolist()])
        ids = 100 * index + positions
        values = torch.stack([ids, -ids]).float()[..., None] + torch.arange(width) / 16
        inside = positions > 1
        return Activations(values, (1, 4), "tokens", "hash", index, ids, positions, inside, in_reasoning=~inside)

    return build


@pytest.fixture
def filled(made, tmp_path):
    """A store of 12 conversations in four shards, with the activations that it should hold."""
    store = ActivationStore.create(tmp_path / "store", {"model": "made"})
    with store.writer() as writer:
        for first in range(0, 12, 3):
            writer.append(made(first, first + 3))
    return store, made(0, 12)


class Child:
    """A forked process that does one thing and ends."""

    def __init__(self, work: Callable[[], object]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, and there are some
            self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = 60) -> int | str:
        """Its exit code, or "killed"."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            time.sleep(0.002)
        self.kill()
        os.waitpid(self.pid, 0)
        raise TimeoutError("the child did not end")


@pytest.fixture
def forked():
    """The class of forked children; skips where the system cannot fork."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    return Child
