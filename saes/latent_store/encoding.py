"""Encoding a store of activations into a store of sparse latents, shard by shard."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from probes.errors import InputError
from probes.progress import Progress, silent
from probes.store import ActivationStore, Shard, StoreWriter
from probes.store.shards import DTYPES, Packed, read_shard
from saes.latent_store.batch import LatentBatch, stacked
from saes.latent_store.identity import sae_digest, source_digest, source_mark
from saes.latent_store.store import FORMAT, LatentStore
from saes.rows import block_rows, stream_parts
from saes.sae import SparseAutoencoder


def encode_into(
    sae: SparseAutoencoder, source: ActivationStore, store: LatentStore, *, progress: Progress = silent
) -> None:
    """Encode what `source` holds at the SAE's block and site into `store`, a shard for a shard, in bounded memory.

    Shards that are encoded already are left as they are: the same call continues after a kill, and after `source` has
    grown, with equal bytes. A value that the store's dtype would round to 0 is kept as its smallest normal number, so
    that firing rates stay exact. `progress` hears of shards. Raises InputError where the store was begun with another
    SAE or other activations, where a shard of `source` has changed since, for activations of another width, site or
    pool, and for a value that is not finite in the store's dtype.
    """
    _check_fits(sae, source)
    shards = source.shards
    with store.writer() as writer:
        writer.begin(_kind(sae, source))
        for done, shard in enumerate(shards):
            progress(done, len(shards), "latents")
            if not _held(writer, shard):
                batch = stacked(list(_encoded(sae, source, shard)))
                writer.put(_packed(batch, shard, writer.dtype, writer.path))
        progress(len(shards), len(shards), "latents")


@torch.no_grad()
def _encoded(sae: SparseAutoencoder, source: ActivationStore, shard: Shard) -> Iterator[LatentBatch]:
    """Latents of one shard of activations, of which a block of rows at a time is read."""
    size = block_rows(sae.d_sae)
    for start in range(0, shard.rows, size):
        piece = (start, min(start + size, shard.rows))
        part = read_shard(source.path, shard, source.kind, layers=(sae.layer,), piece=piece)
        (rows,) = stream_parts(replace(part, values=part.values.float()), sae.layer, site=sae.site)
        assert rows.tokens is not None
        yield LatentBatch.of(sae.encode(rows.values), rows.tokens)


def _check_fits(sae: SparseAutoencoder, source: ActivationStore) -> None:
    if sae.layer not in source.layers:
        raise InputError(f"layer {sae.layer} was not captured: {source.path} holds blocks {source.layers}")
    if source.d_model != sae.d_model:
        raise InputError(
            f"SAE {sae.name!r} reads width {sae.d_model}, and {source.path} holds width {source.d_model}: load the SAE "
            "that was trained on this model"
        )


def _kind(sae: SparseAutoencoder, source: ActivationStore) -> dict[str, Any]:
    """What the store is told of the SAE and of the activations, as JSON."""
    kind = source.kind
    told = {"sae": sae.name, "sae_digest": sae_digest(sae), "d_sae": sae.d_sae, "layer": sae.layer, "site": sae.site}
    asked = {name: kind.get(name, "") for name in ("model", "pool", "scope", "template_hash")}
    return told | asked | {"source": source_digest(source)}


def _held(writer: StoreWriter, shard: Shard) -> bool:
    """Whether the latents of a shard of activations are there."""
    held = {writer.holder(first) for first, _ in shard.conversations} - {None}
    if not held:
        return False
    (found,) = held if len(held) == 1 else (None,)
    if found is None or found.data != source_mark(shard) or found.conversations != shard.conversations:
        raise InputError(
            f"{writer.path}: latents of conversation {shard.conversations[0][0]} were made from other activations than "
            f"{shard.file}; encode into another store"
        )
    return True


def _packed(batch: LatentBatch, shard: Shard, dtype: torch.dtype, path: Any) -> Packed:
    """A shard of latents, ready to be written."""
    values = batch.values.to(dtype)
    if not torch.isfinite(values).all():
        name = next(name for name, value in DTYPES.items() if value == dtype)
        raise InputError(f"{path}: a latent does not fit into {name}; make the store with bfloat16 or float32")
    values = torch.where(values == 0, torch.finfo(dtype).tiny, values)
    tensors = {"indptr": batch.indptr, "indices": batch.indices, "values": values} | batch.tokens.known()
    note = {"format": FORMAT, "layer": "0-based decoder block", "d_sae": batch.d_sae}
    metadata = {"persona-geometry": json.dumps(note, sort_keys=True)}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return Packed(whole, metadata, shard.conversations, len(batch), source_mark(shard))
