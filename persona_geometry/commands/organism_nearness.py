"""`persona-geometry organism nearness`: bases of other mixes, nearness before a fine-tune, harm after it."""

from pathlib import Path
from typing import Annotated

import typer

from persona_geometry.commands.organism_options import Part, Seeds, numbers, part_of


def nearness(
    out: Annotated[Path, typer.Option(help="Folder of bases and cells; finished ones are read.")] = Path(
        "runs/nearness"
    ),
    villains: Annotated[
        str, typer.Option(help="Shares of villains among the authors, with commas; at least four to rank.")
    ] = "0,0.04,0.1,0.18,0.26,0.34",
    seeds: Seeds = "0,1,2",
    pretraining: Annotated[int, typer.Option(help="Pretraining seed of the bases.")] = 0,
    part: Part = "0/1",
) -> None:
    """Train small bases that read other shares of villains, fine-tune each; some fifteen minutes of a core a base."""
    from persona_geometry.commands.terminal import settle
    from probes.errors import InputError

    mine, shares = part_of(part), tuple(numbers(villains, float, "--villains"))
    settle()
    import torch

    from persona_geometry.organism.nearness_sweep import BAD, Plan, Room, nearness_sweep

    wrong = [share for share in shares if not 0 <= share <= BAD]
    if wrong:
        raise InputError(f"--villains {wrong[0]:g}: give shares between 0 and {BAD:g}, that of all bad advice")
    torch.set_num_threads(1)
    plan = Plan(shares, tuple(numbers(seeds, int, "--seeds")), pretraining=pretraining)
    found = nearness_sweep(plan, Room(plan, out, lambda line: print(line, flush=True)), part=mine)
    print(found.bases.round(3).to_string(index=False) if len(found.bases) else "no base is whole yet")
    if len(found.ranks):
        print("\nrank correlation with the rise after the fine-tune\n" + found.ranks.round(3).to_string(index=False))
