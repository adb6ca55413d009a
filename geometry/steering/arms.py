"""Arms: many treatments of one model asked the same questions in shared batches, which costs little more than one."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from geometry.steering.per_row import PerRow
from probes.ask import outcomes_of, sample
from probes.errors import InputError
from probes.hooks import Operator
from probes.judges import Judge
from probes.models import Model
from probes.outcomes import Outcomes
from probes.questions import Question

Arm = Operator | Sequence[Operator]


def ask_many(
    model: Model,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    judge: Judge,
    *,
    seed: int,
    n_samples: int = 1,
    **settings: Any,
) -> list[Outcomes]:
    """Put every question to every arm `n_samples` times; return one outcome table per arm, in order.

    An arm is an operator, several in a row, or none at all (`()`: the untreated model). Rows of different arms lie in
    the same batch, each edited by its own operators, so that twenty random controls take the time of one longer run.
    The answers of an arm depend on the other arms of the call only through the random numbers that they share.
    `settings` are those of `sample` (temperature, max_new_tokens, batch_size).
    """
    if not arms or not questions or n_samples < 1:
        raise InputError(
            f"{len(arms)} arms x {len(questions)} questions x {n_samples} samples: give at least one of each"
        )
    asked = [question for question in questions for _ in range(n_samples)]
    rows = [arm for arm in range(len(arms)) for _ in asked]
    conversations = [question.conversation for _ in arms for question in asked]
    operators = bound([as_operators(arm) for arm in arms], rows)
    answers = sample(model, conversations, seed=seed, operators=operators, **settings)
    verdicts = judge(asked * len(arms), answers)
    if len(verdicts) != len(rows):
        raise InputError(
            f"judge {judge.name}: {len(verdicts)} verdicts on {len(rows)} answers; it must return one for each"
        )
    table = outcomes_of(model, asked * len(arms), answers, verdicts, seed=seed).table
    parts = [table.iloc[start : start + len(asked)] for start in range(0, len(rows), len(asked))]
    return [Outcomes(_renumbered(part)) for part in parts]


def as_operators(arm: Arm) -> tuple[Operator, ...]:
    """An arm as a tuple of operators."""
    return tuple(arm) if isinstance(arm, Sequence) else (arm,)


def _renumbered(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of one arm, with the samples of each question counted from 0."""
    return table.assign(sample=table.groupby("question_id").cumcount()).reset_index(drop=True)


def bound(arms: Sequence[tuple[Operator, ...]], rows: Sequence[int]) -> list[PerRow]:
    """Operators under which row r is treated by the arm `rows[r]`; an arm's operators keep their order."""
    found = []
    for slot in range(max((len(arm) for arm in arms), default=0)):
        filled = [(number, arm[slot]) for number, arm in enumerate(arms) if len(arm) > slot]
        for positions in sorted({operator.positions for _, operator in filled}):
            kind = [(number, operator) for number, operator in filled if operator.positions == positions]
            place = {number: i for i, (number, _) in enumerate(kind)}
            found.append(PerRow([operator for _, operator in kind], [place.get(arm, -1) for arm in rows]))
    return found
