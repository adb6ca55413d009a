"""Which latents tell positive rows from negative ones: four statistics that are all linear in the row labels."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import InputError

STATISTICS = ("mean_diff", "freq_diff", "auroc", "corr")
BLOCK = 8192


class Ranked(NamedTuple):
    """The chosen latents, their effects and their p-values (1 where no shuffle was made)."""

    latents: tuple[int, ...]
    effect: tuple[float, ...]
    p: tuple[float, ...]


def rank_latents(
    positive: Float[Tensor, "positive d_sae"],
    negative: Float[Tensor, "negative d_sae"],
    *,
    k: int,
    statistic: str,
    n: int,
    generator: torch.Generator | None,
) -> Ranked:
    """The k latents of largest statistic; ties go to the lower latent id.

    Every statistic is (mean over positive rows - mean over negative rows) of a transform of the latents that does not
    look at the labels, so all n label shuffles of a block of latents are one matrix product; memory is
    (n + rows) * 8,192 numbers at any d_sae.
    """
    values = torch.cat([positive, negative])
    weights = _label_weights(len(positive), len(negative), n, generator).to(values)
    effect, largest = [], torch.full((n,), -math.inf, dtype=values.dtype, device=values.device)
    for block in values.split(BLOCK, dim=1):
        differences = weights @ _transform(block, len(positive), statistic)
        effect.append(differences[0])
        if n:
            largest = torch.maximum(largest, differences[1:].amax(dim=1))
    return _choose(torch.cat(effect), largest, k=k, centre=0.5 if statistic == "auroc" else 0.0)


def _choose(effect: Tensor, largest: Tensor, *, k: int, centre: float) -> Ranked:
    tiny = 1e-12 * max(1.0, float(effect.abs().max()))
    leaning = int((effect > tiny).sum())
    if leaning < k:
        raise InputError(f"k={k} latents asked, but only {leaning} respond more to the positive rows; lower k")
    order = torch.argsort(effect, descending=True, stable=True)[:k]
    top = effect[order]
    reached = (largest[None, :] >= top[:, None] - tiny).sum(dim=1)
    p = (1 + reached.double()) / (1 + len(largest))
    return Ranked(tuple(order.tolist()), tuple((top + centre).tolist()), tuple(p.tolist()))


def _label_weights(n_positive: int, n_negative: int, n: int, generator: torch.Generator | None) -> Tensor:
    """`[1 + n, rows]`: the true labels first, then n shuffles; each line takes a difference of means."""
    sides = ((n_positive, 1 / n_positive), (n_negative, -1 / n_negative))
    line = torch.cat([torch.full((rows,), value, dtype=torch.float64) for rows, value in sides])
    if not n or generator is None:
        return line[None]
    order = torch.rand(n, len(line), generator=generator, device=generator.device).argsort(dim=1).cpu()
    return torch.cat([line[None], line[order]])


def _transform(values: Float[Tensor, "rows block"], n_positive: int, statistic: str) -> Float[Tensor, "rows block"]:
    rows = len(values)
    if statistic == "mean_diff":
        return values
    if statistic == "freq_diff":
        return (values > 0).to(values.dtype)
    if statistic == "auroc":  # AUROC - 1/2 = (mean positive rank - mean negative rank) / rows, ties at mid-rank
        return _midranks(values) / rows
    # point-biserial r = difference of means / population sd * sqrt(n+ n-) / rows
    sd = values.std(dim=0, correction=0)
    scale = math.sqrt(n_positive * (rows - n_positive)) / rows
    return torch.where(sd > 0, values / sd.where(sd > 0, torch.ones_like(sd)), torch.zeros_like(values)) * scale


def _midranks(values: Tensor) -> Tensor:
    from scipy.stats import rankdata

    ranks = np.asarray(rankdata(values.cpu().numpy(), axis=0))
    return torch.from_numpy(ranks).to(values)
