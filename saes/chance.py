"""What a dictionary of random directions reaches at the sparsity of an SAE: the baseline of its variance explained."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import InputError
from probes.outcomes import Rate
from saes.fidelity import Quality, mean_row, quality
from saes.rows import Keep, Source, Where
from saes.sae import SparseAutoencoder


def random_dictionary(
    like: SparseAutoencoder, *, k: int, mean: Float[Tensor, " d_model"], generator: torch.Generator
) -> SparseAutoencoder:
    """As many random unit directions as `like` has latents, of which the `k` that a row lies along most are active.

    Rows are read about `mean`. Same generator state, same directions; it is a generator of the CPU.
    """
    rows = torch.randn(like.d_sae, like.d_model, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(rows, dim=1).to(like.device, like.dtype)
    weights = {"W_enc": directions.T.contiguous(), "W_dec": directions, "b_enc": torch.zeros_like(like.b_enc)}
    place: dict[str, Any] = {"layer": like.layer, "site": like.site, "hook": like.hook}
    name = f"random directions like {like.name}"
    b_dec = mean.to(like.device, like.dtype)
    return SparseAutoencoder(**weights, b_dec=b_dec, kind="topk", k=k, name=name, model_name=like.model_name, **place)


def random_unexplained(
    sae: SparseAutoencoder,
    activations: Source,
    found: Quality,
    *,
    where: Where = "all",
    skip_first: int = 0,
    keep: Keep | None = None,
    draws: int = 3,
    seed: int = 0,
) -> Rate:
    """Variance that random dictionaries of the same width and sparsity leave unexplained, on the same rows.

    Each is rescaled as well as can be (`fvu_rescaled`), because random directions overlap. The value is the mean of the
    `draws`, the limits are their 5 and 95 %. `found` is the SAE's quality on these rows. InputError for no draws.
    """
    if draws < 1:
        raise InputError(f"draws {draws}: give 1 or more")
    chosen: dict[str, Any] = {"where": where, "skip_first": skip_first, "keep": keep}
    mean = mean_row(activations, sae.layer, site=sae.site, **chosen)
    generator, k = torch.Generator().manual_seed(seed), min(max(1, round(found.l0)), sae.d_sae)
    drawn = [random_dictionary(sae, k=k, mean=mean, generator=generator) for _ in range(draws)]
    shares = [quality(one, activations, **chosen).rates["fvu_rescaled"].value for one in drawn]
    low, high = np.quantile(shares, (0.05, 0.95))
    return Rate(float(np.mean(shares)), float(low), float(high), found.n)
