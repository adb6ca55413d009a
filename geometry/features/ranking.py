"""Which latents tell positive rows from negative ones: four statistics linear in the row labels, and their tests."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import InputError

STATISTICS = ("mean_diff", "freq_diff", "auroc", "corr")
CENTRE = {"auroc": 0.5}  # what a statistic is without an effect, where that is not 0
BLOCK = 8192


class Contrast(NamedTuple):
    """A statistic of every latent `[d_sae]`: effect (0: none), p, q of its test, maxima of the shuffles `[shuffle]`."""

    effect: Tensor
    p: Tensor
    q: Tensor
    largest: Tensor


class Ranked(NamedTuple):
    """The chosen latents: effects, family-wise p (1 where no shuffle was made), q of the false discovery rate."""

    latents: tuple[int, ...]
    effect: tuple[float, ...]
    p: tuple[float, ...]
    q: tuple[float, ...]


def rank_latents(
    positive: Float[Tensor, "positive d_sae"],
    negative: Float[Tensor, "negative d_sae"],
    *,
    k: int,
    statistic: str,
    n: int,
    generator: torch.Generator | None,
) -> Ranked:
    """The k latents of largest statistic; ties go to the lower latent id."""
    found = contrast(positive, negative, statistic=statistic, n=n, generator=generator)
    return _choose(found, k=k, centre=CENTRE.get(statistic, 0.0))


def contrast(
    positive: Float[Tensor, "positive d_sae"],
    negative: Float[Tensor, "negative d_sae"],
    *,
    statistic: str,
    n: int = 0,
    generator: torch.Generator | None = None,
) -> Contrast:
    """A statistic of every latent, less what it is without an effect (1/2 for AUROC), with one-sided tests.

    Every statistic is (mean over positive rows - mean over negative rows) of a transform of the latents that does not
    look at the labels, so all n label shuffles of a block of latents are one matrix product; memory is
    (n + rows) * 8,192 numbers at any d_sae. The tests: Welch's t (`mean_diff`), Fisher's exact (`freq_diff`),
    Mann and Whitney's, corrected for ties and continuity (`auroc`), Student's t (`corr`); none is put below
    1 / (number of ways to label the rows). q adjusts them by Benjamini and Hochberg over the latents that vary at all.
    """
    values = torch.cat([positive, negative])
    weights = _label_weights(len(positive), len(negative), n, generator).to(values)
    largest = torch.full((n,), -math.inf, dtype=values.dtype, device=values.device)
    parts = []
    for block in values.split(BLOCK, dim=1):
        changed = _transform(block, len(positive), statistic)
        differences = weights @ changed
        varies = (block != block[0]).any(dim=0).cpu().numpy()
        parts.append((differences[0], one_sided(changed, len(positive), statistic), varies))
        if n:
            largest = torch.maximum(largest, differences[1:].amax(dim=1))
    effect, p, varies = torch.cat([x[0] for x in parts]), *(np.concatenate([x[i] for x in parts]) for i in (1, 2))
    return Contrast(effect, torch.from_numpy(p), torch.from_numpy(_adjusted(p, varies)), largest)


def _adjusted(p: np.ndarray, varies: np.ndarray) -> np.ndarray:
    from scipy.stats import false_discovery_control

    q = np.ones_like(p)
    if varies.any():
        q[varies] = false_discovery_control(p[varies])
    return q


def one_sided(changed: Float[Tensor, "rows block"], n_positive: int, statistic: str) -> np.ndarray:
    """p of each latent, small where the positive rows are larger, from the transformed rows; 1 where nothing varies."""
    from scipy import stats

    rows = changed.cpu().numpy()
    mine, other = rows[:n_positive], rows[n_positive:]
    n, m = len(mine), len(other)
    gap = mine.mean(axis=0) - other.mean(axis=0)
    if statistic == "freq_diff":
        p = stats.hypergeom.sf(mine.sum(axis=0) - 1, n + m, rows.sum(axis=0), n)
        return np.where(np.ptp(rows, axis=0) > 0, p, 1.0)
    if statistic == "auroc":  # the variance of the mean ranks' gap is that of the ranks, ties included
        spread = rows.var(axis=0, ddof=1) * (1 / n + 1 / m)
        freedom, gap = np.inf, gap - 0.5 / (n * m)
    elif statistic == "corr":
        inside = ((n - 1) * mine.var(axis=0, ddof=1) + (m - 1) * other.var(axis=0, ddof=1)) / (n + m - 2)
        spread, freedom = inside * (1 / n + 1 / m), n + m - 2
    else:
        one, two = mine.var(axis=0, ddof=1) / n, other.var(axis=0, ddof=1) / m
        spread = one + two
        freedom = spread**2 / np.maximum(one**2 / (n - 1) + two**2 / (m - 1), np.finfo(float).tiny)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(spread > 0, gap / np.sqrt(spread), np.where(gap > 0, np.inf, -np.inf))
    p = stats.norm.sf(t) if statistic == "auroc" else stats.t.sf(t, np.maximum(freedom, 1))
    return np.where(np.ptp(rows, axis=0) > 0, np.maximum(p, 1 / math.comb(n + m, n)), 1.0)


def _choose(found: Contrast, *, k: int, centre: float) -> Ranked:
    effect = found.effect
    tiny = 1e-12 * max(1.0, float(effect.abs().max()))
    leaning = int((effect > tiny).sum())
    if leaning < k:
        raise InputError(f"k={k} latents asked, but only {leaning} respond more to the positive rows; lower k")
    order = torch.argsort(effect, descending=True, stable=True)[:k]
    top = effect[order]
    reached = (found.largest[None, :] >= top[:, None] - tiny).sum(dim=1)
    p = (1 + reached.double()) / (1 + len(found.largest))
    q = found.q[order.cpu()]
    return Ranked(tuple(order.tolist()), tuple((top + centre).tolist()), tuple(p.tolist()), tuple(q.tolist()))


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
