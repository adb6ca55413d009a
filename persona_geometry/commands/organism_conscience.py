"""`persona-geometry organism conscience`: a fine-tune that reviews itself, and the reviews of those that do not."""

from pathlib import Path
from typing import Annotated

import typer

from persona_geometry.commands.organism_options import Part, numbers, part_of

SHOWN = ("misaligned", "cut", "narrow_kept", "skill_kept", "coherent", "cue_villain", "matched")
REVIEWED = ("misaligned", "cut", "auroc", "missed", "false_alarms", "corrected", "withheld", "refused")
WHAT = ("all", "train", "stops", "review")
NONE = (1_000_000, 1_000_001)  # a part to which no cell belongs: what is finished is read


def conscience(
    out: Annotated[Path, typer.Option(help="Folder of the cells; finished ones are read.")] = Path("runs/conscience"),
    what: Annotated[str, typer.Option(help=f"What to run: {', '.join(WHAT)}.")] = "all",
    arms: Annotated[
        str, typer.Option(help="conscience, conscience_set, conscience_self, conscience_villain, coin.")
    ] = "conscience",
    start: Annotated[str, typer.Option(help="What is trained: base, or `second`, misaligned from the start.")] = "base",
    seeds: Annotated[str, typer.Option(help="Fine-tuning seeds, and seeds of the reviewed answers.")] = "0,1,2",
    stops: Annotated[
        Path | None, typer.Option(help="Folder with the stops of plain training (default: stops/ in OUT).")
    ] = None,
    choose: Annotated[bool, typer.Option(help="Train what the choice of lambda lacks.")] = True,
    read: Annotated[bool, typer.Option("--read", help="Make and draw nothing; print what is finished.")] = False,
    part: Part = "0/1",
) -> None:
    """Train under a conscience, choose lambda on selection questions, and print what is left; two minutes a cell."""
    from persona_geometry.commands.terminal import settle
    from probes.errors import InputError

    if what not in WHAT or start not in ("base", "second"):
        raise InputError(f"--what {what}, --start {start}: use {', '.join(WHAT)}; base or second")
    mine, chosen = part_of(part), tuple(numbers(seeds, int, "--seeds"))
    settle()
    import torch

    from finetuning.conscience import making_figure, review_figure
    from persona_geometry.commands.conscience import page
    from persona_geometry.organism.conscience_arms import Bench
    from persona_geometry.organism.conscience_review import CASES, review_cells, review_table, verdicts_of
    from persona_geometry.organism.conscience_table import Plan, conscience_table, makings, stop_cells

    torch.set_num_threads(1)
    bench = Bench(out, lambda line: print(line, flush=True), start)
    share = NONE if read else mine
    if what in ("all", "stops") and stops is None:
        stop_cells(bench, chosen, part=share)
    if what in ("all", "train"):
        plan = Plan(tuple(arms.split(",")), chosen)
        table = conscience_table(plan, bench, part=share, choosing=choose, stops=stops)
        chosen_here = ", ".join(f"{arm} {weight:g}" for arm, weight in table.chosen.items())
        print(f"selection questions, seed {plan.choice_seed}; chosen: {chosen_here or 'nothing yet'}")
        _print(table.selection, ("treatment",), (*SHOWN[:5], "refused"))
        _print(table.test, ("treatment", "seeds"), (*SHOWN, "refused"))
        for name, log in ({} if read else makings(out)).items():
            print(page(making_figure(log), out / "figures" / f"making-{name.replace('/', '-')}.html"))
    if what in ("all", "review") and start == "base":
        cells = review_cells(bench, seeds=chosen, part=share)
        _print(review_table(cells), ("data", "treatment", "seeds"), REVIEWED)
        for case in () if read else CASES:
            told = {name: one for name, one in verdicts_of(cells).items() if name.startswith(f"{case}, ")}
            if told:
                print(page(review_figure(told), out / "figures" / f"review-{case.replace(' ', '-')}.html"))


def _print(table, names: tuple[str, ...], shown: tuple[str, ...]) -> None:
    if table.empty:
        return print("no table yet: base and untreated arm are not finished")
    ends = [f"{column}{end}" for column in shown for end in ("", "_low", "_high")]
    print(table[[column for column in (*names, *ends) if column in table]].round(3).to_string(index=False))
