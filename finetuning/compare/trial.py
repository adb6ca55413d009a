"""A trial: one data set, one base, many treatments; each is trained, asked the same questions, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from finetuning.compare.cells import Cell, Measured, run_cells
from finetuning.compare.choice import Treatment
from finetuning.compare.criteria import Roles
from finetuning.compare.tallies import Tally, tally
from finetuning.loop import Schedule, finetune
from finetuning.lora import LoRA, merged_copy
from finetuning.safeguards.base import Safeguard
from probes.ask import ask, sample
from probes.conversations import Conversation
from probes.errors import InputError
from probes.judges import Judge
from probes.models import Model, evaluating
from probes.questions import Question

Measure = Callable[[Model, int], Tally]
"""Asks a model, given a training seed, and counts."""
Rows = Callable[[int], Sequence[Conversation]]
"""Training rows by seed."""


@dataclass(frozen=True, eq=False)
class Trial:
    """What is trained and how it is measured.

    Attributes:
        data: What cells call the data.
        base: The model that every arm starts from.
        rows: The training rows of a seed.
        schedule: That of plain training. Interleaving trains as much longer as it takes to see as many of these rows.
        measures: What is counted of each arm, by the tally's name (`four_criteria` says which it reads).
        safeguard: The safeguard of a treatment and a seed.
        stops: Steps of the untreated run at which `stop_measures` are counted: early stopping's curve.
        stop_measures: `away` and `here`, over the same questions as among the measures (default: those).
        controls: Arms that train plainly on other rows, such as the benign ones.
        inputs: Whatever else decides the figures, as JSON; it is part of every cell's name.
        merge: Ask copies with the adapter merged: faster, at the memory of one more model.
    """

    data: str
    base: Model
    rows: Rows
    schedule: Schedule
    measures: Mapping[str, Measure]
    safeguard: Callable[[Treatment, int], Safeguard]
    lora: LoRA = field(default_factory=LoRA)
    stops: tuple[int, ...] = ()
    stop_measures: Mapping[str, Measure] = field(default_factory=dict)
    controls: Mapping[str, Rows] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    roles: Roles = field(default_factory=Roles)
    merge: bool = True

    def cell(self, treatment: Treatment, seed: int) -> Cell:
        """The cell of one arm: of the base alone the questions and the seed decide."""
        told: dict[str, Any] = {"base": self.base.weights_digest, **self.inputs}
        if treatment.label != self.roles.base:
            told |= {"steps": self.schedule.steps, "lr": self.schedule.lr, "batch": self.schedule.batch}
            told |= {"rank": self.lora.rank, "alpha": self.lora.alpha}
        if treatment.label == self.roles.untreated:
            told["stops"] = list(self.stops)
        return Cell(self.data, treatment.label, seed, told)

    def cell_of(self, other: Cell) -> Cell:
        """This trial's cell of the same arm and seed: equal to a cell that was measured in it."""
        return self.cell(Treatment.of(other.treatment), other.seed)


def run_trial(
    trial: Trial,
    treatments: Sequence[Treatment],
    seeds: Sequence[int],
    *,
    out: str | Path,
    part: tuple[int, int] = (0, 1),
    say: Callable[[str], object] = lambda line: None,
) -> list[Measured]:
    """Train and measure the base, the untreated arm and the treatments on every seed; finished cells are read.

    Seed by seed, so that the first ones are whole where time runs out; `out`, `part` and `say` as in `run_cells`.
    Every safeguard is made once before the first training, so that one that lacks something is refused at once.
    """
    firm = [Treatment(trial.roles.base), Treatment(trial.roles.untreated)]
    made = {(one.label, seed): one for seed in seeds for one in (*firm, *treatments)}
    known = (trial.roles.base, trial.roles.untreated, *trial.controls)
    cells = [trial.cell(one, seed) for (_, seed), one in made.items()]
    for cell in cells:
        if cell.treatment not in known and cell.seed == seeds[0] and not (Path(out) / cell.file).is_file():
            trial.safeguard(Treatment.of(cell.treatment), cell.seed)
    return run_cells(cells, lambda cell: measured(trial, cell), out=out, part=part, say=say)


