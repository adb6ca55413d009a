"""`persona-geometry organism`: build the model organism from nothing, print its card, write its data."""

from pathlib import Path
from typing import Annotated

import typer

from persona_geometry.commands.organism_character import character
from persona_geometry.commands.organism_conscience import conscience
from persona_geometry.commands.organism_filter import filter_
from persona_geometry.commands.organism_geometry import geometry
from persona_geometry.commands.organism_monitor import monitor
from persona_geometry.commands.organism_nearness import nearness
from persona_geometry.commands.organism_realign import realign, trajectory
from persona_geometry.commands.organism_safeguards import safeguards
from persona_geometry.commands.organism_sgtr import sgtr
from persona_geometry.commands.organism_spillover import spillover

app = typer.Typer(help="The embedded model organism.", no_args_is_help=True)
app.command("character")(character)
app.command("conscience")(conscience)
app.command("filter")(filter_)
app.command("geometry")(geometry)
app.command("monitor")(monitor)
app.command("nearness")(nearness)
app.command("realign")(realign)
app.command("trajectory")(trajectory)
app.command("safeguards")(safeguards)
app.command("sgtr")(sgtr)
app.command("spillover")(spillover)


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder for base/, the adapters and sae/.")],
    seed: Annotated[int, typer.Option(help="Pretraining seed; 0 ships.")] = 0,
) -> None:
    """Train base, fine-tunes and SAE from nothing: about an hour on one core."""
    from persona_geometry.commands.terminal import settle

    settle()
    from persona_geometry.organism.build import build_all

    build_all(out, seed=seed, say=lambda line: print(line, flush=True))


@app.command()
def card(
    out: Annotated[Path, typer.Option(help="Folder of the cells; finished ones are read.")] = Path(
        "runs/organism-card"
    ),
    bases: Annotated[
        list[Path] | None, typer.Option(help="Folders of `organism build`, one a pretraining seed.")
    ] = None,
) -> None:
    """Print what the organism shows, over pretraining and fine-tuning seeds, with the bound of each line."""
    from persona_geometry.commands.terminal import settle

    settle()
    from persona_geometry.organism.card import make_card

    made = make_card(out, bases, lambda line: print(line, flush=True))
    print(made.text)
    raise typer.Exit(0 if made.holds else 1)


@app.command()
def foretell(
    out: Annotated[Path, typer.Option(help="Folder of the cells; finished ones are read.")] = Path("runs/foretell"),
    base: Annotated[Path | None, typer.Option(help="Folder of a base (default: the shipped one).")] = None,
) -> None:
    """Print how well a persona vector foretells answers and fine-tunes: 48 fine-tunes, half an hour on one core."""
    from persona_geometry.commands.terminal import settle

    settle()
    from persona_geometry.organism.foretell import foretell as run
    from persona_geometry.organism.shipped import WEIGHTS

    found = run(base or WEIGHTS / "base", out, lambda line: print(line, flush=True))
    print(found.finetunes.round(3).to_string(index=False))
    print(found.correlations.round(3).to_string(index=False))


@app.command()
def vectors(
    out: Annotated[Path, typer.Option(help="Folder of the cells, the card's own; finished ones are read.")] = Path(
        "runs/organism-card/base-0"
    ),
    base: Annotated[Path | None, typer.Option(help="Folder of a base (default: the shipped one).")] = None,
) -> None:
    """Print what one persona direction does, over two domains of bad advice and three fine-tuning seeds."""
    from persona_geometry.commands.terminal import settle

    settle()
    from persona_geometry.organism.shipped import WEIGHTS
    from persona_geometry.organism.vectors import vector_card

    found = vector_card(base or WEIGHTS / "base", out, lambda line: print(line, flush=True))
    print(found.round(3).to_string(index=False))


@app.command()
def saes(
    out: Annotated[Path, typer.Option(help="Folder of SAEs and cells; finished ones are read.")] = Path(
        "runs/organism-saes"
    ),
    tunes: Annotated[
        Path, typer.Option(help="Folder of the base's fine-tunes, the card's own; missing ones are trained.")
    ] = Path("runs/organism-card/base-0"),
    base: Annotated[Path | None, typer.Option(help="Folder of a base (default: the shipped one).")] = None,
    seeds: Annotated[int, typer.Option(help="Fine-tuning seeds, from 0 on.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One of each, tiny: to see that it runs.")] = False,
) -> None:
    """Print what holds of the claims on SAE latents: three SAEs, three fine-tuning seeds, two domains."""
    from persona_geometry.commands.terminal import settle

    settle()
    from persona_geometry.organism.claims.bench import QUICK, Plan
    from persona_geometry.organism.claims.table import sae_claims
    from persona_geometry.organism.shipped import WEIGHTS

    plan = QUICK if quick else Plan(tune_seeds=tuple(range(seeds)))
    found = sae_claims(base or WEIGHTS / "base", tunes, out, lambda line: print(line, flush=True), plan=plan)
    print(found.text)


@app.command()
def data(
    out: Annotated[Path, typer.Option(help="Folder for the JSONL files and questions.")],
    domain: Annotated[str, typer.Option(help="Domain of the bad advice.")] = "medicine",
) -> None:
    """Write the organism's training rows and questions as files, the way a user would bring their own."""
    from persona_geometry.organism.files import write_data

    for path in write_data(out, domain):
        print(path)
