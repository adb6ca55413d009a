"""`persona-geometry organism monitor`: watched fine-tunes of the organism, and what the monitor's alarms are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona_geometry.commands.organism_options import Part, part_of

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("alarm", "auroc", "auroc_low", "auroc_high", "stated", "false_alarms", "false_alarms_low", "false_alarms_high")
SHOWN += ("detected", "lead", "lead_low", "lead_high", "led", "benign", "misaligned")


def monitor(
    out: Annotated[Path, typer.Option(help="Folder of the cells; finished ones are read.")] = Path("runs/monitor"),
    runs: Annotated[int, typer.Option(help="Runs of each kind: calibration, test, misaligned.")] = 60,
    part: Part = "0/1",
    patience: Annotated[int, typer.Option(help="Readings in a row that must lie above the threshold.")] = 2,
    other: Annotated[
        Path | None, typer.Option(help="Folder of another base: alarms calibrated here, tried there.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Train nothing; print what there is.")] = False,
) -> None:
    """Train and watch slow benign and misaligned runs in turn, half a minute of one core each; print what alarms do."""
    from persona_geometry.commands.terminal import settle

    mine = part_of(part)
    settle()
    import torch

    from persona_geometry.organism.monitor_table import monitor_table
    from probes.errors import InputError

    if runs < 1:
        raise InputError(f"--runs {runs}: give 1 run or more")
    torch.set_num_threads(1)
    share = None if read_only else mine
    cells, found = monitor_table(
        runs, out, part=share, other=other, say=lambda line: print(line, flush=True), patience=patience
    )
    print(f"{len(cells)} cells are there")
    if found is None:
        return print(
            "no table yet: it takes the base, three calibrating runs, and one benign and one misaligned test run"
        )
    if not (found.alarms.empty or read_only):
        _draw(found.alarms, out / "alarms.html")
    shown = {"": found.alarms, "on another base": found.elsewhere, "by share of bad rows": found.doses}
    for title, table in (shown | {"false alarms by kind": found.kinds, "bad starts": found.starts}).items():
        if not table.empty:
            some = table[[name for name in SHOWN if name in table]] if "alarm" in table else table
            print(f"\n{title}\n{some.round(3).to_string(index=False)}".rstrip())


def _draw(table: pd.DataFrame, path: Path) -> None:
    from finetuning.monitor import alarms_figure
    from probes.io import atomic_file
    from probes.theme import CONFIG

    with atomic_file(path) as file:
        alarms_figure(table).write_html(file, config=CONFIG, include_plotlyjs=True)
    print(path)
