"""One shard: a safetensors file, written atomically under a name that its content decides, read in part or whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probes.activations import TOKEN_PARTS, Activations
from probes.errors import InputError
from probes.io import publish, temporary_file
from probes.store.journal import Shard, runs

FORMAT = "persona-geometry/activations/2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CURE = "drop_damaged() and the same capture replace it; skip_damaged=True reads the rest"


@dataclass(frozen=True)
class Damage:
    """A shard that is not what was written, and what is wrong with it: missing, truncated or changed."""

    shard: Shard
    why: str


def kind_of(activations: Activations) -> dict[str, Any]:
    """What all shards of one store have in common, as JSON."""
    names = ("pool", "scope", "site", "template_hash")
    shared = {name: getattr(activations, name) for name in names}
    return shared | {"layers": list(activations.layers), "d_model": activations.values.shape[-1]}


@dataclass(frozen=True)
class Packed:
    """Activations as the tensors and the metadata of a shard, ready to be written."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    conversations: tuple[tuple[int, int], ...]
    rows: int
    data: str


def pack(activations: Activations, dtype: torch.dtype, *, data: str = "") -> Packed:
    """Make a shard of activations; `data` is the digest of their conversations' text.

    Raises InputError for no sample, and for a value that `dtype` cannot hold.
    """
    if not len(activations):
        raise InputError("a shard without samples; append at least one")
    # More than one key would come out in another order every time: safetensors keeps them in a hash map.
    note = {"format": FORMAT, "layer": "0-based decoder block"} | kind_of(activations)
    metadata = {"persona-geometry": json.dumps(note, sort_keys=True)}
    found = tuple(runs(activations.conversation_index.tolist()))
    return Packed(_tensors(activations, dtype), metadata, found, len(activations), data)


def write_packed(folder: Path, packed: Packed) -> Shard:
    """Write a shard into `folder` and return its line for the journal, which does not name it yet.

    The same activations give the same bytes under the same name. Raises InputError where the disk takes no more.
    """
    stem = f"shard-{packed.conversations[0][0]:09d}"
    try:
        with temporary_file(folder / f"{stem}.safetensors") as temporary:
            save_file(dict(packed.tensors), temporary, metadata=dict(packed.metadata))
            digest, size = _sha256(temporary), temporary.stat().st_size
            name = f"{stem}-{digest[:12]}.safetensors"
            publish(temporary, folder / name)
        _sync_folder(folder)
    except (OSError, SafetensorError) as error:
        raise disk_trouble(folder, error) from None
    return Shard(name, packed.rows, size, digest, packed.conversations, packed.data)


def read_shard(
    folder: Path,
    shard: Shard,
    kind: Mapping[str, Any],
    *,
    layers: Sequence[int] | None = None,
    piece: tuple[int, int] | None = None,
) -> Activations:
    """Read the samples [start, stop) of `piece` (default: all) and of the blocks `layers`, in the dtype they have.

    Only their bytes come from the disk. Raises InputError that names the file where it is missing, has another size
    than the journal says, or does not hold what it should.
    """
    with opened(folder, shard) as file:
        return _part(file, shard, *(piece or (0, shard.rows)), kind, layers)


@contextmanager
def opened(folder: Path, shard: Shard) -> Iterator[Any]:
    """A shard's file, open for reading. Raises InputError as `read_shard` does, also for what the block raises."""
    path = folder / shard.file
    if why := _size_trouble(folder, shard):
        raise InputError(f"{path}: {why}; {CURE}")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); {CURE}") from None


def rows_in(file: Any, name: str, shard: Shard, start: int, stop: int) -> Tensor:
    """The samples [start, stop) of one tensor of an open shard. Raises ValueError where it has not one a sample."""
    part = file.get_slice(name)
    if part.get_shape()[0] != shard.rows:
        raise ValueError(f"{part.get_shape()[0]} rows of {name} where the journal says {shard.rows}")
    return part[start:stop]


def damage_of(folder: Path, shard: Shard) -> Damage | None:
    """What is wrong with a shard, every byte of it read, or None."""
    why = _size_trouble(folder, shard)
    if not why and _sha256(folder / shard.file) != shard.sha256:
        why = "changed since it was written (another SHA-256)"
    return Damage(shard, why) if why else None


def disk_trouble(folder: Path, error: Exception) -> InputError:
    """The one line for a write that failed."""
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free"
    except OSError:
        free = "the disk cannot be asked for its free space"
    return InputError(
        f"{folder}: could not be written to ({error}; {free}); what it holds is whole: make room, and the same capture "
        "goes on from there"
    )


def _tensors(activations: Activations, dtype: torch.dtype) -> dict[str, Tensor]:
    values = activations.values.to("cpu", dtype)
    if values.dtype != activations.values.dtype and not torch.isfinite(values).all():
        raise InputError(f"a value of these activations does not fit into {dtype}: use bfloat16 or float32")
    singles = {name: getattr(activations, name) for name in TOKEN_PARTS if getattr(activations, name) is not None}
    blocks = {f"block.{layer}": block for layer, block in zip(activations.layers, values, strict=True)}
    tensors = blocks | singles | {"conversation": activations.conversation_index}
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _part(
    file: Any, shard: Shard, start: int, stop: int, kind: Mapping[str, Any], layers: Sequence[int] | None
) -> Activations:
    def rows(name: str) -> Tensor:
        return rows_in(file, name, shard, start, stop)

    chosen, held = tuple(kind["layers"] if layers is None else layers), set(file.keys())
    values = torch.stack([rows(f"block.{layer}") for layer in chosen])
    # Copied: a slice keeps the whole file mapped while it lives, and its pages count as memory.
    singles: dict[str, Any] = {name: rows(name).clone() for name in TOKEN_PARTS if name in held}
    labels = {name: kind[name] for name in ("site", "scope")}
    index = rows("conversation").clone()
    return Activations(values, chosen, kind["pool"], kind["template_hash"], index, **singles, **labels)


def _size_trouble(folder: Path, shard: Shard) -> str:
    try:
        size = (folder / shard.file).stat().st_size
    except FileNotFoundError:
        return "missing"
    if size == shard.bytes:
        return ""
    return f"{'truncated' if size < shard.bytes else 'changed'}: {size} bytes where the journal says {shard.bytes}"


def _sync_folder(folder: Path) -> None:
    """Put the new name on disk before the journal may speak of it; not every system lets a folder be opened."""
    with suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
