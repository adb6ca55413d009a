"""AUROC of many latents at once, from the few entries that are not zero: ties count half, intervals by DeLong."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

#: Bins of a histogram of scores: one for zero, then four to each power of two from 2**-16 to 2**16.
BINS, _LOWEST = 129, -16


class Sides(NamedTuple):
    """How many conversations each side has; the AUROC is above one half where the upper one's scores are larger."""

    upper: int
    lower: int


class Ties(NamedTuple):
    """Scores that are equal, latent by latent, rising within each: how many of either side have each. No zeros."""

    latent: Int[np.ndarray, " tie"]
    upper: Float[np.ndarray, " tie"]
    lower: Float[np.ndarray, " tie"]


@dataclass(frozen=True, eq=False)
class Areas:
    """AUROC of each latent with the standard error of DeLong, and by how much ties that were made may have moved it."""

    auroc: Float[np.ndarray, " d_sae"]
    standard_error: Float[np.ndarray, " d_sae"]
    error: Float[np.ndarray, " d_sae"]

    def limits(self, sides: Sides) -> tuple[Float[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]:
        """95 % interval; where one side always wins, the exact binomial limit of the smaller side."""
        slack = np.full_like(self.auroc, 1 - 0.025 ** (1 / min(sides)))
        slack = np.where((self.auroc == 0) | (self.auroc == 1), slack, 1.959964 * self.standard_error) + self.error
        return np.clip(self.auroc - slack, 0, 1), np.clip(self.auroc + slack, 0, 1)


class Entries:
    """Scores that are not zero, sorted once by latent and size, so that sides can be dealt out again and again."""

    def __init__(
        self,
        latent: Int[np.ndarray, " entry"],
        score: Float[np.ndarray, " entry"],
        conversation: Int[np.ndarray, " entry"],
    ) -> None:
        order = np.lexsort((score, latent))
        latent, score = latent[order], score[order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (np.diff(latent) != 0) | (np.diff(score) != 0)
        self._starts, self._conversation = np.flatnonzero(new), conversation[order]
        self._latent = latent[self._starts]

    def ties(self, upper: Bool[np.ndarray, " conversation"], lower: Bool[np.ndarray, " conversation"]) -> Ties:
        """The entries of the two sides, which masks over conversations name."""
        if not len(self._starts):
            return Ties(self._latent, np.zeros(0), np.zeros(0))
        sides = (side[self._conversation].astype(float) for side in (upper, lower))
        return Ties(self._latent, *(np.add.reduceat(side, self._starts) for side in sides))


def bin_of(score: Float[np.ndarray, " entry"]) -> Int[np.ndarray, " entry"]:
    """The bin of each positive score, 1 to `BINS` - 1; 0 is that of zero."""
    with np.errstate(divide="ignore"):
        return np.clip(np.floor(4 * (np.log2(score) - _LOWEST)), 0, BINS - 2).astype(np.int64) + 1


def ties_of(
    upper: Int[np.ndarray, "d_sae bin"], lower: Int[np.ndarray, "d_sae bin"]
) -> tuple[Ties, Float[np.ndarray, " d_sae"]]:
    """Ties from histograms, and for each latent the number of pairs whose order the bins do not know."""
    latent, at = np.nonzero((upper + lower)[:, 1:])
    found = Ties(latent, upper[latent, at + 1].astype(float), lower[latent, at + 1].astype(float))
    unknown = (upper[:, 1:].astype(float) * lower[:, 1:]).sum(axis=1)
    return found, unknown


def areas(ties: Ties, sides: Sides, d_sae: int, *, unknown: Float[np.ndarray, " d_sae"] | None = None) -> Areas:
    """AUROC and its standard error (DeLong et al., 1988) of each latent; scores that are not named are zero."""
    total = [np.bincount(ties.latent, weights=side, minlength=d_sae) for side in (ties.upper, ties.lower)]
    zero = [size - found for size, found in zip(sides, total, strict=True)]
    below_u, below_l = (
        _before(ties.latent, side) + rest[ties.latent]
        for side, rest in zip((ties.upper, ties.lower), zero, strict=True)
    )
    won = (below_l + ties.lower / 2) / sides.lower  # by an upper score: the share of lower ones that it beats
    kept = (sides.upper - below_u - ties.upper / 2) / sides.upper  # by a lower score: the share that beats it
    won_zero, kept_zero = zero[1] / 2 / sides.lower, (sides.upper - zero[0] / 2) / sides.upper
    auroc = (_sum(ties.latent, ties.upper * won, d_sae) + zero[0] * won_zero) / sides.upper
    variance = np.zeros(d_sae)
    for count, share, rest, share_zero, n in (
        (ties.upper, won, zero[0], won_zero, sides.upper),
        (ties.lower, kept, zero[1], kept_zero, sides.lower),
    ):
        squares = _sum(ties.latent, count * (share - auroc[ties.latent]) ** 2, d_sae) + rest * (share_zero - auroc) ** 2
        variance += squares / max(n - 1, 1) / n
    error = np.zeros(d_sae) if unknown is None else unknown / 2 / (sides.upper * sides.lower)
    return Areas(auroc, np.sqrt(variance), error)


def _before(latent: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The sum of the counts before each tie within its latent."""
    running = np.concatenate([[0.0], np.cumsum(count)])[:-1]
    first = np.ones(len(latent), dtype=bool)
    first[1:] = np.diff(latent) != 0
    starts = np.flatnonzero(first)
    return running - running[starts].repeat(np.diff(np.append(starts, len(latent)))) if len(latent) else running


def _sum(latent: np.ndarray, values: np.ndarray, d_sae: int) -> np.ndarray:
    return np.bincount(latent, weights=values, minlength=d_sae)
