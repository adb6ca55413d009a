"""Two models on the same questions with the same seeds: pairs of answers, and what they say of the difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probes.errors import InputError
from probes.outcomes.contrasts import difference
from probes.outcomes.rates import Counts, Rate
from probes.outcomes.table import Outcomes

KEY = ("question_id", "seed", "sample")
"""What makes two answers a pair: the question, the seed of the draw, the number of the sample."""


@dataclass(frozen=True)
class Comparison:
    """What changes from `b` to `a`, on pairs of answers.

    `difference` is the rate of `a` minus that of `b` with its interval (bootstrap clustered by question, both resampled
    alike). `only_a` and `only_b` count pairs in which one side alone is of the kind, whatever the denominator of the
    rates; `mcnemar` is the exact two-sided p-value of those counts, which takes pairs for independent and is too small
    where answers to one question are alike. `sign` is that of a sign test over questions, which does not. `questions`
    has a row per question: the shares `a` and `b`, their `difference`, and `n` pairs.
    """

    kind: str
    difference: Rate
    only_a: int
    only_b: int
    mcnemar: float
    sign: float
    questions: pd.DataFrame

    @property
    def verdict(self) -> str:
        """ "higher", "lower" or "inconclusive": whether the interval of the difference leaves out zero."""
        if self.difference.low > 0:
            return "higher"
        return "lower" if self.difference.high < 0 else "inconclusive"

    def figure(self):
        """Bars of the difference, question by question."""
        from probes.outcomes.figures import comparison_figure

        return comparison_figure(self)


def compare(a: Outcomes, b: Outcomes, *, kind: str = "misaligned", counts: Counts | None = None) -> Comparison:
    """Compare two models that were asked the same questions with the same seeds, pair by pair.

    Raises InputError where a pair is missing on one side, or occurs twice.
    """
    rule = counts or Counts(kind)
    tables = aligned_rows([a, b])
    ours, theirs = (rule.masks(table)[0] for table in tables)
    pairs = pd.DataFrame({"question_id": tables[0]["question_id"], "a": ours, "b": theirs})
    questions = pairs.groupby("question_id", sort=True).agg(a=("a", "mean"), b=("b", "mean"), n=("a", "size"))
    questions = questions.assign(difference=questions["a"] - questions["b"]).reset_index()
    gaps = questions["difference"].to_numpy()
    up, down = int((gaps > 0).sum()), int((gaps < 0).sum())
    only_a, only_b = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return Comparison(
        rule.kind,
        difference(Outcomes(tables[0]), Outcomes(tables[1]), counts=rule),
        only_a,
        only_b,
        sign_test(only_a, only_b),
        sign_test(up, down),
        questions,
    )


def sign_test(up: int, down: int) -> float:
    """Exact two-sided p-value that `up` and `down` are halves of their sum by chance; 1 where there is nothing."""
    n, fewer = up + down, min(up, down)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def aligned_rows(outcomes: Sequence[Outcomes], *, key: Sequence[str] = KEY) -> list[pd.DataFrame]:
    """The tables with their rows in one common order of the pairs' keys. Raises InputError where they do not pair."""
    tables = []
    for one in outcomes:
        index = pd.MultiIndex.from_arrays([one.table[name].astype(str) for name in key], names=list(key))
        if index.has_duplicates:
            twice = dict(zip(key, index[index.duplicated()][0], strict=True))
            raise InputError(f"outcomes: {_said(twice)} occurs twice; compare one model with one at a time")
        tables.append(one.table.set_axis(index).sort_index())
    for other in tables[1:]:
        odd = tables[0].index.symmetric_difference(other.index)
        if len(odd):
            alone = dict(zip(key, odd[0], strict=True))
            raise InputError(
                f"outcomes are not paired: {_said(alone)} occurs in one of them only; ask both the same questions with "
                "the same seeds and samples"
            )
    return [table.set_axis(np.arange(len(table))) for table in tables]


def _said(key: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in key.items())
