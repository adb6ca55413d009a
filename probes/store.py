"""Activations on disk: a folder of safetensors shards and one manifest, append-only, checksummed, resumable."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from probes.activations import Activations
from probes.errors import InputError
from probes.io import atomic_file, read_json, write_json

FORMAT = "persona-geometry/activations/1"
MANIFEST = "manifest.json"
_PARTS = ("token_ids", "positions", "in_response")


@dataclass(frozen=True)
class ActivationStore:
    """A folder of activation shards; the manifest lists them with row counts, conversations and SHA-256.

    A shard is a safetensors file: `block.{i}` [sample, d_model] for each block i (its output), `conversation` [sample]
    and, for single tokens, `token_ids`, `positions`, `in_response`. A shard counts once the manifest names it; both are
    written atomically, so a killed run leaves a store that opens and can be continued.
    """

    path: Path

    @classmethod
    def create(cls, path: str | Path, meta: Mapping[str, Any] | None = None) -> "ActivationStore":
        """Make an empty store; `meta` (model, data, ...) goes into the manifest. Raises InputError if one is there."""
        path = Path(path)
        if (path / MANIFEST).exists():
            raise InputError(f"{path}: an activation store is there already; open it or choose another folder")
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / MANIFEST, {"format": FORMAT, "meta": dict(meta or {}), "shards": []})
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> "ActivationStore":
        """Open a store. Raises InputError where the folder holds none."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise InputError(f"{path}: no activation store ({MANIFEST} is missing); create one first")
        if read_json(path / MANIFEST).get("format") != FORMAT:
            raise InputError(f"{path / MANIFEST}: not of the format {FORMAT}; create the store anew")
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
    def rows(self) -> int:
        """Number of samples in all shards."""
        return sum(shard["rows"] for shard in self.manifest["shards"])

    def __len__(self) -> int:
        return self.rows

    def conversations(self) -> set[int]:
        """Indices of the conversations that the store holds."""
        return {index for shard in self.manifest["shards"] for index in shard["conversations"]}

    def append(self, activations: Activations) -> None:
        """Add activations as one shard. Raises InputError where blocks, pool or template differ from those stored."""
        manifest = self.manifest
        kind = {
            "layers": list(activations.layers),
            "pool": activations.pool,
            "template_hash": activations.template_hash,
        }
        for key, value in kind.items():
            if manifest.setdefault("kind", kind)[key] != value:
                raise InputError(f"{self.path}: holds {key} {manifest['kind'][key]}, not {value}; use another store")
        file = self.path / f"shard-{len(manifest['shards']):05d}.safetensors"
        with atomic_file(file) as temporary:
            save_file(_tensors(activations), temporary, metadata={"format": FORMAT, "hook": "resid_post"})
            digest = _sha256(temporary)
        shard = {
            "file": file.name,
            "rows": len(activations),
            "sha256": digest,
            "conversations": sorted(set(activations.conversation_index.tolist())),
        }
        manifest["shards"].append(shard)
        write_json(self.path / MANIFEST, manifest)

    def iter_shards(self) -> Iterator[Activations]:
        """Read shard by shard, in the order they were written. Raises InputError for a missing or truncated shard."""
        manifest = self.manifest
        for shard in manifest["shards"]:
            yield self._read(shard, manifest["kind"])

    def load(self) -> Activations:
        """Read everything into memory, ordered by conversation."""
        return joined(list(self.iter_shards()))

    def verify(self) -> None:
        """Raise InputError unless every shard is there with the checksum that the manifest names."""
        for shard in self.manifest["shards"]:
            file = self.path / shard["file"]
            if not file.is_file() or _sha256(file) != shard["sha256"]:
                raise InputError(f"{file}: missing or changed since it was written; remove the store and capture again")

    def _read(self, shard: Mapping[str, Any], kind: Mapping[str, Any]) -> Activations:
        file = self.path / shard["file"]
        try:
            tensors = load_file(file)
            values = torch.stack([tensors[f"block.{layer}"] for layer in kind["layers"]])
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(f"{file}: truncated or damaged ({error}); remove the store and capture again") from None
        if values.shape[1] != shard["rows"]:
            raise InputError(f"{file}: {values.shape[1]} rows where the manifest says {shard['rows']}; capture again")
        parts = {name: tensors.get(name) for name in _PARTS}
        index = tensors["conversation"]
        return Activations(values, tuple(kind["layers"]), kind["pool"], kind["template_hash"], index, **parts)


def joined(parts: list[Activations]) -> Activations:
    """Put batches of activations together, ordered by conversation, tokens in their order within it."""
    if not parts:
        raise InputError("no activations to join: the store or the list is empty")
    index = torch.cat([part.conversation_index for part in parts])
    order = torch.argsort(index, stable=True)
    first = parts[0]
    singles = {
        name: torch.cat([getattr(part, name) for part in parts])[order]
        for name in _PARTS
        if getattr(first, name) is not None
    }
    values = torch.cat([part.values for part in parts], dim=1)[:, order]
    return Activations(values, first.layers, first.pool, first.template_hash, index[order], **singles)


def _tensors(activations: Activations) -> dict[str, Tensor]:
    singles = {name: getattr(activations, name) for name in _PARTS if getattr(activations, name) is not None}
    blocks = {f"block.{layer}": activations.at(layer) for layer in activations.layers}
    tensors = blocks | singles | {"conversation": activations.conversation_index}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
