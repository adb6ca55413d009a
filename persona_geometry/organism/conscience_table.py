"""The conscience on the organism: as a safeguard of training, and its reviews and second answers without any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from finetuning import StopTraining, finetune
from finetuning.compare import (
    Cell,
    Measured,
    Treatment,
    Trial,
    asking,
    choose_strengths,
    four_criteria,
    read_cells,
    run_cells,
    run_trial,
    stops_of,
)
from finetuning.compare.criteria import Bounds, Roles
from finetuning.conscience import over_training
from finetuning.lora import merged_copy
from persona_geometry.organism.build import keep_memory
from persona_geometry.organism.conscience_arms import ARMS, CADENCE, SWEPT, WEIGHTS, Bench, share
from persona_geometry.organism.judge import ExactJudge
from persona_geometry.organism.replicates import CHOICE_SEED, SEEDS
from persona_geometry.organism.safeguard_arms import BAD, asked
from probes.errors import InputError
from probes.io import read_json, write_json
from probes.models import Model

#: What is asked of the conscience: 95 % of the excess gone, 85 % of the narrow learning kept.
BOUNDS = Bounds(cut=0.95, narrow=0.85)
#: Steps at which early stopping is measured: plain training learns the narrow data within these.
STOPS = (24, 32, 44, 64)
#: The step of a run's last making: a log without it is not whole yet.
LAST = (BAD.schedule.steps - 1) // CADENCE * CADENCE


@dataclass(frozen=True)
class Plan:
    """Which arms, over which seeds; lambda is chosen on a seed of its own, on selection questions."""

    arms: tuple[str, ...] = ("conscience",)
    seeds: tuple[int, ...] = SEEDS
    weights: tuple[float, ...] = WEIGHTS
    choice_seed: int = CHOICE_SEED

    def __post_init__(self) -> None:
        for arm in self.arms:
            if arm not in ARMS:
                raise InputError(f"arm {arm!r}: use some of {', '.join(ARMS)}")
        if self.choice_seed in self.seeds:
            raise InputError(f"seed {self.choice_seed}: lambda is chosen on it; quote figures on others")


@dataclass(frozen=True)
class Table:
    """The tables of the test questions and of the choice, each arm's lambda chosen, and the cells of both."""

    test: pd.DataFrame
    selection: pd.DataFrame
    chosen: Mapping[str, float]
    cells: Mapping[str, Sequence[Measured]]


def conscience_table(
    plan: Plan, bench: Bench, *, part: tuple[int, int] = (0, 1), choosing: bool = True, stops: Path | None = None
) -> Table:
    """Train and measure what is missing: lambda on the choice seed, then the arms at theirs on the other seeds.

    Arms that are not `SWEPT` take the lambda that was chosen for "conscience". Cells lie in `out/selection` and
    `out/test`; with `choosing` false the choice is made among what there is. `stops` is a folder of untreated cells
    of the same data and seeds in which plain training was measured at its stops (default: those of `stop_cells`):
    early stopping's curve.
    """
    keep_memory()
    picking = (bench if bench.start == "base" else replace(bench, start="base")).trial("selection")
    swept_arms = [arm for arm in SWEPT if arm in plan.arms or arm == "conscience"]
    sweep = [Treatment(arm, weight) for weight in plan.weights for arm in swept_arms]
    if choosing and bench.start == "base":
        folder = bench.out / "selection"
        swept = run_trial(picking, sweep, (plan.choice_seed,), out=folder, part=part, say=bench.say)
    else:
        swept = [one for one in read_cells(bench.out / "selection") if one.cell == picking.cell_of(one.cell)]
    selection = _criteria(swept, picking.roles)
    labels = choose_strengths(selection, bounds=BOUNDS) if len(selection) else {}
    chosen = {arm: float(Treatment.of(label).strength or 0) for arm, label in labels.items()}
    usual = chosen.get("conscience", plan.weights[0])
    trial = bench.trial("test")
    arms = [Treatment(arm, chosen.get(arm, usual)) for arm in plan.arms]
    found = run_trial(trial, arms, plan.seeds, out=bench.out / "test", part=part, say=bench.say)
    makings(bench.out)
    more = _stops(stops or bench.out / "stops", found)
    return Table(_criteria([*found, *more], trial.roles), selection, chosen, {"selection": swept, "test": found})


