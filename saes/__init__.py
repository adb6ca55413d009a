"""Sparse autoencoders over a model's residual stream: load, train, judge their quality, compare models by latents."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "SparseAutoencoder": "saes.sae",
    "check_fits": "saes.sae",
    "load_sae": "saes.load",
    "layer_of_hook": "saes.load",
    "train_sae": "saes.train",
    "Quality": "saes.fidelity",
    "quality": "saes.fidelity",
    "LatentStats": "saes.latents",
    "encode": "saes.latents",
    "encode_store": "saes.latents",
    "latent_stats": "saes.latents",
    "LatentTable": "saes.diff",
    "diff_latents": "saes.diff",
    "Context": "saes.inspect",
    "LatentCard": "saes.inspect",
    "latent_cards": "saes.inspect",
    "logit_lens": "saes.inspect",
    "top_contexts": "saes.inspect",
    "latent_diff_figure": "saes.figures",
}

if TYPE_CHECKING:
    from saes.diff import LatentTable, diff_latents
    from saes.fidelity import Quality, quality
    from saes.figures import latent_diff_figure
    from saes.inspect import Context, LatentCard, latent_cards, logit_lens, top_contexts
    from saes.latents import LatentStats, encode, encode_store, latent_stats
    from saes.load import layer_of_hook, load_sae
    from saes.sae import SparseAutoencoder, check_fits
    from saes.train import train_sae

__all__ = [
    "Context",
    "LatentCard",
    "LatentStats",
    "LatentTable",
    "Quality",
    "SparseAutoencoder",
    "check_fits",
    "diff_latents",
    "encode",
    "encode_store",
    "latent_cards",
    "latent_diff_figure",
    "latent_stats",
    "layer_of_hook",
    "load_sae",
    "logit_lens",
    "quality",
    "top_contexts",
    "train_sae",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'saes' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
