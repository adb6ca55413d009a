"""Where the rows of a training come from: a tensor, captured activations or a store, shuffled, without the held out."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from probes.activations import Activations
from probes.errors import InputError
from probes.store import ActivationStore
from saes.rows import HeldOut, Source, Tokens, Where, stream_rows
from saes.train.recipe import SAERecipe

#: Rows read at a time, and rows among which a store's are shuffled.
CHUNK, BUFFER = 2**13, 2**15


@dataclass(frozen=True, eq=False)
class RowSource:
    """Activations to train on, of which `held_out` conversations are not; a plain tensor's rows count as one each.

    `digest` is that of the shards' checksums, or of the values themselves; `about` is what is known of their origin.
    """

    rows: Activations | ActivationStore
    layers: tuple[int, ...]
    where: Where
    skip_first: int
    held_out: HeldOut | None
    digest: str
    about: dict[str, Any]
    plain: bool

    def chunks(self, generator: torch.Generator) -> Iterator[Activations]:
        """Every row once, in an order that `generator` draws, 8,192 at a time, in float32.

        From a store, memory holds 65,536 rows of these layers and a chunk. InputError where the store has changed.
        """
        if isinstance(self.rows, Activations):
            order = torch.randperm(len(self.rows), generator=generator)
            return (self.rows.select(part.to(self.rows.values.device)) for part in order.split(CHUNK))
        if store_digest(self.rows) != self.digest:
            raise InputError(f"{self.rows.path}: has changed since this training began; train on it anew")
        wanted: Any = {"layers": self.layers, "where": self.where}
        return self.rows.iter_batches(CHUNK, shuffle=True, generator=generator, buffer=BUFFER, **wanted)

    def parted(self, chunk: Activations) -> tuple[Bool[Tensor, " sample"], Bool[Tensor, " sample"]]:
        """Which rows are late enough in their conversation, and which of all are held out."""
        every = torch.ones_like(chunk.conversation_index, dtype=torch.bool)
        late = Tokens.of(chunk).after(self.skip_first) if self.skip_first else every
        held = ~every if self.held_out is None else self.held_out(chunk.conversation_index).to(every.device)
        return late, held


def open_source(source: Source, layers: Sequence[int], recipe: SAERecipe) -> RowSource:
    """Make ready what is to be trained on. InputError as `stream_rows`, and for several layers of a plain tensor."""
    for layer in layers:
        next(stream_rows(source, layer, where=recipe.where, skip_first=recipe.skip_first, size=1))
    if isinstance(source, ActivationStore):
        rows, kind, digest = source, source.kind, store_digest(source)
    else:
        rows = _in_memory(source, layers, recipe.where)
        kind, digest = vars(rows), values_digest(rows)
    about = {name: kind[name] for name in ("site", "template_hash", "pool", "model") if kind.get(name)}
    held_out = HeldOut(recipe.held_out) if recipe.held_out else None
    plain = isinstance(source, Tensor)
    return RowSource(rows, tuple(layers), recipe.where, recipe.skip_first, held_out, digest, about, plain)


def _in_memory(source: Tensor | Activations, layers: Sequence[int], where: Where) -> Activations:
    """The rows that `where` keeps."""
    if isinstance(source, Tensor):
        if len(layers) > 1:
            raise InputError(f"layers {tuple(layers)}: a plain tensor holds the rows of one; give captured activations")
        index = torch.arange(len(source), device=source.device)
        return Activations(source[None], (layers[0],), "tokens", "", index)
    if where == "all" or source.in_response is None:
        return source
    return source.select(Tokens.of(source).mask(where))


def store_digest(store: ActivationStore) -> str:
    """SHA-256 of the shards' SHA-256, in the order in which they are read."""
    return hashlib.sha256("".join(shard.sha256 for shard in store.shards).encode()).hexdigest()


def values_digest(rows: Activations) -> str:
    """SHA-256 of the values and of their conversations."""
    found = hashlib.sha256()
    for tensor in (*rows.values, rows.conversation_index):
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
