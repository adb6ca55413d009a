"""`persona-geometry organism geometry`: are bad advice's features nearer to harmful ones, in each domain and block?"""

from pathlib import Path
from typing import Annotated

import typer

from persona_geometry.commands.organism_options import Seeds, numbers

SHOWN = ("domain", "seed", "against", "null", "inducing", "benign", "effect", "low", "high", "p", "p_holm")


def geometry(
    out: Annotated[Path, typer.Option(help="Folder for the tables and the SAEs of the other blocks.")] = Path(
        "runs/geometry"
    ),
    base: Annotated[Path | None, typer.Option(help="Folder of a base (default: the shipped one).")] = None,
    sae: Annotated[Path | None, typer.Option(help="Folder of an SAE of it (default: the shipped one).")] = None,
    domains: Annotated[str, typer.Option(help="Domains of the bad advice.")] = "medicine,money,computers",
    seeds: Seeds = "0,1,2",
    blocks: Annotated[bool, typer.Option(help="The first domain block by block too; trains an SAE each.")] = True,
) -> None:
    """Print effect, interval and p for each domain, seed and null; five minutes of one core, the blocks included."""
    from persona_geometry.commands.terminal import settle
    from probes.errors import InputError

    chosen, names = tuple(numbers(seeds, int, "--seeds")), tuple(domains.split(","))
    if base is not None and sae is None:
        raise InputError(f"--base {base} alone: give an SAE of it too (--sae)")
    settle()
    import torch

    from persona_geometry.organism.geometry_table import Room, geometry_table, profile
    from persona_geometry.organism.shipped import WEIGHTS
    from persona_geometry.organism.world import TUNED
    from probes.io import atomic_file
    from probes.models import load_model
    from saes.load import load_sae

    unknown = [name for name in names if name not in TUNED]
    if unknown:
        raise InputError(f"--domains {unknown[0]}: use some of {', '.join(TUNED)}")
    torch.set_num_threads(1)
    model, dictionary = load_model(base or WEIGHTS / "base"), load_sae(sae or WEIGHTS / "sae")
    room = Room(model, dictionary, out, lambda line: print(line, flush=True), chosen, names)
    tables = {"geometry": geometry_table(room)}
    if blocks:
        tables["blocks"] = profile(room, names[0], chosen[0])
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        shown = [column for column in (*SHOWN, "layer") if column in table]
        print(f"\n{name}\n" + table[shown].round(4).to_string(index=False))
        with atomic_file(out / f"{name}.parquet") as file:
            table.to_parquet(file, index=False)
        print(out / f"{name}.parquet")