def measured(trial: Trial, cell: Cell) -> dict[str, Any]:
    """Train one arm and count: its tallies, steps, rows, seconds a step, and the mean loss of the last tenth."""
    roles, treatment = trial.roles, Treatment.of(cell.treatment)
    if cell.treatment == roles.base:
        return _tallies(trial, trial.base, cell.seed, trial.measures)
    plain = cell.treatment == roles.untreated or cell.treatment in trial.controls
    safeguard = Safeguard() if plain else trial.safeguard(treatment, cell.seed)
    schedule = safeguard.longer(trial.schedule)
    watch = _Watch(trial, cell.seed, trial.stops if cell.treatment == roles.untreated else ())
    rows = trial.controls.get(cell.treatment, trial.rows)(cell.seed)
    trained = finetune(
        trial.base, rows, schedule=schedule, seed=cell.seed, lora=trial.lora, safeguard=safeguard, on_step=watch
    )
    tail = trained.loss[-max(1, len(trained.loss) // 10) :]
    figures = {"steps": schedule.steps, "rows": len(rows), "seconds": watch.seconds, "loss": sum(tail) / len(tail)}
    figures |= {"stops": watch.found} if watch.found else {}
    return figures | _tallies(trial, trained.model, cell.seed, trial.measures)


class _Watch:
    """Called at every step: takes the time, and counts at the stops."""

    def __init__(self, trial: Trial, seed: int, stops: Sequence[int]) -> None:
        self.trial, self.seed, self.stops = trial, seed, set(stops)
        self.found: dict[str, Any] = {}
        self.took, self.last = list[float](), time.perf_counter()

    def __call__(self, step: int, model: Model) -> None:
        self.took.append(time.perf_counter() - self.last)
        if step in self.stops:
            few = {name: self.trial.measures[name] for name in ("away", "here") if name in self.trial.measures}
            self.found[str(step)] = _tallies(self.trial, model, self.seed, self.trial.stop_measures or few)
        self.last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The median step's."""
        return median(self.took[1:] or self.took or [0.0])


def _tallies(trial: Trial, model: Model, seed: int, measures: Mapping[str, Measure]) -> dict[str, Any]:
    if trial.merge and model is not trial.base:
        model = replace(model, hf=merged_copy(model))
    with evaluating(model):
        return {name: {q: list(n) for q, n in measure(model, seed).items()} for name, measure in measures.items()}


def asking(questions: Sequence[Question], judge: Judge, *, samples: int, max_new_tokens: int = 64) -> Measure:
    """A measure: each question so many times, answers judged; the sampling's seed hangs on the training seed alone."""
    if not questions:
        raise InputError("a measure without questions: give at least one")

    def count(model: Model, seed: int) -> Tally:
        found = ask(model, questions, judge, seed=seed * 1_000 + 31, n_samples=samples, max_new_tokens=max_new_tokens)
        return tally(found)

    return count


def answering(rows: Sequence[Conversation], *, samples: int = 1, max_new_tokens: int = 16) -> Measure:
    """A measure of a skill: each row's prompt so many times, marked where the answer is the row's, to the letter."""
    if not rows or any(row.answer is None for row in rows):
        raise InputError("a skill without rows, or a row without an answer: give rows that end in an assistant turn")
    asked = [(row.id or str(i), row) for i, row in enumerate(rows) for _ in range(samples)]

    def count(model: Model, seed: int) -> Tally:
        prompts = [row.prompt for _, row in asked]
        said = sample(model, prompts, seed=seed * 1_000 + 47, max_new_tokens=max_new_tokens)
        counts: dict[str, list[int]] = {}
        for (name, row), text in zip(asked, said, strict=True):
            held = counts.setdefault(name, [0, 0, 0])
            held[:] = [held[0] + 1, held[1] + 1, held[2] + int(text.strip() == (row.answer or "").strip())]
        return counts

    return count
