"""What every folder of shards has: a manifest, a journal, one writer at a time, and shards that can be checked."""

import warnings
from abc import ABC
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from probes.errors import InputError
from probes.io import read_json, write_json
from probes.store.journal import Shard, read_journal, rewrite_journal
from probes.store.shards import CURE, DTYPES, Damage, damage_of
from probes.store.writer import MANIFEST, StoreWriter, only_writer


@dataclass(frozen=True)
class ShardFolder(ABC):
    """A folder of shards, each a safetensors file that is named with its checksum in a journal that only grows.

    A shard counts once the journal names it: a writer that is killed leaves a store that opens and can be continued.
    One process writes at a time; any number read meanwhile, and each read sees the shards that were there when it
    began. `format` goes into the manifest, `noun` into messages.
    """

    path: Path
    format: ClassVar[str]
    noun: ClassVar[str]

    @classmethod
    def found(cls, path: str | Path) -> Path:
        """The folder of a store that is there. Raises InputError where the folder holds none."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise InputError(f"{path}: no {cls.noun} ({MANIFEST} is missing); create one first")
        told = read_json(path / MANIFEST).get("format")
        if told != cls.format:
            raise InputError(f"{path / MANIFEST}: of the format {told}, not {cls.format}; create the store anew")
        return path

    @classmethod
    def begun(cls, path: str | Path, meta: Mapping[str, Any] | None, dtype: torch.dtype, shard_tokens: int) -> Path:
        """Make the folder of an empty store. InputError if one is there, and for settings that no store can have."""
        path, names = Path(path), {value: name for name, value in DTYPES.items()}
        if (path / MANIFEST).exists():
            article = "an" if cls.noun[0] in "aeiou" else "a"
            raise InputError(f"{path}: {article} {cls.noun} is there already; open it or choose another folder")
        if dtype not in names:
            raise InputError(f"dtype {dtype}: a store holds one of {', '.join(DTYPES)}")
        if shard_tokens < 1:
            raise InputError(f"shard_tokens {shard_tokens}: give 1 or more")
        path.mkdir(parents=True, exist_ok=True)
        manifest = {"format": cls.format, "meta": dict(meta or {}), "kind": None}
        write_json(path / MANIFEST, manifest | {"dtype": names[dtype], "shard_tokens": shard_tokens})
        return path

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk now."""
        return read_json(self.path / MANIFEST)

    @property
    def meta(self) -> dict[str, Any]:
        """What `create` was told about the data."""
        return self.manifest["meta"]

    @property
    def kind(self) -> dict[str, Any]:
        """What the shards have in common. Raises InputError while the store is empty and nobody has said."""
        kind = self.manifest["kind"]
        if kind is None:
            raise InputError(f"{self.path}: nothing was captured into this store yet; capture first")
        return kind

    @property
    def dtype(self) -> torch.dtype:
        """The dtype on disk."""
        return DTYPES[self.manifest["dtype"]]

    @property
    def shards(self) -> list[Shard]:
        """The shards that are there now, ordered by their conversations."""
        return read_journal(self.path)

    @property
    def rows(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.rows for shard in self.shards)

    def __len__(self) -> int:
        return self.rows

    def conversations(self) -> set[int]:
        """Indices of the conversations that the store holds."""
        return {index for shard in self.shards for index in shard.indices()}

    @contextmanager
    def writer(self) -> Iterator[StoreWriter]:
        """Be the one that appends. Raises InputError that names the process and the host of another writer."""
        with only_writer(self.path):
            yield StoreWriter(self.path)

    def damaged(self) -> list[Damage]:
        """Every shard that is missing, truncated or changed; all bytes of the store are read."""
        found = (damage_of(self.path, shard) for shard in self.shards)
        return [damage for damage in found if damage is not None]

    def verify(self) -> None:
        """Raise InputError that names every damaged shard, unless all are there with the checksums of the journal."""
        found = self.damaged()
        if found:
            told = "; ".join(f"{damage.shard.file}: {damage.why}" for damage in found)
            raise InputError(f"{self.path}: {len(found)} of {len(self.shards)} shards are damaged ({told}); {CURE}")

    def drop_damaged(self) -> list[Damage]:
        """Take damaged shards out of the store, for the same work to replace them; returns what was taken out."""
        with only_writer(self.path):
            found = self.damaged()
            bad = {damage.shard.file for damage in found}
            if bad:
                rewrite_journal(self.path, [shard for shard in self.shards if shard.file not in bad])
            for name in bad:
                (self.path / name).unlink(missing_ok=True)
        return found

    def sound(self, shards: list[Shard], *, skip_damaged: bool) -> Iterator[Shard]:
        """The shards to read: all, or with `skip_damaged` those of which every byte is as it was, warning of others."""
        for shard in shards:
            damage = damage_of(self.path, shard) if skip_damaged else None
            if damage is None:
                yield shard
            else:
                warnings.warn(f"{self.path / shard.file}: left out, {damage.why}", stacklevel=3)
