"""What a score is worth: against the truth, against other scores, against the mere length of an answer."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from geometry.features.filtering.dropping import drop_rows
from geometry.features.filtering.scoring import RowScores
from probes.errors import InputError
from probes.linear import auroc
from probes.outcomes import Rate

RESAMPLES, FEW = 1000, 5000


def spearman(
    x: Float[Tensor, " n"] | Int[Tensor, " n"], y: Float[Tensor, " n"] | Int[Tensor, " n"], *, seed: int = 0
) -> Rate:
    """Spearman's rank correlation (ties at mid-rank) with a 95 % interval: percentile bootstrap, 1,000 resamples.

    Above 5,000 pairs the interval is Bonett and Wright's (2000). NaN where one side does not vary.
    """
    from scipy.stats import rankdata

    if len(x) != len(y) or len(x) < 3:
        raise InputError(f"spearman: {len(x)} and {len(y)} values; give at least three pairs")
    pairs = np.stack([np.asarray(side.double().cpu()) for side in (x, y)])
    if not np.isfinite(pairs).all():
        raise InputError("spearman: a value is not finite; leave such pairs out")
    n, value = len(x), float(_correlation(np.asarray(rankdata(pairs, axis=1))))
    if n > FEW:
        reach = 1.96 * np.sqrt((1 + value**2 / 2) / (n - 3))
        return Rate(value, float(np.tanh(np.arctanh(value) - reach)), float(np.tanh(np.arctanh(value) + reach)), n)
    rng = np.random.default_rng(seed)
    drawn = pairs[:, rng.integers(0, n, (RESAMPLES, n))]
    found = _correlation(np.asarray(rankdata(drawn, axis=-1)))
    if not np.isfinite(found).mean() >= 0.975:
        return Rate(value, np.nan, np.nan, n)
    low, high = np.nanquantile(found, (0.025, 0.975))
    return Rate(value, float(low), float(high), n)


def rank_correlations(many: Float[Tensor, "draw n"], one: Float[Tensor, " n"]) -> Float[Tensor, " draw"]:
    """Spearman's correlation of each line of `many` with `one`, without intervals; float64."""
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(side.double().numpy(), axis=-1) for side in (many, one.expand_as(many))])
    return torch.from_numpy(_correlation(ranks))


def _correlation(ranks: np.ndarray) -> Any:
    """Pearson's r of the first and the second of `ranks` `[2 ... n]`, over the last axis."""
    centred = ranks - ranks.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (centred[0] * centred[1]).sum(-1) / np.sqrt((centred**2).sum(-1).prod(0))


def row_auroc(scores: RowScores, truth: Sequence[bool], *, groups: Sequence[str] | None = None, seed: int = 0) -> Rate:
    """Chance that a truly bad row outscores a good one, with its 95 % interval over whole `groups` (default: rows).

    A row without a score counts as the least suspect. Raises InputError where `truth` does not fit or has one kind.
    """
    if len(truth) != len(scores) or len(set(truth)) < 2:
        raise InputError(
            f"truth of {len(truth)} rows ({sum(truth)} bad) for {len(scores)} scores; give one each, of both kinds"
        )
    rows = scores.scored
    floor = float(scores.values[rows].min()) - 1 if len(rows) else 0.0
    values = torch.where(scores.values.isnan(), floor, scores.values)
    return auroc(values.numpy(), np.asarray(truth, dtype=bool), groups=groups, seed=seed)


def scores_agree(scores: Sequence[RowScores], *, fraction: float | int = 0.5, seed: int = 0) -> pd.DataFrame:
    """How far scores agree, a pair a line: a, b, spearman, low, high, and `shared`, the share of rows dropped by both.

    `shared` is over the rows that one of the two drops at `fraction`; `chance` is what independent scores would share.
    Rows count that both have a score for.
    """
    if len(scores) < 2 or len({len(one) for one in scores}) > 1:
        raise InputError(
            f"{len(scores)} scores of {sorted({len(one) for one in scores})} rows: give two of one data set"
        )
    lines = []
    for a, b in combinations(scores, 2):
        both = ~(a.values.isnan() | b.values.isnan())
        found = spearman(a.values[both], b.values[both], seed=seed)
        gone = [set(drop_rows(one, fraction=fraction).dropped.tolist()) for one in (a, b)]
        n, expected = len(gone[0]), len(gone[0]) * len(gone[1]) / len(a)
        figures = {"spearman": found.value, "low": found.low, "high": found.high}
        shared = {"shared": len(gone[0] & gone[1]) / max(1, n), "chance": expected / max(1, n)}
        lines.append({"a": a.name, "b": b.name, **figures, **shared})
    return pd.DataFrame(lines)
