"""Children that are forked from the warm test process, so that they can be killed at any moment."""

import itertools
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import pytest


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


def killing(place: str, number: int, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`work`, in which call `number` of the function named `place` kills the process; a write is half done by then."""
    real, calls = resolve_name(place), itertools.count(1)

    def die(*args, **kwargs):
        if next(calls) < number:
            return real(*args, **kwargs)
        if place.endswith("os.write"):
            real(args[0], args[1][: len(args[1]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        monkeypatch.setattr(place, die)
        work()

    return run


def store_files(path: Path) -> dict[str, bytes]:
    """Everything that a store consists of, byte for byte; the lock is none of it."""
    return {file.name: file.read_bytes() for file in path.iterdir() if not file.name.startswith("writer")}
