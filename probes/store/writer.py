"""The one writer of a store: it holds the lock, knows what is there, and adds shards that count at once."""

import bisect
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from probes.activations import Activations
from probes.errors import InputError
from probes.io import read_json, write_json
from probes.store.journal import Shard, append_line, is_shard, mend_journal, read_journal
from probes.store.shards import DTYPES, Packed, disk_trouble, kind_of, pack, write_packed

MANIFEST = "manifest.json"
#: How temporary files begin: our own, and those that safetensors makes beside a file that it writes.
TEMPORARY = (".shard-", ".manifest.json.", ".shards.jsonl.", ".writer.json.", ".tmp")
_LOCK, _HOLDER = "writer.lock", "writer.json"


class StoreWriter:
    """Appends to a store while its lock is held; `ActivationStore.writer()` gives one."""

    def __init__(self, path: Path) -> None:
        """Take up a store whose lock is held: leftovers of a killed writer are removed."""
        self.path = path
        mend_journal(path)
        self._manifest = read_json(path / MANIFEST)
        shards = read_journal(path)
        self._held = sorted(
            ((first, stop, shard) for shard in shards for first, stop in shard.conversations), key=lambda run: run[0]
        )
        _remove_leftovers(path, {shard.file for shard in shards})

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which activations are stored."""
        return DTYPES[self._manifest["dtype"]]

    @property
    def shard_tokens(self) -> int:
        """How many tokens a capture reads for one shard."""
        return self._manifest["shard_tokens"]

    def holder(self, conversation: int) -> Shard | None:
        """The shard that holds a conversation, or None."""
        at = bisect.bisect_right(self._held, conversation, key=lambda run: run[0]) - 1
        return self._held[at][2] if at >= 0 and conversation < self._held[at][1] else None

    @property
    def stop(self) -> int:
        """One more than the largest index of a conversation that is held."""
        return max((stop for _, stop, _ in self._held[-1:]), default=0)

    def begin(self, kind: Mapping[str, Any]) -> None:
        """Say what will be appended (layers, pool, model, ...). Raises InputError where the store holds another."""
        held = self._manifest["kind"] or {}
        for key, value in kind.items():
            if key in held and held[key] != value:
                raise InputError(f"{self.path}: holds {key} {held[key]}, not {value}; use another store")
        if held | dict(kind) != held:
            manifest = self._manifest | {"kind": held | dict(kind)}
            write_json(self.path / MANIFEST, manifest)
            self._manifest = manifest

    def append(self, activations: Activations, *, data: str = "") -> Shard:
        """Add activations as one shard; `data` is the digest of their conversations' text.

        Raises InputError where blocks, pool, site or template differ from those stored, where a conversation is there
        already, and where the disk takes no more; nothing is added then.
        """
        return self.put(self.pack(activations, data=data))

    def pack(self, activations: Activations, *, data: str = "") -> Packed:
        """Make the shard that `put` writes, which may happen in another thread. Raises InputError as `append` does."""
        self.begin(kind_of(activations))
        return pack(activations, self.dtype, data=data)

    def put(self, packed: Packed) -> Shard:
        """Write a packed shard, and name it. Raises InputError as `append` does."""
        self._check_new(packed.conversations)
        shard = write_packed(self.path, packed)
        self.record(shard)
        return shard

    def record(self, shard: Shard) -> None:
        """Name a shard that lies in the folder: from now on it counts. Raises InputError as `append` does."""
        self._check_new(shard.conversations)
        if not (self.path / shard.file).is_file():
            raise InputError(
                f"{self.path / shard.file}: was written but is not seen from here; put the store on a disk that all "
                "workers share"
            )
        try:
            append_line(self.path, shard)
        except OSError as error:
            raise disk_trouble(self.path, error) from None
        for first, stop in shard.conversations:
            bisect.insort(self._held, (first, stop, shard), key=lambda run: run[0])

    def _check_new(self, wanted: Iterable[tuple[int, int]]) -> None:
        for first, stop in wanted:
            at = (
                bisect.bisect_left(self._held, stop, key=lambda run: run[0]) - 1
            )  # the last run that begins before stop
            if at >= 0 and self._held[at][1] > first:
                start, _, shard = self._held[at]
                raise InputError(
                    f"{self.path}: conversation {max(first, start)} is in {shard.file} already; append others"
                )


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of a store. Raises InputError that names the process which has it; a killed one loses it."""
    lock = FileLock(path / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{path}: {_holder(path)} is writing to it; wait until it is done, or end it") from None
    except OSError as error:
        raise disk_trouble(path, error) from None
    try:
        write_json(path / _HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        (path / _HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        told = read_json(path / _HOLDER)
        return f"process {told['pid']} on {told['host']}"
    except (InputError, KeyError):
        return "another process, which has only just begun,"


def _remove_leftovers(path: Path, named: set[str]) -> None:
    """Half-written files and shards that no line names: their writer was killed, and their rows come again."""
    for file in path.iterdir():
        unnamed = is_shard(file.name) and file.name not in named
        if unnamed or file.name.startswith(TEMPORARY):
            file.unlink(missing_ok=True)
