"""One epoch over a store in batches, in order or shuffled, in memory that does not grow with the store."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from probes.activations import Activations, concatenated
from probes.errors import InputError
from probes.store.journal import Shard
from probes.store.shards import Reader, opened

Where = Literal["all", "response", "prompt"]
PIECE, OPEN_FILES = 256, 32


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
    pools = _pools(parts, buffer if generator is not None else size)
    if generator is not None:
        pools = (pool.select(torch.randperm(len(pool), generator=generator)) for pool in pools)
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
    """The pieces, in their order, from at most `OPEN_FILES` mapped files at a time."""
    with ExitStack() as everything:
        files: dict[int, tuple[ExitStack, Reader]] = {}
        for number, start, stop in pieces.tolist():
            if number not in files:
                if len(files) == OPEN_FILES:
                    files.pop(next(iter(files)))[0].close()
                stack = everything.enter_context(ExitStack())
                files[number] = stack, stack.enter_context(opened(folder, shards[number]))
            yield files[number][1](start, stop, kind, layers)


def _where(part: Activations, where: Where) -> Activations:
    if where == "all" or part.in_response is None:
        return part
    return part.select(part.in_response if where == "response" else ~part.in_response)


def _pools(parts: Iterator[Activations], size: int) -> Iterator[Activations]:
    """Parts put together until they hold `size` samples or more."""
    held: list[Activations] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= size:
            yield concatenated(held)
            held = []
    if held:
        yield concatenated(held)


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
    if rest is not None and len(rest):
        yield rest
