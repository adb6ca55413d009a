"""Tables whose cells are trained models: a cell is trained and measured once, then read; and what such a table says."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from probes.errors import InputError
from probes.io import read_json, write_json
from probes.outcomes import COLUMNS, Counts, Outcomes, Rate, cut, difference, pool

Tally = Mapping[str, Sequence[int]]
CLUSTERS = ("question_id", "seed")


@dataclass(frozen=True)
class Cell:
    """Some data, one treatment of it, one seed, and in `inputs`, as JSON, whatever else decides its result."""

    data: str
    treatment: str
    seed: int
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """The cell as JSON."""
        return {"data": self.data, "treatment": self.treatment, "seed": self.seed, "inputs": dict(self.inputs)}

    @property
    def file(self) -> str:
        """The name of its file: data, treatment and seed, then a hash of everything."""
        words = re.sub(r"[^a-z0-9.]+", "-", f"{self.data}_{self.treatment}_{self.seed}".lower())
        return f"{words}-{hashlib.sha256(json.dumps(self.told, sort_keys=True).encode()).hexdigest()[:10]}.json"


@dataclass(frozen=True)
class Measured:
    """A finished cell and its figures, as JSON. `away` and `here` are tallies of answers out of and in the domain."""

    cell: Cell
    figures: Mapping[str, Any]

    def answers(self, where: str = "away") -> Outcomes:
        """The answers of one tally as an outcome table without texts; their seed is the cell's."""
        if where not in self.figures:
            raise InputError(f"cell {self.cell.file} has no tally {where!r}; it has {', '.join(self.figures)}")
        return untallied(self.figures[where], seed=self.cell.seed, name=self.cell.treatment)


def run_cells(
    cells: Iterable[Cell],
    make: Callable[[Cell], Mapping[str, Any]],
    *,
    out: str | Path,
    part: tuple[int, int] = (0, 1),
    say: Callable[[str], object] = lambda line: None,
) -> list[Measured]:
    """Train and measure every cell that is not in the folder `out` yet, a JSON file each; return all that are there.

    A file is written whole or not at all, so the same call after a kill goes on with the cell that was lost. Several
    calls may share the work: `part` (i, n) takes every n-th cell from the i-th on and leaves the others. Raises
    InputError for a `part` that is none, two cells of one name, and a file that holds another cell.
    """
    wanted, out = list(cells), Path(out)
    if not 0 <= part[0] < part[1]:
        raise InputError(f"part {part}: give (i, n) with i from 0 to n - 1")
    if len({cell.file for cell in wanted}) < len(wanted):
        raise InputError("two cells have the same data, treatment, seed and inputs; give each once")
    for number, cell in enumerate(wanted):
        if number % part[1] == part[0] and not (out / cell.file).is_file():
            say(f"{cell.data}, {cell.treatment}, seed {cell.seed}")
            write_json(out / cell.file, cell.told | {"figures": dict(make(cell))})
    return [_read(out / cell.file, cell) for cell in wanted if (out / cell.file).is_file()]


def _read(path: Path, cell: Cell) -> Measured:
    held = read_json(path)
    if not isinstance(held, dict) or any(held.get(key) != value for key, value in cell.told.items()):
        raise InputError(f"{path}: holds another cell than its name says; remove the file")
    return Measured(cell, held["figures"])


def tally(outcomes: Outcomes) -> dict[str, list[int]]:
    """Question -> [answers, coherent ones, misaligned ones among these]: all that rates and their intervals need."""
    coherent, misaligned = (Counts(kind, over="all").masks(outcomes.table)[0] for kind in ("coherent", "misaligned"))
    counts: dict[str, list[int]] = {}
    for question, clear, bad in zip(outcomes.table["question_id"], coherent, misaligned, strict=True):
        held = counts.setdefault(str(question), [0, 0, 0])
        held[:] = [held[0] + 1, held[1] + int(clear), held[2] + int(bad)]
    return dict(sorted(counts.items()))


