"""The store of sparse latents: made, opened, read in bounded memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from probes.activations import Site
from probes.errors import InputError
from probes.store.folder import ShardFolder
from probes.store.journal import Shard
from probes.store.shards import opened, rows_in
from saes.latent_store.batch import LatentBatch, LatentColumn, joined_tokens
from saes.latent_store.identity import sae_digest, source_digest, source_mark
from saes.latents import LatentStats
from saes.rows import Keep, Tokens, Where
from saes.sae import SparseAutoencoder

FORMAT = "persona-geometry/latents/1"
_PIECE = 2**14  # rows read at a time where nobody says how many


@dataclass(frozen=True)
class LatentStore(ShardFolder):
    """A folder of sparse latents, a shard for each shard of the activations that were encoded, in their order.

    A shard holds `indptr` [sample + 1], `indices` and `values` [entry] (rows in compressed form) and what the
    activations knew of their tokens: `conversation`, `token_ids`, `positions`, `in_response`, `in_reasoning` [sample].
    `kind` says which SAE and which activations they are, with digests; others are refused. `encode_into` fills it.
    """

    format: ClassVar[str] = FORMAT
    noun: ClassVar[str] = "store of latents"

    @classmethod
    def create(
        cls, path: str | Path, meta: Mapping[str, Any] | None = None, *, dtype: torch.dtype = torch.float32
    ) -> "LatentStore":
        """Make an empty store, whose values will be held in `dtype` (float32, bfloat16, float16).

        `meta` goes into the manifest. Raises InputError if one is there.
        """
        return cls(cls.begun(path, meta, dtype, 1))

    @classmethod
    def open(cls, path: str | Path) -> "LatentStore":
        """Open a store. Raises InputError where the folder holds none."""
        return cls(cls.found(path))

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.kind["d_sae"]

    @property
    def layer(self) -> int:
        """The block that the SAE reads."""
        return self.kind["layer"]

    @property
    def site(self) -> Site:
        """The site that the SAE reads."""
        return self.kind["site"]

    def check_sae(self, sae: SparseAutoencoder) -> None:
        """Raise InputError unless these are latents of `sae`, by its weights."""
        if self.kind["sae_digest"] != sae_digest(sae):
            raise InputError(
                f"{self.path}: holds latents of {self.kind['sae']!r} (digest {self.kind['sae_digest']}), and this is "
                f"{sae.name!r} (digest {sae_digest(sae)}): encode with this SAE into another store"
            )

    def check_source(self, source: Any) -> None:
        """Raise InputError unless these are latents of all that the activation store `source` holds."""
        if self.kind["source"] != source_digest(source):
            raise InputError(f"{self.path}: holds latents of other activations than {source.path}: encode these anew")
        here, there = ({shard.data for shard in self.shards}, {source_mark(shard) for shard in source.shards})
        if here != there:
            raise InputError(
                f"{self.path}: {len(there - here)} shards of {source.path} are not encoded, {len(here - there)} are "
                "gone from it: encode again, or give the store that was encoded"
            )

    def iter_batches(
        self,
        batch_size: int = _PIECE,
        *,
        where: Where = "all",
        skip_first: int = 0,
        keep: Keep | None = None,
        dtype: torch.dtype = torch.float32,
        skip_damaged: bool = False,
    ) -> Iterator[LatentBatch]:
        """Read in order, in batches of at most `batch_size` rows, none across a shard's end; only they are in memory.

        `where`, `skip_first` and `keep` choose rows as they do in `stream_rows`. Raises InputError for a missing or
        truncated shard, for no rows at all, and for what a store of means or of last tokens cannot tell.
        """
        asked: dict[str, Any] = {"where": where, "skip_first": skip_first, "keep": keep, "dtype": dtype}
        for batches in self.iter_shards(batch_size, **asked, skip_damaged=skip_damaged):
            yield from batches

    def iter_shards(
        self,
        batch_size: int = _PIECE,
        *,
        where: Where = "all",
        skip_first: int = 0,
        keep: Keep | None = None,
        dtype: torch.dtype = torch.float32,
        skip_damaged: bool = False,
    ) -> Iterator[Iterator[LatentBatch]]:
        """What `iter_batches` reads, shard by shard: the batches of each, which hold whole conversations between them.

        Read those of a shard before you ask for the next. Raises InputError as `iter_batches` does.
        """
        if batch_size < 1 or skip_first < 0:
            raise InputError(f"batch_size {batch_size}, skip_first {skip_first}: give at least 1 and 0")
        seen = [0]

        def batches(shard: Shard) -> Iterator[LatentBatch]:
            for start in range(0, shard.rows, batch_size):
                piece = (start, min(start + batch_size, shard.rows))
                batch = _chosen(self._read(shard, piece, dtype), where, skip_first, keep)
                seen[0] += len(batch)
                if len(batch):
                    yield batch

        for shard in self.sound(self.shards, skip_damaged=skip_damaged):
            yield batches(shard)
        if not seen[0]:
            raise InputError(f"{self.path}: no rows to read (where={where!r}); encode activations, or choose others")

    def column(self, latent: int, *, dtype: torch.dtype = torch.float32) -> LatentColumn:
        """Where one latent fires. Raises InputError where there is no such latent."""
        return self.columns([latent], dtype=dtype)[0]

    def columns(self, latents: Sequence[int], *, dtype: torch.dtype = torch.float32) -> list[LatentColumn]:
        """Where each of several latents fires, found in one pass; memory holds their entries and one batch."""
        wrong = [latent for latent in latents if not 0 <= latent < self.d_sae]
        if wrong:
            raise InputError(f"{self.path}: latent {wrong[0]} does not exist; it has latents 0 to {self.d_sae - 1}")
        found: dict[int, list[LatentColumn]] = {latent: [] for latent in latents}
        done = 0
        for batch in self.iter_batches(dtype=dtype):
            rows = batch.rows
            for latent, parts in found.items():
                entries = batch.indices == latent
                at = rows[entries]
                parts.append(LatentColumn(latent, at + done, batch.values[entries], batch.tokens.select(at), 0))
            done += len(batch)
        return [_joined(found[latent], done) for latent in latents]

    def stats(self, *, where: Where = "all", skip_first: int = 0, keep: Keep | None = None) -> LatentStats:
        """What `latent_stats` finds for the activations, up to the rounding of the values on disk."""
        n, total, fired = 0, torch.zeros(self.d_sae, dtype=torch.float64), torch.zeros(self.d_sae, dtype=torch.long)
        for batch in self.iter_batches(where=where, skip_first=skip_first, keep=keep):
            at = batch.indices.long()
            n, total = n + len(batch), total.index_add(0, at, batch.values.double())
            fired = fired.index_add(0, at, (batch.values > 0).long())
        return LatentStats(total / n, fired.double() / n, n)

    def _read(self, shard: Shard, piece: tuple[int, int], dtype: torch.dtype) -> LatentBatch:
        start, stop = piece
        with opened(self.path, shard) as file:
            indptr = file.get_slice("indptr")[start : stop + 1].clone()
            if len(indptr) != stop - start + 1:
                raise ValueError(f"indptr ends before row {stop}")
            first, last = int(indptr[0]), int(indptr[-1])
            entries = {name: file.get_slice(name)[first:last].clone() for name in ("indices", "values")}
            names = set(file.keys()) - {"indptr", *entries}
            tokens = {name: rows_in(file, name, shard, start, stop).clone() for name in names}
        return LatentBatch(
            indptr - first, entries["indices"], entries["values"].to(dtype), self.d_sae, Tokens(**tokens)
        )


def _chosen(batch: LatentBatch, where: Where, skip_first: int, keep: Keep | None) -> LatentBatch:
    mask: Tensor = batch.tokens.mask(where)
    if skip_first:
        mask = mask & batch.tokens.after(skip_first)
    if keep is not None:
        mask = mask & keep(batch.tokens.conversation)
    return batch.select(mask)


def _joined(parts: Sequence[LatentColumn], n: int) -> LatentColumn:
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "values")}
    return LatentColumn(parts[0].latent, **whole, tokens=joined_tokens(parts), n=n)
