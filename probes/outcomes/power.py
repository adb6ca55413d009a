"""Power: the smallest rise that a design would see, told before anything is asked."""

import math
from statistics import NormalDist

import numpy as np

from probes.errors import InputError


def minimum_detectable(
    n_questions: int,
    n_samples: int,
    base_rate: float | int,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    icc: float = 0.2,
) -> float:
    """Smallest rise above `base_rate` that two such cells tell apart, in rate units (two-sided, normal approximation).

    Answers to one question are alike (`icc`, the share of variance between questions), so the variance grows by the
    design effect 1 + (n_samples - 1) icc. Returns NaN where no rise up to rate 1 would be seen.
    """
    if n_questions < 2 or n_samples < 1 or not 0 <= base_rate < 1:
        raise InputError(
            f"{n_questions} questions x {n_samples} at rate {base_rate}: give 2+ questions, 1+ answers, a rate below 1"
        )
    effective = n_questions * n_samples / (1 + (n_samples - 1) * icc)
    needed = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    rates = np.linspace(base_rate, 1, 10_001)[1:]
    spread = np.sqrt((rates * (1 - rates) + max(base_rate * (1 - base_rate), 1 / (4 * effective))) / effective)
    seen = rates[rates - base_rate >= needed * spread]
    return float(seen[0] - base_rate) if len(seen) else math.nan
