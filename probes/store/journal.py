"""The list of a store's shards: a file that only grows, a line of JSON each, readable whenever its writer is killed."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from probes.errors import InputError
from probes.io import atomic_file

JOURNAL = "shards.jsonl"
_NAME = re.compile(r"shard-\d{9,}-[0-9a-f]{12}\.safetensors")


@dataclass(frozen=True)
class Shard:
    """One line of the journal: a file of the store's folder and what it holds.

    `conversations` are runs [first, stop) of conversation indices; `data` is the digest of their text, where the
    capture knew it; `bytes` and `sha256` are those of the whole file.
    """

    file: str
    rows: int
    bytes: int
    sha256: str
    conversations: tuple[tuple[int, int], ...]
    data: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.file):
            raise ValueError(f"{self.file!r} is no name of a shard")

    @property
    def order(self) -> tuple[tuple[int, int], ...]:
        """By what shards are read in order: their conversations, not when they were written."""
        return self.conversations

    def indices(self) -> list[int]:
        """The conversations, ascending."""
        return [index for first, stop in self.conversations for index in range(first, stop)]


def runs(indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Integers as ascending runs [first, stop)."""
    found: list[tuple[int, int]] = []
    for index in sorted(set(indices)):
        if found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return tuple(found)


def read_journal(folder: Path) -> list[Shard]:
    """The shards, ordered by their conversations; a last line that a killed writer left unfinished does not count.

    Raises InputError for a line that is not one of ours.
    """
    text = _whole_lines(folder / JOURNAL)
    shards = [parsed(line, f"{folder / JOURNAL}:{number}") for number, line in enumerate(text.splitlines(), 1)]
    return sorted(shards, key=lambda shard: shard.order)


def append_line(folder: Path, shard: Shard) -> None:
    """Add a shard: one write to the end of the file, on disk when this returns; a failed write leaves no trace."""
    line = (json.dumps(asdict(shard), sort_keys=True) + "\n").encode()
    handle = os.open(folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        try:
            if os.write(handle, line) != len(line):
                raise OSError(f"{JOURNAL}: a line was cut short")
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def mend_journal(folder: Path) -> None:
    """Cut off the unfinished line of a writer that was killed. Call it while holding the store's lock."""
    path = folder / JOURNAL
    whole = len(_whole_lines(path).encode())
    if path.exists() and path.stat().st_size != whole:
        os.truncate(path, whole)


def rewrite_journal(folder: Path, shards: Sequence[Shard]) -> None:
    """Replace the list, atomically. Call it while holding the store's lock."""
    with atomic_file(folder / JOURNAL) as temporary:
        lines = (json.dumps(asdict(shard), sort_keys=True) + "\n" for shard in shards)
        temporary.write_text("".join(lines), encoding="utf-8")


def is_shard(name: str) -> bool:
    """Whether a file's name is one that only shards have."""
    return bool(_NAME.fullmatch(name))


def _whole_lines(path: Path) -> str:
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1].decode("utf-8", errors="replace")


def parsed(line: str, place: str) -> Shard:
    """A line of the journal as a shard. Raises InputError, which names `place`, where it is none."""
    try:
        told = json.loads(line)
        return Shard(**told | {"conversations": tuple((first, stop) for first, stop in told["conversations"])})
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{place}: no line of this journal ({error}); remove the line, and capture again to replace its shard"
        ) from None
