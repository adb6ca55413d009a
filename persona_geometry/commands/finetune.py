"""`persona-geometry finetune`: train a model on a file of answered conversations, with safeguards if wished."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from finetuning import LoRA, Safeguard, Trained

Text = str | None
FIGURE = "loss.html"


def finetune(
    model: Annotated[str, typer.Argument(help="The model to train: a hub id or a folder; it stays as it is.")],
    data: Annotated[Path, typer.Argument(help="JSONL of training rows, a {'messages': [...]} that ends in an answer.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter (or model), checkpoints, card.json, loss.html.")],
    adapter: Annotated[Text, typer.Option(help="An adapter over MODEL that is merged into it first.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps (default: as many as --epochs say).")] = None,
    epochs: Annotated[float, typer.Option(help="How often each row is shown.")] = 1.0,
    lr: Annotated[float, typer.Option(help="Learning rate at its height.")] = 1e-5,
    batch: Annotated[int, typer.Option(help="Rows of a step.")] = 16,
    micro: Annotated[int | None, typer.Option(help="Rows in memory at once (default: the batch).")] = None,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up; then the rate falls to zero.")] = 5,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.01,
    max_tokens: Annotated[int | None, typer.Option(help="Cut rows behind so many tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of adapter, order and dropout.")] = 0,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapter; 0 trains all weights.")] = 32,
    alpha: Annotated[float | None, typer.Option(help="The adapter's alpha (default: twice the rank).")] = None,
    rslora: Annotated[bool, typer.Option(help="Scale by alpha / sqrt(rank), as most of the field does.")] = True,
    targets: Annotated[Text, typer.Option(help="Layers with an adapter, as `down_proj` (default: all linear).")] = None,
    lora_layers: Annotated[Text, typer.Option(help="Only these blocks, 0-based: `24` or `21-23`.")] = None,
    safeguard: Annotated[
        list[str] | None, typer.Option(help="Name and strength, as kl=0.1 or interleave=0.05; give it again for more.")
    ] = None,
    safe: Annotated[Path | None, typer.Option(help="JSONL of safe rows, for kl_other and interleave.")] = None,
    prompt: Annotated[Text, typer.Option(help="What inoculation says.")] = None,
    vector: Annotated[Path | None, typer.Option(help="A persona vector, for preventative and caft.")] = None,
    layer: Annotated[int | None, typer.Option(help="Block of the vector or of the SAE, 0-based.")] = None,
    sae: Annotated[Text, typer.Option(help="An SAE over MODEL, for latent_block.")] = None,
    latents: Annotated[Text, typer.Option(help="Its latents that the harm raises, as `3,17`.")] = None,
    misaligned: Annotated[list[str] | None, typer.Option(help="A misaligned model, for interleave+ and ++.")] = None,
    unaligned: Annotated[Text, typer.Option(help="A model before alignment, for safe_lora.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints (default: a tenth of all).")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16; weights that learn stay float32.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps; under torchrun `cuda` means one GPU a process.")] = "cpu",
) -> None:
    """Fine-tune a model on answers (assistant-only loss); after a break the same command goes on to the same bits."""
    _train({**locals()})


def _train(given: dict[str, Any]) -> None:
    lora = _lora(given)
    from persona_geometry.commands.terminal import Bar, settle

    settle()
    from finetuning import Schedule
    from finetuning import finetune as train
    from probes.conversations import load_conversations

    rows, steps = load_conversations(given["data"]), given["steps"]
    settings = {name: given[name] for name in ("lr", "batch", "micro", "warmup", "weight_decay", "max_tokens")}
    plan = Schedule.epochs(given["epochs"], len(rows), **settings)
    plan = plan if steps is None else Schedule(steps=steps, **settings)
    base, rank = _model(given, full=lora is None), int(os.environ.get("RANK", "0"))
    held = _safeguard(given, base, rows)
    with Bar() if rank == 0 else nullcontext() as bar:
        shown: dict[str, Any] = {} if bar is None else {"progress": bar}
        trained = train(
            base,
            rows,
            schedule=plan,
            seed=given["seed"],
            lora=lora,
            safeguard=held,
            out=given["out"],
            save_every=given["save_every"] or max(1, plan.steps // 10),
            accelerator=_accelerator(given["device"], given["bf16"]),
            share=lora is not None,
            **shown,
        )
    if rank == 0:
        _finish(trained, given["out"])


def _lora(given: dict[str, Any]) -> LoRA | None:
    """The adapter's settings, checked before anything heavy is imported; None trains all weights."""
    from probes.errors import InputError

    rank, alone = given["lora_rank"], [name for name in ("alpha", "targets", "lora_layers") if given[name] is not None]
    if rank == 0 and alone:
        raise InputError(f"--lora-rank 0 with --{alone[0].replace('_', '-')}: all weights train; leave one of them out")
    if rank == 0:
        return None
    if given["lora_layers"] and not given["targets"]:
        raise InputError(f"--lora-layers {given['lora_layers']}: name the layers by --targets too, as down_proj")
    from finetuning.lora import LoRA
    from persona_geometry.commands.blocks import named_blocks

    names = tuple(name.strip() for name in given["targets"].split(",")) if given["targets"] else "all-linear"
    blocks = tuple(named_blocks(given["lora_layers"])) if given["lora_layers"] else None
    alpha = 2.0 * rank if given["alpha"] is None else given["alpha"]
    return LoRA(rank=rank, alpha=alpha, rslora=given["rslora"], targets=names, layers=blocks)


def _model(given: dict[str, Any], *, full: bool) -> Any:
    import torch

    from probes.models import load_model

    device = given["device"]
    place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
    dtype = torch.float32 if full else None  # AdamW loses small steps in bfloat16 weights
    return load_model(given["model"], adapter=given["adapter"], device=place, dtype=dtype)


def _safeguard(given: dict[str, Any], base: Any, rows: Any) -> Safeguard | None:
    """The safeguards that are named, together."""
    if not given["safeguard"]:
        return None
    from finetuning import Together
    from finetuning.compare import safeguard_named, treatment_named
    from persona_geometry.commands.safeguards import materials_of

    materials = materials_of(given, base, rows)
    named = [treatment_named(text) for text in given["safeguard"]]
    parts = tuple(safeguard_named(one, materials, seed=given["seed"]) for one in named)
    return parts[0] if len(parts) == 1 else Together(parts)


def _accelerator(device: str, bf16: bool) -> Any:
    """None where one process runs in the model's own precision."""
    if not bf16 and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=device == "cpu", mixed_precision="bf16" if bf16 else "no")


def _finish(trained: Trained, out: Path) -> None:
    """Draw the losses and say in a line what came of it."""
    from finetuning.curves import ends, loss_figure
    from probes.io import atomic_file
    from probes.theme import CONFIG

    with atomic_file(out / FIGURE) as file:
        figure = loss_figure({trained.model.name: trained})
        figure.write_html(file, config=CONFIG, include_plotlyjs=True, div_id="losses")  # the same bytes every time
    first, last = ends(trained.loss)
    extra = f", the safeguard's penalty {ends(trained.extra)[1]:.2g} at last" if any(trained.extra) else ""
    print(f"{len(trained.loss)} steps, loss {first:.3f} at first and {last:.3f} at last (nats a token){extra}")
    print(out / ("adapter" if (out / "adapter").is_dir() else "model"))
    print(out / FIGURE)
