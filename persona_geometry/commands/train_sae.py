"""`persona-geometry train-sae`: SAEs on a store of activations, one a block and seed, alone or under torchrun."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from saes import TrainingRecord

ARCHITECTURES = "topk, batchtopk, matryoshka_batchtopk, jumprelu, gated, standard"
FIGURE = "training.html"


def train_sae(
    store: Annotated[Path, typer.Argument(help="A store of single tokens, as `persona-geometry capture` makes it.")],
    out: Annotated[Path, typer.Option(help="Folder; each SAE gets one of its own in it: layer_3_seed_0.")],
    layers: Annotated[str, typer.Option("--layers", "--layer", help="Blocks, 0-based: `8`, `0,4,8` or `10-20`.")],
    architecture: Annotated[str, typer.Option(help=f"One of {ARCHITECTURES}.")] = "topk",
    seeds: Annotated[str, typer.Option("--seeds", "--seed", help="Seeds of the first weights: `0` or `0,1,2`.")] = "0",
    d_sae: Annotated[int | None, typer.Option(help="Latents (default: 16 a dimension, fewer for few rows).")] = None,
    k: Annotated[int | None, typer.Option(help="Active latents a row (default: about the root of the width).")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Price of a latent: jumprelu, gated, standard.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Batches (default: a pass; 2,000 or 20 passes of few rows).")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (default: by the number of latents).")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows a step (default: 256 to 4,096).")] = None,
    where: Annotated[str | None, typer.Option(help="Tokens: all, response or prompt.")] = None,
    skip_first: Annotated[int | None, typer.Option(help="Leave out so many tokens at a conversation's start.")] = None,
    max_norm: Annotated[
        float | None, typer.Option(help="Leave out rows so many times the median norm; 0 keeps all (default: 10).")
    ] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of conversations that test (default: 0.02).")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps; under torchrun `cuda` means one GPU a process.")] = "cpu",
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace SAEs that are there, begun or done.")] = False,
) -> None:
    """Train SAEs on a store, every block and seed in one pass over it; after a break the same command goes on."""
    named = {"d_sae": d_sae, "k": k, "sparsity": sparsity, "steps": steps, "lr": lr, "batch": batch}
    named |= {"where": where, "skip_first": skip_first, "held_out": held_out, "max_norm": max_norm}
    settings: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if max_norm == 0:
        settings["max_norm"] = None
    _check(architecture, where)
    from persona_geometry.commands.blocks import named_blocks
    from persona_geometry.commands.terminal import Bar, settle
    from probes.store import ActivationStore

    blocks, drawn, opened = named_blocks(layers), _seeds(seeds), ActivationStore.open(store)
    settle()
    from saes import TrainingRecord, train_saes

    rank, processes, local = (int(os.environ.get(name, default)) for name, default in _TORCHRUN.items())
    with Bar() if rank == 0 else nullcontext() as bar:
        shown = {} if bar is None else {"progress": bar}
        found = train_saes(
            opened,
            layers=blocks,
            seeds=drawn,
            out=out,
            architecture=architecture,
            device=f"cuda:{local}" if device == "cuda" else device,
            checkpoint_every=checkpoint_every,
            fresh=fresh,
            share=(rank, processes),
            **shown,
            **settings,
        )
    for layer, seed in found:
        print(_line(TrainingRecord.open(out / f"layer_{layer}_seed_{seed}")))
    if found:
        _draw(out)


#: What torchrun says in the environment, and what holds without it.
_TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def _check(architecture: str, where: str | None) -> None:
    """What can be known to be wrong before anything heavy is imported."""
    from probes.errors import InputError

    if architecture not in ARCHITECTURES.split(", "):
        raise InputError(f"--architecture {architecture}: use one of {ARCHITECTURES}")
    if where not in (None, "all", "response", "prompt"):
        raise InputError(f"--where {where}: use all, response or prompt")


def _seeds(text: str) -> list[int]:
    from probes.errors import InputError

    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise InputError(f"--seeds {text}: give whole numbers by commas, such as 0 or 0,1,2") from None


def _line(record: TrainingRecord) -> str:
    """What one SAE came to."""
    from saes.train.record import with_limits

    told, rows = record.held_out, f"{record.rows['kept']:,} of {record.rows['rows']:,} rows looked at were kept"
    if told is None:
        return f"{record.name}: {rows}; no conversations were held out: {record.folder}"
    return (
        f"{record.name}: on {told['n']:,} rows held out {with_limits(told['fvu'], '.1%')} of the variance unexplained, "
        f"{with_limits(told['l0'], '.1f')} latents a row, {told['dead']:.1%} never active; {rows}: {record.folder}"
    )


def _draw(out: Path) -> None:
    """The figure of all SAEs that are done in the folder; the last of several processes sees them all."""
    from filelock import FileLock

    from probes.io import atomic_file
    from probes.theme import CONFIG
    from saes import TrainingRecord
    from saes.figures.training import training_figure

    with FileLock(out / f".{FIGURE}.lock"), atomic_file(out / FIGURE) as file:
        training_figure(TrainingRecord.all_in(out)).write_html(file, config=CONFIG, include_plotlyjs=True)
    print(out / FIGURE)
