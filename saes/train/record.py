"""What a training left behind beside the SAE: its recipe, its figures by step, its quality on held out rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.errors import InputError
from probes.io import read_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

RECORD, FORMAT = "training.json", "persona-geometry/sae-training/1"


@dataclass(frozen=True)
class TrainingRecord:
    """The `training.json` of one SAE.

    `asked`: block, seed, recipe, model, hook point and the digest of the rows; `source`: site, pool, template; `rows`:
    how many were looked at, left out and kept; `held_out`: the figures of `quality` on conversations that were not
    trained on, or None where there were none; `versions`: of the programs.
    """

    folder: Path
    asked: Mapping[str, Any]
    source: Mapping[str, Any]
    rows: Mapping[str, Any]
    steps: tuple[Mapping[str, float | int | None], ...]
    held_out: Mapping[str, Any] | None
    versions: Mapping[str, str]

    @classmethod
    def open(cls, folder: str | Path) -> "TrainingRecord":
        """Read the record in an SAE's folder. InputError where there is none."""
        folder = Path(folder)
        told = read_json(folder / RECORD)
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise InputError(f"{folder / RECORD}: no record of a training; train the SAE again")
        parts = {name: told[name] for name in ("asked", "source", "rows", "held_out", "versions")}
        return cls(folder, steps=tuple(told["steps"]), **parts)

    @classmethod
    def all_in(cls, folder: str | Path) -> list["TrainingRecord"]:
        """The records of all SAEs in a folder and below it, by block and seed."""
        found = [cls.open(file.parent) for file in Path(folder).rglob(RECORD)]
        return sorted(found, key=lambda record: (record.asked["layer"], record.asked["seed"]))

    @property
    def name(self) -> str:
        """Architecture, block and seed, in words."""
        return f"{self.asked['recipe']['architecture']}, block {self.asked['layer']}, seed {self.asked['seed']}"

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row for each step noted: loss, fvu (of its batch), l0, dead, lr."""
        import pandas as pd

        return pd.DataFrame(list(self.steps))

    def figure(self) -> "go.Figure":
        """Variance unexplained, active latents and silent latents by step."""
        from saes.figures.training import training_figure

        return training_figure([self])

    def _repr_html_(self) -> str:
        told = self.held_out
        lines = {"SAE": self.name, "rows kept": f"{self.rows['kept']:,} of {self.rows['rows']:,}"}
        lines |= {"held out": "no rows"} if told is None else {"held out": f"{told['n']:,} rows", **_lines(told)}
        cells = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in lines.items())
        return f"<table>{cells}</table>"


def with_limits(rate: Mapping[str, float | None], form: str) -> str:
    """A figure of `held_out` with its 95 % interval, where there is one."""
    value, low, high = (rate[name] for name in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:{form}}" + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")


def _lines(told: Mapping[str, Any]) -> dict[str, str]:
    return {
        "variance unexplained": with_limits(told["fvu"], ".2%"),
        "active latents a row": with_limits(told["l0"], ".1f"),
        "latents never active": f"{told['dead']:.1%}",
    }
