"""Agreement of two judges on the same answers: kappa, AUROC, correlation, with intervals over whole questions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from probes.errors import InputError
from probes.outcomes.bootstrap import weights_of
from probes.outcomes.paired import KEY, aligned_rows
from probes.outcomes.rates import Counts, Rate
from probes.outcomes.table import Outcomes


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on the same answers.

    `kappa` is Cohen's, on whether an answer is of the kind; `same` the share of answers on which they say the same of
    that. `auroc` is how well the first judge's aligned score tells the answers that the second finds to be of the kind
    from the others (1: perfectly, 0.5: not at all); `correlation` is Pearson's of the aligned scores, over answers
    that both scored. All with 95 % intervals clustered by question; NaN where a figure is undefined. `table` counts the
    answers: rows the first judge, columns the second, False then True.
    """

    kind: str
    kappa: Rate
    same: Rate
    auroc: Rate
    correlation: Rate
    table: pd.DataFrame


def agreement(a: Outcomes, b: Outcomes, *, kind: str = "misaligned", counts: Counts | None = None) -> Agreement:
    """Compare two judges' verdicts on the same answers (see `probes.ask.rejudge`).

    Raises InputError where the answers are not the same.
    """
    rule = counts or Counts(kind)
    one, two = aligned_rows([a, b], key=("model", *KEY))
    other = (one["answer"].astype(str) != two["answer"].astype(str)).to_numpy()
    if other.any():
        name = one.loc[other, "question_id"].iloc[0]
        raise InputError(f"question {name!r}: the two tables hold other answers; judge the same ones twice")
    levels, place = np.unique(one["question_id"].astype(str), return_inverse=True)
    weights = weights_of([(level,) for level in levels], rule.seed)
    first, second = (rule.masks(table)[0] for table in (one, two))
    scores = [table["aligned"].to_numpy(dtype=float, na_value=np.nan) for table in (one, two)]
    both, scored = ~np.isnan(scores[0]) & ~np.isnan(scores[1]), ~np.isnan(scores[0])
    sums = _by_cluster(_quadrants(first, second), place, len(levels))
    moments = _by_cluster(_moments(scores[0][both], scores[1][both]), place[both], len(levels))
    wins = _wins(-scores[0][scored], second[scored], place[scored], len(levels))
    return Agreement(
        rule.kind,
        _rate(lambda w: _kappa(w @ sums), weights, len(one)),
        _rate(lambda w: _same(w @ sums), weights, len(one)),
        _rate(lambda w: _auroc(w, *wins), weights, int(scored.sum())),
        _rate(lambda w: _pearson(w @ moments), weights, int(both.sum())),
        pd.DataFrame(sums.sum(0).astype(int).reshape(2, 2), index=[False, True], columns=[False, True]),
    )


def _rate(figure: Callable[[np.ndarray], np.ndarray], weights: Float[np.ndarray, "resample cluster"], n: int) -> Rate:
    """A figure at equal weights, and its percentile interval; limits are NaN where 2.5 % of the draws are undefined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value, draws = float(figure(np.ones((1, weights.shape[1])))[0]), figure(weights)
    draws = draws[np.isfinite(draws)]
    if not math.isfinite(value) or len(draws) < 0.975 * len(weights):
        return Rate(value if math.isfinite(value) else math.nan, math.nan, math.nan, n)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Rate(value, float(low), float(high), n)


def _by_cluster(
    values: Float[np.ndarray, "sample figure"], place: Int[np.ndarray, " sample"], n: int
) -> Float[np.ndarray, "cluster figure"]:
    return np.stack([np.bincount(place, column, minlength=n) for column in values.T], axis=1)


def _quadrants(a: Bool[np.ndarray, " sample"], b: Bool[np.ndarray, " sample"]) -> Float[np.ndarray, "sample quadrant"]:
    """Neither, the second alone, the first alone, both."""
    return np.stack([~a & ~b, ~a & b, a & ~b, a & b], axis=1).astype(float)


def _kappa(sums: Float[np.ndarray, "resample quadrant"]) -> Float[np.ndarray, " resample"]:
    """(observed - expected) / (1 - expected) agreement (Cohen 1960)."""
    neither, second, first, both = sums.T / sums.sum(1)
    yes_a, yes_b = first + both, second + both
    expected = yes_a * yes_b + (1 - yes_a) * (1 - yes_b)
    return (neither + both - expected) / np.where(expected < 1, 1 - expected, np.nan)


def _same(sums: Float[np.ndarray, "resample quadrant"]) -> Float[np.ndarray, " resample"]:
    return (sums[:, 0] + sums[:, 3]) / sums.sum(1)


def _moments(x: Float[np.ndarray, " sample"], y: Float[np.ndarray, " sample"]) -> Float[np.ndarray, "sample moment"]:
    """1, x, y, xx, yy, xy, about the means of the whole."""
    x, y = (values - values.mean() if len(values) else values for values in (x, y))
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def _pearson(sums: Float[np.ndarray, "resample moment"]) -> Float[np.ndarray, " resample"]:
    n, x, y, xx, yy, xy = sums.T
    spread = np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0)
    return (xy - x * y / n) / np.sqrt(np.where(spread > 0, spread, np.nan))


def _wins(
    scores: Float[np.ndarray, " sample"],
    event: Bool[np.ndarray, " sample"],
    place: Int[np.ndarray, " sample"],
    n: int,
) -> tuple[Float[np.ndarray, "cluster cluster"], Float[np.ndarray, " cluster"], Float[np.ndarray, " cluster"]]:
    """Between clusters: pairs (event, other) in which the event scores higher, ties half; events and others in each."""
    wins = np.zeros((n, n))
    bins = [np.sort(scores[~event & (place == cluster)]) for cluster in range(n)]
    for score, cluster in zip(scores[event], place[event], strict=True):
        below = [np.searchsorted(b, score, "left") + np.searchsorted(b, score, "right") for b in bins]
        wins[cluster] += np.array(below) / 2
    return wins, np.bincount(place[event], minlength=n) * 1.0, np.bincount(place[~event], minlength=n) * 1.0


def _auroc(
    weights: Float[np.ndarray, "resample cluster"],
    wins: Float[np.ndarray, "cluster cluster"],
    events: Float[np.ndarray, " cluster"],
    others: Float[np.ndarray, " cluster"],
) -> Float[np.ndarray, " resample"]:
    pairs = (weights @ events) * (weights @ others)
    return ((weights @ wins) * weights).sum(1) / np.where(pairs > 0, pairs, np.nan)
