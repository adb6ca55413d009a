"""Contrasts: how much rates differ, and which share of an excess a treatment removes."""

import numpy as np

from probes.outcomes.bootstrap import estimate
from probes.outcomes.rates import Counts, Rate
from probes.outcomes.table import Outcomes


def difference(a: Outcomes, b: Outcomes, *, kind: str = "misaligned", counts: Counts | None = None) -> Rate:
    """Rate of `a` minus rate of `b`, paired by question: both are resampled with the same questions.

    Raises InputError where they were not asked the same questions.
    """
    return estimate([a.table, b.table], counts or Counts(kind), lambda rates: rates[0] - rates[1])


def cut(tuned: Outcomes, treated: Outcomes, base: Outcomes, *, counts: Counts | None = None) -> Rate:
    """Share of the excess that a treatment removes: (tuned - treated) / (tuned - base), paired by question.

    1 means back at the base's rate, 0 no effect. Undefined (NaN) where the tuned rate is not above the base's; the
    limits are NaN where that holds for more than 2.5 % of the resamples.
    """
    return estimate([tuned.table, treated.table, base.table], counts or Counts(), _cut)


def _cut(rates: np.ndarray) -> np.ndarray:
    tuned, treated, base = rates
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(tuned > base, (tuned - treated) / (tuned - base), np.nan)
