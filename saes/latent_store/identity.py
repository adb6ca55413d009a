"""Which SAE and which activations latents come from, as digests."""

import hashlib
import json
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from probes.store import ActivationStore
from probes.store.journal import Shard
from saes.sae import SparseAutoencoder

#: What an SAE is called, which changes none of its latents.
_LABELS = ("name", "model_name", "hook", "normalisation")


def sae_digest(sae: SparseAutoencoder) -> str:
    """Hash of an SAE's weights in their dtype and of what decides how they are used; names do not count."""
    found = hashlib.sha256()
    for field in fields(sae):
        value: Any = getattr(sae, field.name)
        if field.name in _LABELS:
            continue
        found.update(f"{field.name}:{type(value).__name__}:".encode())
        if isinstance(value, Tensor):
            found.update(f"{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        else:
            found.update(repr(value).encode())
    return found.hexdigest()[:16]


def source_digest(source: ActivationStore) -> str:
    """Hash of what a store of activations says of itself: model, template, data, blocks, dtype; not its shards."""
    told = {name: source.manifest[name] for name in ("kind", "meta", "dtype")}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def source_mark(shard: Shard) -> str:
    """What a shard of latents keeps of the shard of activations that it was made from."""
    return shard.sha256[:16]
