"""Dropping: the rule that turns scores into kept and dropped rows, and its random twin of equal lengths."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from geometry.features.filtering.scoring import RowScores
from probes.errors import InputError

BINS, PER_BIN = 10, 20  # length bins: at most ten, of twenty rows or more
VALLEY, SMALLEST = 0.75, 0.02  # the knee: how deep its valley, how large its smaller group


@dataclass(frozen=True, eq=False)
class RowSplit:
    """Row numbers that a filter keeps and drops: `kept` ascending, `dropped` worst first.

    `rule` says in words how they were chosen; `threshold` is the lowest score dropped (NaN where it was not a matter of
    the score alone).
    """

    kept: Int[Tensor, " kept"]
    dropped: Int[Tensor, " dropped"]
    rule: str = ""
    threshold: float = math.nan

    def reasons(self, scores: RowScores) -> list[str]:
        """Why each row was kept or dropped, in the rows' order."""
        rank = {int(row): place for place, row in enumerate(scores.worst_first.tolist(), 1)}
        gone, n = set(self.dropped.tolist()), len(rank)
        return [_reason(scores, row, rank.get(row), n, row in gone, self.rule) for row in range(len(scores))]


def _reason(scores: RowScores, row: int, rank: int | None, n: int, gone: bool, rule: str) -> str:
    if rank is None:
        return f"kept: no {scores.name} score"
    verb = "dropped" if gone else "kept"
    return f"{verb}: {scores.name} {float(scores.values[row]):.4g} {scores.unit}, rank {rank} of {n}; {rule}"


def drop_rows(
    scores: RowScores,
    *,
    fraction: float | int | None = None,
    above: float | int | None = None,
    at_knee: bool = False,
    match_length: bool = False,
) -> RowSplit:
    """Drop the rows with the highest scores, by exactly one of three rules.

    `fraction`: this share of the rows, rounded down; half is what arXiv 2605.00842 drops. `above`: scores of at least
    this. `at_knee`: scores from the knee up (`knee`). With `match_length` a row competes with rows of like length only:
    its score is replaced by its share of rank among the rows of its bin of answer lengths (ten bins of equal numbers of
    rows, fewer where a bin would hold under 20), so that what goes is as long as what stays; it needs a fraction. Of
    equal scores the earlier row goes; a row without a score stays. Raises InputError for another number of rules, a
    fraction outside [0, 1), and where the fraction would need rows that have no score.
    """
    given = [name for name, value in (("fraction", fraction), ("above", above)) if value is not None]
    given += ["at_knee"] if at_knee else []
    if len(given) != 1:
        raise InputError(f"drop_rows: {' and '.join(given) or 'no rule'} given; give one of fraction, above, at_knee")
    if match_length and fraction is None:
        raise InputError(f"match_length with {given[0]}: ranks within lengths have no such cut; give a fraction")
    order = scores.worst_first
    if fraction is None:
        low = float(above) if above is not None else knee(scores)
        n = int((scores.values[order] >= low).sum())
        return _split(scores, order, n, f"scores from {low:.4g} up" + (", the knee" if at_knee else ""))
    if not 0 <= fraction < 1:
        raise InputError(f"fraction={fraction} of the rows cannot be dropped; use 0 <= fraction < 1")
    n = math.floor(fraction * len(scores))
    if n > len(order):
        raise InputError(
            f"fraction={fraction} asks for {n} rows, but only {len(order)} of {len(scores)} have a score; drop fewer"
        )
    if not match_length:
        return _split(scores, order, n, f"highest {fraction:.0%}")
    bins = length_bins(scores.tokens[order])
    shares = _rank_share(bins)
    matched = order[torch.argsort(shares, stable=True)]
    split = _split(scores, matched, n, f"highest {fraction:.0%} of each of {int(bins.max()) + 1} bins of answer length")
    return RowSplit(split.kept, split.dropped, split.rule)


