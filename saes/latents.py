"""Latents of activations: encoding in memory or shard by shard, and each latent's mean and firing rate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probes.activations import Activations
from probes.store import ActivationStore
from saes.rows import Keep, Source, Where, block_rows, stream_rows
from saes.sae import SparseAutoencoder


@dataclass(frozen=True, eq=False)
class LatentStats:
    """Each latent over `n` rows: its `mean` (zeros count; residual-stream units) and `freq`, its active share."""

    mean: Float[Tensor, " d_sae"]
    freq: Float[Tensor, " d_sae"]
    n: int

    @property
    def mean_active(self) -> Float[Tensor, " d_sae"]:
        """Mean over the rows where the latent is active; 0 where it never is."""
        return torch.where(self.freq > 0, self.mean / self.freq.clamp(min=1e-300), 0.0)


def encode(
    sae: SparseAutoencoder,
    activations: Tensor | Activations,
    *,
    latents: Sequence[int] | None = None,
    where: Where = "all",
) -> Float[Tensor, "sample feature"]:
    """Latents of every row, dense, on the SAE's device: all `d_sae` of them, or the columns `latents` in that order.

    All latents of n rows take 4 n d_sae bytes; name the latents, or use `latent_stats`, where that is too much.
    """
    return torch.cat(list(_encoded(sae, activations, latents, where)))


def encode_store(
    sae: SparseAutoencoder, store: ActivationStore, *, latents: Sequence[int] | None = None, where: Where = "all"
) -> Iterator[Float[Tensor, "sample feature"]]:
    """Yield the latents of a store's rows in their order, a block of rows at a time, as `encode` would."""
    return _encoded(sae, store, latents, where)


@torch.no_grad()
def latent_stats(
    sae: SparseAutoencoder,
    activations: Source,
    *,
    where: Where = "all",
    skip_first: int = 0,
    keep: Keep | None = None,
) -> LatentStats:
    """Mean and firing rate of every latent over rows of the SAE's block, every row counting once, summed in float64.

    Which rows count is said as to `stream_rows`; rows read at another site than the SAE's are refused.
    """
    n = 0
    total = torch.zeros(sae.d_sae, dtype=torch.float64, device=sae.device)
    fired = torch.zeros(sae.d_sae, dtype=torch.long, device=sae.device)
    for latents in _encoded(sae, activations, None, where, skip_first, keep):
        n += len(latents)
        total += latents.sum(0, dtype=torch.float64)
        fired += (latents > 0).sum(0)
    return LatentStats((total / n).cpu(), (fired.double() / n).cpu(), n)


def _encoded(
    sae: SparseAutoencoder,
    source: Source,
    latents: Sequence[int] | None,
    where: Where,
    skip_first: int = 0,
    keep: Keep | None = None,
) -> Iterator[Float[Tensor, "sample feature"]]:
    if latents is not None:
        sae.check_latents(latents)
    chosen = {"where": where, "skip_first": skip_first, "keep": keep, "site": sae.site}
    for rows in stream_rows(source, sae.layer, size=block_rows(sae.d_sae), **chosen):
        with torch.no_grad():
            yield sae.encode(rows) if latents is None else sae.encode_some(rows, latents)