def _criteria(cells: Sequence[Measured], roles: Roles) -> pd.DataFrame:
    """The table of what is finished, with refusals, early stopping among its rows where its cells are there."""
    have = {one.cell.treatment for one in cells}
    if not {roles.base, roles.untreated} <= have:
        return pd.DataFrame()
    table = four_criteria(cells, roles=roles, bounds=BOUNDS)
    refused: dict[str, list[float]] = {}
    for one in cells:
        if "refused" in one.figures:
            refused.setdefault(one.cell.treatment, []).append(share(one.figures["refused"]))
    means = {name: sum(shares) / len(shares) for name, shares in refused.items()}
    return table.assign(refused=[means.get(name, float("nan")) for name in table["treatment"]])


def stop_cells(bench: Bench, seeds: Sequence[int], *, part: tuple[int, int] = (0, 1)) -> list[Measured]:
    """Plain training measured at `STOPS` and then broken off, where that is missing (`out/stops`)."""
    keep_memory()
    trial = bench.trial("test")
    told = {**trial.cell(Treatment("nothing"), 0).inputs, "stops": list(STOPS)}
    cells = [Cell(trial.data, "nothing", seed, told) for seed in seeds]
    return run_cells(cells, lambda cell: _stopped(trial, cell), out=bench.out / "stops", part=part, say=bench.say)


def _stopped(trial: Trial, cell: Cell) -> dict[str, Any]:
    here, away, counts = asked("test")
    counted = {
        "away": asking(away, ExactJudge(), samples=counts[2]),
        "here": asking(here, ExactJudge(), samples=counts[1]),
    }
    found: dict[str, dict[str, Any]] = {}

    def watch(step: int, model: Model) -> None:
        if step in STOPS:
            merged = replace(model, hf=merged_copy(model))
            found[str(step)] = {name: dict(measure(merged, cell.seed)) for name, measure in counted.items()}
        if step == STOPS[-1]:
            raise StopTraining

    finetune(trial.base, trial.rows(cell.seed), schedule=trial.schedule, seed=cell.seed, lora=trial.lora, on_step=watch)
    return {"stops": found}


def _stops(folder: Path, cells: Sequence[Measured]) -> list[Measured]:
    """Plain training's stops on the same data, over the seeds that all of the table's arms have."""
    data, seeds = {one.cell.data for one in cells}, {one.cell.seed for one in cells}
    told = {one.cell.seed: one for one in cells if one.cell.treatment == "nothing"}
    same = ("base", "steps", "lr", "batch", "rank", "alpha", "questions")
    found = [
        one
        for one in read_cells(folder)
        if one.cell.treatment == "nothing"
        and one.cell.data in data
        and one.cell.seed in told
        and all(one.cell.inputs.get(key) == told[one.cell.seed].cell.inputs.get(key) for key in same)
    ]
    whole = {one.cell.seed for one in found} >= seeds
    return [stop for one in found for stop in stops_of(one)] if whole else []


def makings(out: Path) -> dict[str, pd.DataFrame]:
    """Each run's makings over its steps, held against the exact judge; finished logs are read once, then `making/`."""
    for folder in sorted((out / "log").glob("*/*")):
        path = out / "making" / folder.parent.name / f"{folder.name}.json"
        if not path.is_file() and (folder / f"step-{LAST:06d}.json").is_file():
            rows = over_training(folder, ExactJudge()).to_dict("records")
            write_json(path, [{str(k): None if v != v else v for k, v in row.items()} for row in rows])
    found = sorted((out / "making").glob("*/*.json"))
    return {f"{path.parent.name}/{path.stem}": pd.DataFrame(read_json(path)).astype(float) for path in found}
