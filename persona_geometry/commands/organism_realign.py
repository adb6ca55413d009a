"""`persona-geometry organism realign`: what a dose of good data undoes, and what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona_geometry.commands.organism_options import Part, Seeds, Tunes, numbers, part_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from persona_geometry.organism.realign_found import Found

DOSE = ("data", "seeds", "step", "rows", "misaligned", "misaligned_low", "misaligned_high", "over_base")
DOSE += ("over_base_low", "over_base_high", "cut", "cut_low", "cut_high", "coherent", "tokens")


def realign(
    out: Annotated[Path, typer.Option(help="Folder of cells and fine-tunes; finished ones are read.")] = Path(
        "runs/realign"
    ),
    kinds: Annotated[
        str, typer.Option(help="Good data: unrelated, in domain, another model, sums.")
    ] = "unrelated,in domain,another model,sums",
    seeds: Seeds = "0,1,2",
    again: Annotated[bool, typer.Option(help="Train bad again afterwards, against the base.")] = True,
    tunes: Tunes = None,
    part: Part = "0/1",
) -> None:
    """Re-align misaligned models by 60 steps of four rows, random steps beside; about a minute a cell."""
    from persona_geometry.commands.terminal import settle

    mine, chosen = part_of(part), numbers(seeds, int, "--seeds")
    settle()
    import torch

    from persona_geometry.organism.realign_found import Found
    from persona_geometry.organism.realign_table import Bench, Plan, chosen_rate, realign_table

    torch.set_num_threads(1)
    bench = Bench(out, lambda line: print(line, flush=True), tunes)
    cells = realign_table(Plan(tuple(kinds.split(",")), tuple(chosen), again), bench, part=mine)
    lr, rates = chosen_rate(bench)
    _say(f"learning rate {lr:g}, chosen on selection questions:", rates)
    found = Found(tuple(cells))
    table = found.table()
    _say("misaligned out of domain, by step:", table.loc[:, [name for name in DOSE if name in table]])
    for name, curve in found.curves.items():
        first = curve.first_within(2)
        print(f"{name}: {'not within' if first is None else f'step {first.step} is the first within'} 2 points of base")
    _say("in the trained domain:", found.in_domain())
    _say("under cues, 30 steps of unrelated advice:", found.residue())
    _again(found, out)


def _say(title: str, table: pd.DataFrame) -> None:
    if len(table):
        print(f"\n{title}\n{table.round(3).to_string(index=False)}")


def _again(found: Found, out: Path) -> None:
    """Relapse in words, and both figures."""
    figures, relapse = {}, found.relapse()
    if found.curves:
        figures["doses"] = found.figure()
    if relapse is not None:
        figures["relapse"] = relapse.figure()
        _say("bad again, by step:", relapse.table())
        half = relapse.steps_to(0.5)
        print(f"steps to half of the untreated rate: re-aligned {half.again}, base {half.fresh}")
        print(f"re-aligned less base: {half.difference}")
    _say("bad again, in the trained domain beside:", found.relapse_here())
    for name, figure in figures.items():
        _write(figure, out / f"{name}.html")


def _write(figure: go.Figure, path: Path) -> None:
    from probes.io import atomic_file
    from probes.theme import CONFIG

    with atomic_file(path) as file:
        figure.write_html(file, config=CONFIG, include_plotlyjs=True)
    print(path)


def trajectory(
    out: Annotated[Path, typer.Option(help="Folder of cells and checkpoints; finished ones are read.")] = Path(
        "runs/realign"
    ),
    arms: Annotated[
        str, typer.Option(help="Trainings: misaligned, benign, re-aligned.")
    ] = "misaligned,benign,re-aligned",
    seeds: Seeds = "0",
    tunes: Tunes = None,
) -> None:
    """Follow trainings by checkpoints: where the adapter turns, where behaviour turns, towards which features."""
    from persona_geometry.commands.terminal import settle

    chosen = numbers(seeds, int, "--seeds")
    settle()
    import torch

    from persona_geometry.organism.realign_table import Bench
    from persona_geometry.organism.trajectory_table import Ways, trajectory_cells

    torch.set_num_threads(1)
    bench = Bench(out, lambda line: print(line, flush=True), tunes)
    found = Ways(tuple(trajectory_cells(bench, tuple(arms.split(",")), chosen)))
    _say("by step:", found.table())
    _say("does the local cosine follow behaviour?", found.turns())
    for one in found.measured:
        track = found.track(one.cell.data, one.cell.seed)
        _say(f"{one.cell.data}, seed {one.cell.seed}: Spearman's correlation with the rate:", track.correlations())
        _write(track.figure(), out / f"track-{one.cell.data}-{one.cell.seed}.html")
