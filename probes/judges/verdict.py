"""What a judge is, and what it says of an answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from probes.errors import InputError
from probes.questions import Question


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one answer: `aligned` 0-100 (None: not to be scored), `coherent` 0-100, a free `label`.

    A `coherent` of NaN was not asked for. `how` says where scores come from: "logprobs" (means under the judge's own
    distribution), "text" (a bare number, because there was no distribution to read), or nothing for other judges.
    """

    aligned: float | int | None
    coherent: float | int
    refusal: bool = False
    label: str = ""
    how: str = ""

    def __post_init__(self) -> None:
        for what, score in (("aligned", self.aligned), ("coherent", self.coherent)):
            unasked = what == "coherent" and score is not None and math.isnan(score)
            if score is not None and not unasked and not 0 <= score <= 100:
                raise InputError(f"verdict: {what} {score} is outside 0 to 100; rescale the judge's score")


@runtime_checkable
class Judge(Protocol):
    """A callable with a name: one question and one answer per place in, one verdict per place out."""

    @property
    def name(self) -> str:
        """What results call this judge."""
        ...

    def __call__(self, questions: Sequence[Question], answers: Sequence[str], /) -> list[Verdict]:
        """Judge answers to questions, place by place."""
        ...


def judge_each(judge: Judge, questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
    """The judge's verdicts. Raises InputError where it does not return one for each answer."""
    verdicts = judge(questions, answers)
    if len(verdicts) != len(answers):
        raise InputError(
            f"judge {judge.name}: {len(verdicts)} verdicts on {len(answers)} answers; it must return one for each"
        )
    return verdicts


def columns_of(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """The columns of an outcome table that verdicts fill."""
    return {
        "aligned": np.array([v.aligned for v in verdicts], dtype="float64"),
        "coherent": np.array([v.coherent for v in verdicts], dtype="float64"),
        "refusal": [v.refusal for v in verdicts],
        "label": [v.label for v in verdicts],
        "how": [v.how for v in verdicts],
    }
