"""`persona-geometry organism spillover`: what training on bad advice does to harmful latents, foretold and measured."""

from pathlib import Path
from typing import Annotated

import typer

from persona_geometry.commands.organism_options import Seeds, numbers

SHOWN = ("arm", "seed", "latents", "form", "n", "spearman", "low", "high", "random_low", "random_high")


def spillover(
    tunes: Annotated[
        Path, typer.Option(help="Folder of the base's fine-tunes, the card's own; missing ones are trained.")
    ] = Path("runs/organism-card/base-0"),
    sae: Annotated[Path | None, typer.Option(help="Folder of an SAE of the base (default: the shipped one).")] = None,
    arms: Annotated[str, typer.Option(help="Fine-tunes: misaligned (medicine), second (money).")] = "misaligned",
    seeds: Seeds = "0,1,2",
    out: Annotated[Path | None, typer.Option(help="File for the table, as Parquet.")] = None,
) -> None:
    """Print Spearman of forecast and measured change over harmful latents; two minutes of a core a fine-tune."""
    from persona_geometry.commands.terminal import settle
    from probes.errors import InputError

    chosen, names = tuple(numbers(seeds, int, "--seeds")), tuple(arms.split(","))
    settle()
    import torch

    from persona_geometry.organism.shipped import WEIGHTS
    from persona_geometry.organism.spillover_table import DOMAINS, Room, spillover_table
    from probes.io import atomic_file

    unknown = [name for name in names if name not in DOMAINS]
    if unknown:
        raise InputError(f"--arms {unknown[0]}: use some of {', '.join(DOMAINS)}")
    torch.set_num_threads(1)
    room = Room(tunes, lambda line: print(line, flush=True), sae or WEIGHTS / "sae", names, chosen)
    table = spillover_table(room)
    print(table[list(SHOWN)].round(3).to_string(index=False))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as file:
            table.to_parquet(file, index=False)
        print(out)