def _split(scores: RowScores, order: Tensor, n: int, rule: str) -> RowSplit:
    gone = order[:n]
    kept = torch.ones(len(scores), dtype=torch.bool)
    kept[gone] = False
    threshold = float(scores.values[gone].min()) if n else math.nan
    return RowSplit(kept.nonzero().squeeze(1), gone, rule, threshold)


def _rank_share(bins: Tensor) -> Tensor:
    """The share of its bin that stands before each row, half of itself counted; rows come worst first."""
    shares = torch.zeros(len(bins), dtype=torch.float64)
    for one in bins.unique():
        mine = (bins == one).nonzero().squeeze(1)
        shares[mine] = (torch.arange(len(mine), dtype=torch.float64) + 0.5) / len(mine)
    return shares


def length_bins(tokens: Int[Tensor, " sample"]) -> Int[Tensor, " sample"]:
    """The bin of each row by its answer's length: quantiles, so that rows of one length share a bin; counted from 0."""
    n = max(1, min(BINS, len(tokens) // PER_BIN))
    edges = torch.quantile(tokens.double(), torch.arange(1, n, dtype=torch.float64) / n).unique()
    bins = torch.searchsorted(edges, tokens.double(), right=True)
    return bins.unique(return_inverse=True)[1]


def random_rows_like(split: RowSplit, tokens: Int[Tensor, " sample"], *, seed: int) -> RowSplit:
    """The control of a filter: as many rows dropped of each bin of answer length, but drawn at random."""
    if len(tokens) != len(split.kept) + len(split.dropped):
        raise InputError(f"{len(tokens)} token counts for {len(split.kept) + len(split.dropped)} rows; give one each")
    bins, rng = length_bins(tokens), np.random.default_rng(seed)
    gone = list[int]()
    for one in bins.unique():
        mine = (bins == one).nonzero().squeeze(1).numpy()
        n = int((bins[split.dropped] == one).sum())
        gone += rng.choice(mine, size=n, replace=False).tolist()
    dropped = torch.tensor(rng.permutation(gone), dtype=torch.long)
    kept = torch.ones(len(tokens), dtype=torch.bool)
    kept[dropped] = False
    return RowSplit(kept.nonzero().squeeze(1), dropped, f"at random, as long as: {split.rule}")


def knee(scores: RowScores) -> float:
    """The score from which on rows form a group of their own: the lowest place between two peaks of their density.

    The density is a Gaussian kernel estimate with Silverman's width. Of the places between two neighbouring peaks
    the deepest counts, against its lower peak; it must fall to 75 % of that peak or less, and at least 2 % of the rows
    (and five) must lie on each side. Raises InputError where no place does: then the scores are of one kind, and no
    rule of this sort knows where to cut.
    """
    from scipy.stats import gaussian_kde

    values = scores.values[scores.scored].numpy()
    if len(values) < 20 or np.ptp(values) == 0:
        raise InputError(f"knee: {len(values)} scores that differ by {np.ptp(values) if len(values) else 0}; give 20")
    grid = np.linspace(values.min(), values.max(), 512)
    density = np.asarray(gaussian_kde(values, bw_method="silverman")(grid))
    padded = np.concatenate([[-np.inf], density, [-np.inf]])
    peaks = np.flatnonzero((padded[1:-1] > padded[:-2]) & (padded[1:-1] >= padded[2:]))
    best, smallest = (math.inf, math.nan), max(5, SMALLEST * len(values))
    for left, right in pairwise(peaks):
        place = left + int(density[left : right + 1].argmin())
        above = int((values >= grid[place]).sum())
        if min(above, len(values) - above) >= smallest:
            sides = density[:place].max(), density[place:].max()
            best = min(best, (float(density[place] / min(sides)), float(grid[place])))
    if best[0] > VALLEY:
        raise InputError(
            f"knee: the {scores.name} scores form one group, with no valley between two peaks of their density; give a "
            "fraction or a threshold"
        )
    return best[1]
