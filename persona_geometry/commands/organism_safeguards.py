"""`persona-geometry organism safeguards`: which safeguard keeps a fine-tune narrow, beside early stopping."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persona_geometry.commands.organism_options import Part, numbers, part_of

if TYPE_CHECKING:
    from finetuning.compare import SafeguardTable

RATES = ("misaligned", "cut", "in_domain", "narrow_kept", "skill", "skill_kept", "coherent", "coherent_kept")
BESIDE = ("matched", "matched_step", "sure_low", "sure_high", "rank", "rank_low", "rank_high", "front")
VERDICTS = ("no_em", "narrow", "skilled", "clear", "stopping")


def safeguards(
    out: Annotated[Path, typer.Option(help="Folder of the cells; finished ones are read.")] = Path("runs/safeguards"),
    treatments: Annotated[
        str | None, typer.Option(help="Some of the treatments, with commas; default all. Others keep their cells.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Fine-tuning seeds whose figures are quoted.")] = "0,1,2",
    part: Part = "0/1",
    choosing: Annotated[bool, typer.Option(help="Sweep strengths that were not swept yet.")] = True,
    costs: Annotated[bool, typer.Option("--costs", help="Time a step of each treatment first, in one run.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Train nothing; print what there is.")] = False,
) -> None:
    """Sweep strengths on seed 9, measure the chosen ones on other seeds, print the criteria; two minutes a cell."""
    from persona_geometry.commands.terminal import settle

    share, chosen = part_of(part), numbers(seeds, int, "--seeds")
    settle()
    import torch

    from finetuning.compare import read_sweep
    from persona_geometry.organism.safeguard_arms import Bench
    from persona_geometry.organism.safeguard_table import Plan, costs_of, safeguard_table, share_by_share

    torch.set_num_threads(1)
    plan = Plan(seeds=tuple(chosen)) if treatments is None else Plan(tuple(treatments.split(",")), tuple(chosen))
    bench = Bench(out, lambda line: print(line, flush=True))
    if costs:
        show_costs(costs_of(bench, plan), out)
    if not read_only:
        safeguard_table(plan, bench, part=share, choosing=choosing)
    found = read_sweep(out)
    show(found, None if read_only else out)
    shares = share_by_share(found.cells["test"])
    if not shares.empty:
        print("\ninterleaving by perplexity gap less at random\n" + shares.round(3).to_string(index=False))


def show(found: SafeguardTable, out: Path | None) -> None:
    """Print the choice, the figures with their intervals, and the verdicts; write tables and figures to `out`."""
    if found.selection.empty and found.test.empty:
        return print("no table yet: it takes a base and an untreated cell of the same seed")
    for title, table in (("selection questions, choice seed", found.selection), ("test questions", found.test)):
        if not table.empty:
            rows = table.set_index("treatment")
            print(f"\n{title}, seeds {int(table['seeds'].to_numpy().max())}: {', '.join(RATES)}")
            for name, row in rows.iterrows():
                print(f"{name!s:24s}" + "  ".join(_figure(row, what) for what in RATES if what in rows))
    if found.chosen:
        print("\nchosen: " + ", ".join(found.chosen.values()))
    if not found.test.empty:
        columns = ["treatment", *(name for name in (*BESIDE, *VERDICTS) if name in found.test)]
        print("\n" + found.test[columns].round(3).to_string(index=False))
        cues = [name for name in found.test if name.startswith("cue_")]
        if cues:
            print("\n" + found.test[["treatment", *cues]].round(3).to_string(index=False))
    for path in write(found, out) if out else ():
        print(path)


def _figure(row, name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{'-':>20s}" if value != value else f"{value:6.3f} [{low:5.3f}, {high:5.3f}]"


def write(found: SafeguardTable, out: Path) -> list[Path]:
    """The tables as Parquet and, where there is enough to draw, both figures as pages."""
    from finetuning.figures import criteria_figure, stopping_figure
    from probes.errors import InputError
    from probes.io import atomic_file
    from probes.theme import CONFIG

    written = []
    for name, table in (("selection", found.selection), ("test", found.test)):
        if not table.empty:
            with atomic_file(out / f"{name}.parquet") as file:
                table.to_parquet(file, index=False)
            written.append(out / f"{name}.parquet")
    for name, draw in (("stopping", stopping_figure), ("criteria", criteria_figure)):
        try:
            figure = draw(found.test)
        except InputError:  # too little is measured to be drawn
            continue
        with atomic_file(out / f"{name}.html") as file:
            figure.write_html(file, config=CONFIG, include_plotlyjs=True)
        written.append(out / f"{name}.html")
    return written


def show_costs(table, out: Path) -> None:
    """Print what a step costs and keep it as `costs.json`."""
    from probes.io import write_json

    print(table.dropna(axis=1, how="all").round(3).to_string(index=False))
    write_json(out / "costs.json", table.dropna(axis=1, how="all").to_dict("records"))
