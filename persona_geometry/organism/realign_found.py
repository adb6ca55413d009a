"""What the cells of the re-alignment table say: dose curves, relapse, residue, over the seeds that are done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from finetuning.compare import CLUSTERS, Measured
from finetuning.realign import DoseCurve, DoseStep, Relapse, residue_table
from persona_geometry.organism.realign_table import BATCH
from probes.outcomes import Outcomes, pool

if TYPE_CHECKING:
    import plotly.graph_objects as go

Arm = tuple[str, str]
BASE, UNTREATED, REALIGNED = ("base", "as it is"), ("untreated", "as it is"), ("unrelated", "30 steps")


@dataclass(frozen=True)
class Found:
    """Finished cells, and what they say."""

    measured: tuple[Measured, ...]

    @cached_property
    def cells(self) -> dict[tuple[str, str, int], Measured]:
        """The cells by data, treatment and seed."""
        return {(one.cell.data, one.cell.treatment, one.cell.seed): one for one in self.measured}

    def seeds(self, *arms: Arm) -> list[int]:
        """The seeds for which all of these cells are done."""
        held = [{seed for data, treatment, seed in self.cells if (data, treatment) == arm} for arm in arms]
        return sorted(set.intersection(*held))

    def pooled(self, arm: Arm, key: str, seeds: Sequence[int]) -> Outcomes:
        """The answers of one tally over some seeds."""
        return pool([self.cells[*arm, seed].answers(key) for seed in seeds])

    def steps(self, arm: Arm, seed: int) -> list[int]:
        """The steps at which a cell's model was asked the test questions."""
        return sorted(int(key.removeprefix("step-")) for key in self.cells[*arm, seed].figures if key[:5] == "step-")

    def points(self, arm: Arm, seeds: Sequence[int], rows: int = BATCH) -> tuple[DoseStep, ...]:
        """The points of an arm."""
        steps = self.steps(arm, seeds[0])
        return tuple(DoseStep(step, step * rows, self.pooled(arm, f"step-{step}", seeds)) for step in steps)

    @cached_property
    def curves(self) -> dict[str, DoseCurve]:
        """A dose curve a kind of data, from the untreated model on; the dose of 30 steps alone is one of two points."""
        arms = [(data, treatment) for data, treatment, _ in self.cells if treatment in ("30 steps", "60 steps")]
        out = {}
        for arm in dict.fromkeys(arms):
            seeds = self.seeds(arm, BASE, UNTREATED)
            if seeds:
                name = f"{arm[0]}, {arm[1]} alone" if arm == REALIGNED else arm[0]
                points = (*self.points(UNTREATED, seeds), *self.points(arm, seeds))
                out[name] = DoseCurve(points, self.pooled(BASE, "step-0", seeds), name)
        return out

    def table(self) -> pd.DataFrame:
        """A row a kind and step: that of `DoseCurve.table`, with the seeds and the answers' mean tokens."""
        parts = []
        for name, curve in self.curves.items():
            arm = REALIGNED if name.endswith("alone") else (name, "60 steps")
            seeds = self.seeds(arm, BASE, UNTREATED)
            tokens = sum(self.cells[*arm, seed].figures.get("tokens", math.nan) for seed in seeds) / len(seeds)
            parts.append(curve.table().assign(data=name, seeds=len(seeds), tokens=tokens))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def in_domain(self) -> pd.DataFrame:
        """Misaligned share in the trained domain: base, untreated, and after doses; 95 % over questions and seeds."""
        keys = {BASE: "cue: the trained domain", UNTREATED: "cue: the trained domain"}
        arms = [*keys, *((data, t) for data, t, _ in self.cells if t == "60 steps" and data != "random")]
        lines = []
        for arm in dict.fromkeys(arms):
            seeds = self.seeds(arm)
            wanted = [keys[arm]] if arm in keys else ["here-30", "here-60"]
            for key in wanted if seeds else []:
                rate = self.pooled(arm, key, seeds).rate(clusters=CLUSTERS)
                step = 0 if arm in keys else int(key.removeprefix("here-"))
                lines.append(
                    {"data": arm[0], "step": step, "misaligned": rate.value, "low": rate.low, "high": rate.high}
                )
        return pd.DataFrame(lines)

    def relapse(self) -> Relapse | None:
        """Training bad again after 30 steps of unrelated advice, against the base; None where no seed is whole."""
        fresh, again = ("fresh", "bad again"), ("unrelated", "bad again")
        seeds = self.seeds(fresh, again, UNTREATED)
        if not seeds:
            return None
        sides = (self.points(again, seeds, rows=16), self.points(fresh, seeds, rows=16))
        return Relapse(*sides, self.pooled(UNTREATED, "step-0", seeds))

    def relapse_here(self) -> pd.DataFrame:
        """Both trainings on bad rows, by step: misaligned in the trained domain beside out of it.

        A start that learns the bad rows more slowly is compared at the step where it has learnt as much of them.
        """
        lines = []
        for data in ("fresh", "unrelated"):
            arm = (data, "bad again")
            seeds = [seed for seed in self.seeds(arm) if "here-150" in self.cells[*arm, seed].figures]
            for step in self.steps(arm, seeds[0])[1:] if seeds else []:
                line: dict[str, float | str] = {"start": data, "step": step, "seeds": len(seeds)}
                for name, key in (("in_domain", "here"), ("misaligned", "step")):
                    rate = self.pooled(arm, f"{key}-{step}", seeds).rate(clusters=CLUSTERS)
                    line |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
                lines.append(line)
        return pd.DataFrame(lines)

    def residue(self) -> pd.DataFrame:
        """What is left under cues after 30 steps of unrelated advice."""
        models = {"base": BASE, "untreated": UNTREATED, "re-aligned": REALIGNED}
        seeds = self.seeds(*models.values())
        if not seeds:
            return pd.DataFrame()
        cues = [key for key in self.cells[*BASE, seeds[0]].figures if key.startswith("cue: ")]
        found = {"none": {name: self.pooled(arm, self._bare(arm), seeds) for name, arm in models.items()}}
        for cue in cues:
            found[cue.removeprefix("cue: ")] = {name: self.pooled(arm, cue, seeds) for name, arm in models.items()}
        return residue_table(found)

    def _bare(self, arm: Arm) -> str:
        return "step-30" if arm == REALIGNED else "step-0"

    def figure(self) -> go.Figure:
        """All doses of 60 steps in one figure."""
        from finetuning.realign.figures import dose_curves_figure

        return dose_curves_figure({name: curve for name, curve in self.curves.items() if not name.endswith("alone")})
