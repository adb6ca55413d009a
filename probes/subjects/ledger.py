"""A ledger: what was paid for once, a line of JSON each, readable whenever its writer is killed."""

import hashlib
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probes.errors import InputError


@dataclass(frozen=True)
class Ledger:
    """A file that only grows: key -> value, the last line of a key counts.

    A line is written by one call at the end of the file, so that several threads and processes may share it. What a
    killed writer left unfinished does not count and harms no later line. Raises InputError where `path` is no file.
    """

    path: Path
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    _entries: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if self.path.is_dir():
            raise InputError(f"{self.path}: a folder; give the name of a file")
        if self.path.is_file():
            for line in self.path.read_bytes().split(b"\n"):
                self._entries.update(_entry(line))

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, value: Any) -> None:
        """Write an entry at the end of the file, on a line of its own."""
        line = json.dumps([key, value], ensure_ascii=False, allow_nan=False)
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _write(handle, _mend(handle) + line.encode("utf-8", "surrogatepass") + b"\n")
            finally:
                os.close(handle)
            self._entries[key] = value


def digest(*parts: Any) -> str:
    """A key for values that JSON can hold: equal values, equal keys, in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _entry(line: bytes) -> dict[str, Any]:
    try:
        key, value = json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, TypeError, RecursionError):
        return {}
    return {key: value} if isinstance(key, str) else {}


def _mend(handle: int) -> bytes:
    """A line break where the last line was left unfinished."""
    size = os.fstat(handle).st_size
    return b"\n" if size and os.pread(handle, 1, size - 1) != b"\n" else b""


def _write(handle: int, data: bytes) -> None:
    done = os.write(handle, data)
    while done < len(data):
        done += os.write(handle, data[done:])
