"""Random draws of feature sets: shuffled labels, random latents, latents of like firing rate, bootstrap resamples."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.errors import InputError

N_BOOTSTRAP = 2000


@dataclass(frozen=True)
class FrequencyMatched:
    """Null that redraws every latent from those that fire about as often.

    `frequency` is each latent's firing rate, in any unit; latents of frequency 0 (dead) are never drawn. Live latents
    are cut into `bins` groups of equal size by frequency.
    """

    frequency: Float[Tensor, " d_sae"]
    bins: int = 10


Null = Literal["label_permutation", "random_features"] | FrequencyMatched


@dataclass(frozen=True)
class Strata:
    """Latents only in the inducing set, in both, only in the benign set: the unit that is shuffled and resampled."""

    inducing: Tensor
    shared: Tensor
    benign: Tensor

    @property
    def latents(self) -> Int[Tensor, " latent"]:
        return torch.cat([self.inducing, self.shared, self.benign])

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.inducing), len(self.shared), len(self.benign)

    @property
    def weights(self) -> Float[Tensor, "side latent"]:
        """`weights @ scores` = (mean over the inducing set, mean over the benign set)."""
        alone, both, other = self.sizes
        lines = torch.zeros(2, alone + both + other, dtype=torch.float64)
        lines[0, : alone + both] = 1 / (alone + both)
        lines[1, alone:] = 1 / (both + other)
        return lines


def null_draws(
    null: Null, strata: Strata, eligible: Tensor, n: int, generator: torch.Generator
) -> Int[Tensor, "draw latent"]:
    """n draws of latents in the order of `strata.latents`."""
    if isinstance(null, FrequencyMatched):
        return _matched(_frequency_bins(null, eligible), strata.latents, n, generator)
    if null == "random_features":
        return _matched(torch.where(eligible, 0, -1), strata.latents, n, generator)
    if null != "label_permutation":
        raise InputError(f"null {null!r}: use label_permutation, random_features or FrequencyMatched(frequency)")
    alone, both, other = strata.sizes
    order = torch.rand(n, alone + other, generator=generator, device=generator.device).argsort(dim=1).cpu()
    shuffled = torch.cat([strata.inducing, strata.benign])[order]
    return torch.cat([shuffled[:, :alone], strata.shared.expand(n, both), shuffled[:, alone:]], dim=1)


def _frequency_bins(null: FrequencyMatched, eligible: Tensor) -> Int[Tensor, " d_sae"]:
    """Bin of each latent that may be drawn, by quantiles of the frequency of live latents; -1 for the others."""
    frequency = null.frequency.detach().double().cpu()
    if len(frequency) != len(eligible):
        raise InputError(f"frequency has {len(frequency)} entries for {len(eligible)} latents; give one each")
    if not torch.isfinite(frequency).all() or (frequency < 0).any():
        raise InputError("frequency holds NaN, infinity or a negative rate; give firing rates")
    alive = frequency > 0
    if null.bins < 1 or not alive.any():
        raise InputError(f"no latent to draw: {int(alive.sum())} live latents in {null.bins} bins; check frequency")
    order = torch.linspace(0, 1, null.bins + 1, dtype=torch.float64)[1:-1]
    edges = torch.from_numpy(np.quantile(frequency[alive].numpy(), order.numpy()))
    # a dead latent cannot be drawn, but one in a set still has a bin: the lowest
    return torch.where(eligible & alive, torch.bucketize(frequency, edges), -1 - torch.bucketize(frequency, edges))


def _matched(bins: Tensor, latents: Tensor, n: int, generator: torch.Generator) -> Int[Tensor, "draw latent"]:
    """Per draw, distinct latents, each from the bin of the latent it stands for. Bin -1 - b: of bin b, never drawn."""
    wanted = torch.where(bins < 0, -1 - bins, bins)[latents]
    draws = torch.empty(n, len(latents), dtype=torch.long)
    for number in wanted.unique().tolist():
        pool, columns = (bins == number).nonzero().squeeze(1), (wanted == number).nonzero().squeeze(1)
        if len(pool) < len(columns):
            drawn = f"only {len(pool)} latents to draw {len(columns)} from in frequency bin {number}"
            raise InputError(f"{drawn}; use fewer bins or the frequencies of more data")
        draws[:, columns] = _choose(pool, len(columns), n, generator)
    return draws


def _choose(pool: Tensor, size: int, n: int, generator: torch.Generator) -> Int[Tensor, "draw size"]:
    """n draws of `size` distinct members, every ordered choice equally likely.

    From a small pool by sorting random keys; from a large one by redrawing repeats, which treats all members alike and
    needs no n x pool array.
    """
    device = generator.device
    if len(pool) < 4 * size:
        keys = torch.rand(n, len(pool), generator=generator, device=device)
        return pool[keys.argsort(dim=1)[:, :size].cpu()]
    chosen = torch.randint(0, len(pool), (n, size), generator=generator, device=device)
    rows = _repeating(chosen)
    while len(rows):
        part = chosen[rows]
        again = _repeats(part)
        part[again] = torch.randint(0, len(pool), (int(again.sum()),), generator=generator, device=device)
        chosen[rows] = part
        rows = rows[_repeating(part)]
    return pool[chosen.cpu()]


def _repeating(chosen: Tensor) -> Tensor:
    """Numbers of the rows in which an entry is there twice; numpy sorts short rows several times faster than torch."""
    ordered = np.sort(chosen.cpu().numpy(), axis=1)
    return torch.from_numpy((ordered[:, 1:] == ordered[:, :-1]).any(axis=1).nonzero()[0]).to(chosen.device)


def _repeats(chosen: Tensor) -> Tensor:
    """Which entries of each row equal an earlier one of the row."""
    ordered = chosen.sort(dim=1, stable=True)
    same = torch.zeros_like(chosen, dtype=torch.bool)
    same[:, 1:] = ordered.values[:, 1:] == ordered.values[:, :-1]
    return torch.zeros_like(same).scatter(1, ordered.indices, same)


def resamples(strata: Strata, generator: torch.Generator) -> Int[Tensor, "draw latent"]:
    """Bootstrap draws with replacement inside each stratum."""
    parts = []
    for part in (strata.inducing, strata.shared, strata.benign):
        shape = (N_BOOTSTRAP, len(part))
        index = torch.randint(0, max(1, len(part)), shape, generator=generator, device=generator.device).cpu()
        parts.append(part[index] if len(part) else torch.empty(shape, dtype=torch.long))
    return torch.cat(parts, dim=1)