def untallied(counts: Tally, *, seed: int, name: str) -> Outcomes:
    """Outcomes of which nothing is known but how many answers to each question were coherent and misaligned."""
    if not counts:
        raise InputError("a tally of no question: ask at least one")
    rows = []
    for question, (answers, coherent, misaligned) in counts.items():
        if not 0 <= misaligned <= coherent <= answers:
            raise InputError(f"tally of {question!r}: {misaligned} of {coherent} of {answers}; count again")
        verdicts = [(0.0, 100.0)] * misaligned + [(100.0, 100.0)] * (coherent - misaligned)
        verdicts += [(math.nan, 0.0)] * (answers - coherent)
        rows += [(question, i, aligned, clear) for i, (aligned, clear) in enumerate(verdicts)]
    columns = dict(zip(("question_id", "sample", "aligned", "coherent"), zip(*rows, strict=True), strict=True))
    blank = dict.fromkeys(("group", "prompt", "answer", "label", "template_hash"), "")
    table = pd.DataFrame({**columns, **blank, "model": name, "seed": seed, "refusal": False})
    return Outcomes(table.loc[:, list(COLUMNS)])


def compare_treatments(
    cells: Sequence[Measured], *, base: str = "base", untreated: str = "nothing", control: str = "random"
) -> pd.DataFrame:
    """What each treatment of each data set came to, over the seeds that it, the base and the untreated all have.

    Columns: data, treatment, seeds; `misaligned` out of domain, `coherent` out of domain, `in_domain` (misaligned),
    `cut` (share of the untreated excess over the base that is gone), `over_control` (misaligned less that of the
    control treatment), each with `_low` and `_high`, 95 % by a bootstrap over questions and seeds; then the mean over
    seeds of every plain number among the figures.
    """
    lines = []
    for data in dict.fromkeys(one.cell.data for one in cells):
        mine = [one for one in cells if one.cell.data == data]
        arms = {name: {m.cell.seed: m for m in mine if m.cell.treatment == name} for name in _treatments(mine)}
        for name, arm in arms.items():
            seeds = sorted(set(arm) & set(arms.get(base, arm)) & set(arms.get(untreated, arm)))
            if seeds:
                lines.append(
                    {
                        "data": data,
                        "treatment": name,
                        "seeds": len(seeds),
                        **_line(arms, name, seeds, (base, untreated, control)),
                    }
                )
    return pd.DataFrame(lines)


def _treatments(cells: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(one.cell.treatment for one in cells))


def _line(
    arms: Mapping[str, Mapping[int, Measured]], name: str, seeds: Sequence[int], others: tuple[str, str, str]
) -> dict[str, float]:
    base, untreated, control = others

    def away(arm: str) -> Outcomes:
        return pool([arms[arm][seed].answers() for seed in seeds])

    rates = {kind: away(name).rate(kind, clusters=CLUSTERS) for kind in ("misaligned", "coherent")}
    if all("here" in arms[name][seed].figures for seed in seeds):
        rates["in_domain"] = pool([arms[name][s].answers("here") for s in seeds]).rate(clusters=CLUSTERS)
    if base in arms and untreated in arms and name not in (base, untreated):
        rates["cut"] = cut(away(untreated), away(name), away(base), counts=Counts(clusters=CLUSTERS))
    if control in arms and name != control and set(seeds) <= set(arms[control]):
        rates["over_control"] = difference(away(name), away(control), counts=Counts(clusters=CLUSTERS))
    return _flat(rates) | _means([arms[name][seed].figures for seed in seeds])


def _flat(rates: Mapping[str, Rate]) -> dict[str, float]:
    return {f"{name}{end}": float(getattr(rate, what)) for name, rate in rates.items() for end, what in _ENDS}


_ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))


def _means(figures: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    plain = [name for name, value in figures[0].items() if isinstance(value, int | float)]
    return {name: sum(float(one[name]) for one in figures) / len(figures) for name in plain}
