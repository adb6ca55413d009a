"""The Study: everything that one study found, as data, and its folder on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from probes.errors import InputError
from probes.io import atomic_file, read_json, write_json

FORMAT = "persona-geometry/study/1"


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable Parquet table ({error}); run the study again to rewrite it"
        ) from error


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomic_file(path) as scratch:
        table.to_parquet(scratch, index=False)


@dataclass(frozen=True, eq=False)
class Study:
    """What a study found: `summary` (study.json), `tables` (tables/*.parquet) and the `folder` both live in.

    Shares are in [0, 1]; "misaligned" is a share of coherent answers; layers are 0-based blocks, their output meant.
    The report is drawn from this alone.
    """

    summary: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    folder: Path

    @classmethod
    def load(cls, folder: str | Path) -> Study:
        """Read a study folder; InputError where it holds no study, another format, or a broken table."""
        folder = Path(folder)
        path = folder / "study.json"
        if not path.is_file():
            raise InputError(f"{folder}: no study.json here; give the output folder of a finished study")
        summary = read_json(path)
        found = summary.get("format") if isinstance(summary, dict) else None
        if found != FORMAT:
            raise InputError(f"{path}: format {found!r}, but this version reads {FORMAT!r}; run the study again")
        tables = {file.stem: _read_table(file) for file in sorted((folder / "tables").glob("*.parquet"))}
        return cls(summary=summary, tables=tables, folder=folder)

    def save(self) -> Path:
        """Write the tables, then study.json, each atomically; return the folder."""
        (self.folder / "tables").mkdir(parents=True, exist_ok=True)
        for name, table in self.tables.items():
            _write_table(table, self.folder / "tables" / f"{name}.parquet")
        write_json(self.folder / "study.json", {**self.summary, "format": FORMAT})
        return self.folder

    def table(self, name: str) -> pd.DataFrame:
        """The table called `name`; InputError names those that exist."""
        if name not in self.tables:
            raise InputError(f"no table {name!r} in {self.folder}; it has {', '.join(sorted(self.tables)) or 'none'}")
        return self.tables[name]

    def report(self, path: str | Path | None = None, *, no_text: bool = False) -> Path:
        """Draw the report as one offline HTML file (default: report.html in the folder) and return its path.

        `no_text` leaves out every text that a model wrote, and the training rows, so that the file can be shared.
        """
        from persona_geometry.report import write_report

        return write_report(self, self.folder / "report.html" if path is None else Path(path), no_text=no_text)

    def figure(self) -> Any:
        """The headline as a Plotly figure: misaligned answers out of domain, by model."""
        from persona_geometry.report.figures import rates_figure

        return rates_figure(self.summary.get("rates", {}), where="out_of_domain", what="misaligned")

    def __repr__(self) -> str:
        verdict = self.summary.get("verdict") or {}
        return f"Study({str(self.folder)!r}: {verdict.get('answer', 'no verdict')}, {len(self.tables)} tables)"

    def _repr_html_(self) -> str:
        from persona_geometry.report.notebook import study_html

        return study_html(self)
