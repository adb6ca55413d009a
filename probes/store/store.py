"""The store of activations: made, opened, appended to, read, checked."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from probes.activations import Activations, joined
from probes.errors import InputError
from probes.io import read_json, write_json
from probes.store.batches import Where, shard_batches
from probes.store.journal import Shard, read_journal, rewrite_journal
from probes.store.shards import CURE, DTYPES, FORMAT, Damage, damage_of, read_shard
from probes.store.writer import MANIFEST, StoreWriter, only_writer


@dataclass(frozen=True)
class ActivationStore:
    """A folder of activation shards: each is a safetensors file, named with its checksum in a journal that only grows.

    A shard holds `block.{i}` [sample, d_model] for each block i, `conversation` [sample] and, for single tokens,
    `token_ids`, `positions`, `in_response`, `in_reasoning`. It counts once the journal names it: a writer that is
    killed leaves a store that opens and can be continued. One process writes at a time; any number read meanwhile, and
    each read sees the shards that were there when it began. Shards are read in the order of their conversations.
    """

    path: Path

    @classmethod
    def create(
        cls,
        path: str | Path,
        meta: Mapping[str, Any] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        shard_tokens: int = 2**16,
    ) -> "ActivationStore":
        """Make an empty store; `meta` (model, data, ...) goes into the manifest. Raises InputError if one is there.

        Activations are stored in `dtype` (float32, bfloat16, float16); a capture closes a shard before it has read more
        than `shard_tokens` tokens for it, a longer conversation alone excepted.
        """
        path, names = Path(path), {value: name for name, value in DTYPES.items()}
        if (path / MANIFEST).exists():
            raise InputError(f"{path}: an activation store is there already; open it or choose another folder")
        if dtype not in names:
            raise InputError(f"dtype {dtype}: a store holds one of {', '.join(DTYPES)}")
        if shard_tokens < 1:
            raise InputError(f"shard_tokens {shard_tokens}: give 1 or more")
        path.mkdir(parents=True, exist_ok=True)
        manifest = {"format": FORMAT, "meta": dict(meta or {}), "kind": None}
        write_json(path / MANIFEST, manifest | {"dtype": names[dtype], "shard_tokens": shard_tokens})
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> "ActivationStore":
        """Open a store. Raises InputError where the folder holds none."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise InputError(f"{path}: no activation store ({MANIFEST} is missing); create one first")
        found = read_json(path / MANIFEST).get("format")
        if found != FORMAT:
            raise InputError(f"{path / MANIFEST}: of the format {found}, not {FORMAT}; create the store anew")
        return cls(path)

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
        """What the shards have in common: layers, pool, scope, site, d_model, template_hash, and the model if known."""
        kind = self.manifest["kind"]
        if kind is None:
            raise InputError(f"{self.path}: nothing was captured into this store yet; capture first")
        return kind

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that were captured."""
        return tuple(self.kind["layers"])

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.kind["d_model"]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype on disk; reading gives float32 unless told otherwise."""
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

    def append(self, activations: Activations) -> None:
        """Add activations as one shard; for many shards take a `writer`. Raises InputError as its `append` does."""
        with self.writer() as writer:
            writer.append(activations)

    def iter_shards(
        self,
        *,
        layers: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        skip_damaged: bool = False,
    ) -> Iterator[Activations]:
        """Read shard by shard, ordered by conversation, of the blocks only `layers`, in `dtype`.

        Raises InputError for a missing or truncated shard and for a layer that was not captured. `skip_damaged` reads
        every byte of a shard beforehand, and leaves it out with a warning where one has changed.
        """
        for shard in self._sound(self.shards, layers, skip_damaged):
            part = read_shard(self.path, shard, self.kind, layers=layers)
            yield replace(part, values=part.values.to(dtype))

    def iter_batches(
        self,
        batch_size: int,
        *,
        layers: Sequence[int] | None = None,
        where: Where = "all",
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        buffer: int = 2**15,
        dtype: torch.dtype = torch.float32,
        skip_damaged: bool = False,
    ) -> Iterator[Activations]:
        """Read one epoch in batches: every sample once, the last batch as small as it comes.

        Only the wanted samples of the blocks `layers` are read, from mapped files; `where` keeps the tokens of the
        response or of the prompt. With `shuffle`, pieces of 256 neighbouring samples are drawn in an order that
        `generator` decides, from all shards, into a buffer of at least `buffer` samples, which is shuffled whole:
        memory holds twice that buffer (in the store's dtype) and one batch. Same generator state, same batches. Raises
        InputError for `shuffle` without a generator and as `iter_shards` does.
        """
        sound = list(self._sound(self.shards, layers, skip_damaged))
        asked = {"layers": layers, "where": where, "generator": generator if shuffle else None, "buffer": buffer}
        if shuffle and generator is None:
            raise InputError("shuffle=True without a generator: pass torch.Generator().manual_seed(...)")
        if batch_size < 1 or buffer < 1:
            raise InputError(f"batch_size {batch_size}, buffer {buffer}: give 1 or more")
        for part in shard_batches(self.path, sound, self.kind if sound else {}, batch_size, **asked):
            yield replace(part, values=part.values.to(dtype))

    def load(self) -> Activations:
        """Read everything into memory, ordered by conversation, in float32."""
        return joined(list(self.iter_shards()))

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
        """Take damaged shards out of the store, for the same capture to replace them; returns what was taken out."""
        with only_writer(self.path):
            found = self.damaged()
            bad = {damage.shard.file for damage in found}
            if bad:
                rewrite_journal(self.path, [shard for shard in self.shards if shard.file not in bad])
            for name in bad:
                (self.path / name).unlink(missing_ok=True)
        return found

    def _sound(self, shards: list[Shard], layers: Sequence[int] | None, skip_damaged: bool) -> Iterator[Shard]:
        missing = sorted(set(layers or ()) - set(self.layers)) if shards else []
        if missing:
            raise InputError(f"layer {missing[0]} was not captured: {self.path} holds blocks {self.layers}")
        for shard in shards:
            damage = damage_of(self.path, shard) if skip_damaged else None
            if damage is None:
                yield shard
            else:
                warnings.warn(f"{self.path / shard.file}: left out, {damage.why}", stacklevel=3)
