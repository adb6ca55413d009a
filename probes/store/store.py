"""The store of activations: made, opened, appended to, read, checked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from probes.activations import Activations, joined
from probes.errors import InputError
from probes.store.batches import Where, shard_batches
from probes.store.folder import ShardFolder
from probes.store.journal import Shard
from probes.store.shards import FORMAT, read_shard


@dataclass(frozen=True)
class ActivationStore(ShardFolder):
    """A folder of activation shards, read in the order of their conversations.

    A shard holds `block.{i}` [sample, d_model] for each block i, `conversation` [sample] and, for single tokens,
    `token_ids`, `positions`, `in_response`, `in_reasoning`. It counts once the journal names it: a writer that is
    killed leaves a store that opens and can be continued. One process writes at a time; any number read meanwhile.
    `kind` says what they have in common: layers, pool, scope, site, d_model, template_hash, and the model if known.
    """

    format: ClassVar[str] = FORMAT
    noun: ClassVar[str] = "activation store"

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

        Activations are stored in `dtype` (float32, bfloat16, float16) and read as float32 unless told otherwise; a
        capture closes a shard before it has read more than `shard_tokens` tokens for it, a longer conversation alone
        excepted.
        """
        return cls(cls.begun(path, meta, dtype, shard_tokens))

    @classmethod
    def open(cls, path: str | Path) -> "ActivationStore":
        """Open a store. Raises InputError where the folder holds none."""
        return cls(cls.found(path))

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that were captured."""
        return tuple(self.kind["layers"])

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.kind["d_model"]

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

    def _sound(self, shards: list[Shard], layers: Sequence[int] | None, skip_damaged: bool) -> Iterator[Shard]:
        missing = sorted(set(layers or ()) - set(self.layers)) if shards else []
        if missing:
            raise InputError(f"layer {missing[0]} was not captured: {self.path} holds blocks {self.layers}")
        return self.sound(shards, skip_damaged=skip_damaged)
