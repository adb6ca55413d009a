"""One epoch over a store in batches, in order or shuffled, in memory that does not grow with the store."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from probes.activations import Activations, blank, concatenated, put
from probes.errors import InputError
from probes.store.journal import Shard
from probes.store.shards import read_shard

Where = Literal["all", "response", "prompt"]
PIECE = 256


def shard_batches(
    folder: Path,
    shards: Sequence[Shard],
    kind: Mapping[str, Any],
    size: int,
    *,
    layers: Sequence[int] | None,
    where: Where,
    generator: torch.Generator | None,
    buffer: int,
) -> Iterator[Activations]:
    """Every sample of the shards once, `size` at a time, in the stored dtype; shuffled where there is a generator."""
    if where not in ("all", "response", "prompt"):
        raise InputError(f"where={where!r}: use 'all', 'response' or 'prompt'")
    if where != "all" and kind.get("pool", "tokens") != "tokens":
        raise InputError(f"where={where!r} needs single tokens, and this store holds {kind['pool']}: read all of it")
    pieces = _pieces(shards)
    if generator is not None:
        pieces = pieces[torch.randperm(len(pieces), generator=generator)]
    parts = (_where(part, where) for part in _read(folder, shards, kind, pieces, layers))
    pools = parts if generator is None else _pools(parts, buffer, generator)
    return _rebatched(pools, size)


def _pieces(shards: Sequence[Shard]) -> Tensor:
    """Runs of neighbouring samples as (shard, start, stop) `[piece, 3]`, none across a shard's end."""
    found = [torch.zeros(0, 3, dtype=torch.long)]
    for number, shard in enumerate(shards):
        starts = torch.arange(0, shard.rows, PIECE)
        found.append(torch.stack([torch.full_like(starts, number), starts, (starts + PIECE).clamp(max=shard.rows)], 1))
    return torch.cat(found)


def _read(
    folder: Path, shards: Sequence[Shard], kind: Mapping[str, Any], pieces: Tensor, layers: Sequence[int] | None
) -> Iterator[Activations]:
    """The pieces, in their order."""
    for number, start, stop in pieces.tolist():
        yield read_shard(folder, shards[number], kind, layers=layers, piece=(start, stop))


def _where(part: Activations, where: Where) -> Activations:
    if where == "all" or part.in_response is None:
        return part
    return part.select(part.in_response if where == "response" else ~part.in_response)


def _pools(parts: Iterator[Activations], size: int, generator: torch.Generator) -> Iterator[Activations]:
    """Parts put together until they hold `size` samples or more, their samples in a drawn order."""
    held: list[Activations] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= size:
            yield _shuffled(held, generator)
            count = 0
    if count:
        yield _shuffled(held, generator)


def _shuffled(held: list[Activations], generator: torch.Generator) -> Activations:
    """The parts as one, every sample at a drawn place; `held` is emptied on the way, to need its memory only once."""
    places = torch.randperm(sum(map(len, held)), generator=generator).split([len(part) for part in held])
    whole = blank(held[0], sum(map(len, held)))
    for place in places:
        put(whole, held.pop(0), place)
    return whole


def _rebatched(pools: Iterator[Activations], size: int) -> Iterator[Activations]:
    rest: Activations | None = None
    for pool in pools:
        start = 0 if rest is None else min(size - len(rest), len(pool))
        if rest is not None:
            rest = concatenated([rest, pool.select(torch.arange(start))])
            if len(rest) == size:
                yield rest
                rest = None
        while len(pool) - start >= size:
            yield pool.select(torch.arange(start, start + size))
            start += size
        if start < len(pool):
            rest = pool.select(torch.arange(start, len(pool)))
        del pool  # before the next one is put together
    if rest is not None and len(rest):
        yield rest
