"""Where the rows of a training come from: a tensor, captured activations or a store, shuffled, without the held out."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probes.activations import Activations
from probes.errors import InputError
from probes.store import ActivationStore
from saes.rows import Source, Where, stream_rows
from saes.train.recipe import SAERecipe

CHUNK = 2**13  # rows read at a time


@dataclass(frozen=True, eq=False)
class RowSource:
    """Activations to train on: `held` are the conversations [conversation] that are not.

    `digest` is that of the shards' checksums, or of the values themselves.
    """

    rows: Activations | ActivationStore
    layers: tuple[int, ...]
    where: Where
    held: Int[Tensor, " conversation"]
    digest: str
    about: dict[str, Any]

    def chunks(self, generator: torch.Generator) -> Iterator[Activations]:
        """Every row once, in an order that `generator` draws, 8,192 at a time, in float32.

        From a store, memory holds 65,536 rows of these layers and a chunk.
        """
        if isinstance(self.rows, Activations):
            order = torch.randperm(len(self.rows), generator=generator)
            return (self.rows.select(part.to(self.rows.values.device)) for part in order.split(CHUNK))
        if store_digest(self.rows) != self.digest:
            raise InputError(f"{self.rows.path}: has changed since this training began; train on it anew")
        wanted: Any = {"layers": self.layers, "where": self.where}
        return self.rows.iter_batches(CHUNK, shuffle=True, generator=generator, **wanted)

    def is_held(self, chunk: Activations) -> Bool[Tensor, " sample"]:
        """Which rows belong to a conversation that is held out."""
        return torch.isin(chunk.conversation_index, self.held.to(chunk.conversation_index.device))


def open_source(source: Source, layers: Sequence[int], recipe: SAERecipe) -> RowSource:
    """Make ready what is to be trained on. InputError as `stream_rows`, and for `skip_first` without positions."""
    for layer in layers:
        next(stream_rows(source, layer, where=recipe.where, size=1))
    if isinstance(source, ActivationStore):
        rows, kind = source, source.kind
        positions = "positions" if kind["pool"] == "tokens" else None
        indices = [torch.arange(*run) for shard in source.shards for run in shard.conversations]
        conversations, digest = torch.cat(indices).unique(), store_digest(source)
    else:
        rows = _in_memory(source, layers, recipe)
        kind, positions = vars(rows), rows.positions
        conversations, digest = rows.conversation_index.unique(), values_digest(rows)
    if recipe.skip_first and positions is None:
        raise InputError(f"skip_first={recipe.skip_first}: these rows do not say where in a conversation they stand")
    about = {name: kind.get(name) for name in ("site", "template_hash", "pool", "model") if kind.get(name)}
    return RowSource(rows, tuple(layers), recipe.where, _held(conversations, recipe.held_out), digest, about)


def _in_memory(source: Tensor | Activations, layers: Sequence[int], recipe: SAERecipe) -> Activations:
    """The rows of these layers that `where` keeps; a tensor is cut into as many runs as one is held out of."""
    if isinstance(source, Tensor):
        if len(layers) > 1:
            raise InputError(f"layers {tuple(layers)}: a plain tensor holds the rows of one; give captured activations")
        run = max(1, len(source) // _one_in(recipe.held_out))
        return Activations(source[None], (layers[0],), "tokens", "", torch.arange(len(source)) // run)
    if recipe.where != "all" and source.in_response is not None:
        source = source.select(source.in_response if recipe.where == "response" else ~source.in_response)
    return source


def _held(conversations: Int[Tensor, " conversation"], share: float) -> Int[Tensor, " held"]:
    """Every fiftieth conversation (for a share of 2 %), or the last one of fewer; none where there are less than 10."""
    if not share or len(conversations) < 10:
        return conversations[:0]
    every = min(_one_in(share), len(conversations))
    return conversations[every - 1 :: every]


def _one_in(share: float) -> int:
    return round(1 / share) if share else 50


def store_digest(store: ActivationStore) -> str:
    """SHA-256 of the shards' SHA-256, in the order in which they are read."""
    return hashlib.sha256("".join(shard.sha256 for shard in store.shards).encode()).hexdigest()


def values_digest(rows: Activations) -> str:
    """SHA-256 of the values and of their conversations."""
    found = hashlib.sha256()
    for tensor in (*rows.values, rows.conversation_index):
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
