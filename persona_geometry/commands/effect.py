"""`persona-geometry effect`: what less and more of a saved vector does to models; culprit, guardrail or bystander."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from geometry.steering.operators import Add
    from geometry.steering.sign import CausalSign
    from geometry.steering.vectors import PersonaVector
    from probes.models import Model
    from probes.outcomes import Rate
    from probes.questions import Question


def effect(
    vector: Annotated[Path, typer.Argument(help="A saved vector, ours or another program's.")],
    models: Annotated[list[str], typer.Argument(help="Models: hub ids, folders, or adapters over --base.")],
    judge: Annotated[str, typer.Option(help="OpenAI-compatible endpoint, or `organism` for its exact judge.")],
    judge_model: Annotated[str, typer.Option(help="The model that the endpoint should use.")] = "default",
    base: Annotated[
        str | None,
        typer.Option(help="The model before the fine-tunes, to tell how much of the excess goes."),
    ] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Block, 0-based (default: the file's).")] = None,
    strength: Annotated[
        float | None, typer.Option(help="Step at each block, in norms of the residual stream (default: the file's).")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="YAML or JSONL of questions (default: 24 open questions).")
    ] = None,
    samples: Annotated[int, typer.Option(help="Answers to each question.")] = 5,
    controls: Annotated[int, typer.Option(help="Random directions of the same size, one answer a question each.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 200,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    device: Annotated[str, typer.Option(help="Where the models run: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Push each model both ways along a vector, beside random directions: who carries the trait, who holds it back?"""
    from persona_geometry.commands.terminal import settle

    settle()
    import torch

    from geometry.steering.export import load_vector
    from geometry.steering.random_controls import random_controls
    from geometry.steering.sign import causal_sign
    from persona_geometry.stages.given import judge_of
    from probes.ask import ask
    from probes.errors import InputError
    from probes.io import write_json
    from probes.outcomes import cut

    if strength is not None and strength <= 0:
        raise InputError(f"--strength {strength:g}: both signs are tried; give a positive step")
    more = _step(vector, load_vector(vector), layer, strength)
    scored = judge_of(judge, vector.parent, model=judge_model)
    assert scored is not None
    asked = _asked(questions, judge)
    run: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed}
    start = None
    if base is not None:
        start = ask(_loaded(base, None, device), asked, scored, n_samples=samples, **run)
    found: dict[str, tuple[CausalSign, Rate | None]] = {}
    for name in models:
        model = _loaded(name, base, device)
        drawn = random_controls(more, controls, torch.Generator().manual_seed(seed))
        sign = causal_sign(model, _less(more), more, asked, scored, controls=drawn, n_samples=samples, **run)
        found[name] = sign, None if start is None else cut(sign.outcomes["untreated"], sign.outcomes["less"], start)
        _show(name, *found[name])
    if json_file:
        write_json(json_file, {name: _figures(*pair) for name, pair in found.items()})
        print(json_file)


def _asked(path: Path | None, judge: str) -> list[Question]:
    """The test questions that lie out of domain."""
    from persona_geometry.stages.given import questions_of
    from persona_geometry.stages.inputs import place

    if path is None and judge == "organism":
        from persona_geometry.organism.shipped import questions

        found = questions()
    else:
        found = questions_of(path)
    return [question for question in found if question.split == "test" and place(question) == "out_of_domain"]


def _loaded(name: str, base: str | None, device: str) -> Model:
    from persona_geometry.stages.given import load_tuned
    from probes.errors import InputError

    if base is None and (Path(name) / "adapter_config.json").is_file():
        raise InputError(f"{name}: an adapter; say over which model with --base")
    return load_tuned(base or name, name, device=device)


def _step(path: Path, vector: PersonaVector, layers: list[int] | None, strength: float | None) -> Add:
    """The edit that puts the direction in: the step asked for, or what the file recommends."""
    from geometry.steering.export.safetensors import read_purpose
    from geometry.steering.operators import Add
    from probes.errors import InputError

    if strength is not None:
        return Add(vector, strength=strength, unit="resid_norm", layers=tuple(layers or vector.layers))
    operation, advice = read_purpose(path) if path.suffix == ".safetensors" else ("add", {})
    wanted = {i: x for i, x in advice.items() if not layers or i in layers}
    if operation != "add" or not wanted:
        raise InputError(f"{path}: recommends no step; give --strength, and --layer for the block")
    return Add(_scaled(vector, wanted), strength=1.0, unit="raw", layers=tuple(wanted))


def _scaled(vector: PersonaVector, factors: dict[int, float]) -> PersonaVector:
    """The vector with a factor of its own at every block."""
    from dataclasses import replace

    steps = {i: vector.at(i) * factor for i, factor in factors.items()}
    return replace(vector, directions=steps, split_half={}, delta_norms={})


def _less(more: Add) -> Add:
    """The same step the other way."""
    from dataclasses import replace

    return replace(more, strength=-more.strength)


def _show(name: str, sign: CausalSign, taken: Rate | None) -> None:
    """A table and the verdict in a sentence."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(name, "misaligned", "change", "95 % interval", "coherent", "n", box=None, pad_edge=False)
    for row in sign.table.to_dict("records"):
        moved = row["arm"] != "untreated"
        change = [f"{row['change']:+.1%}", f"{row['low']:+.1%} to {row['high']:+.1%}"] if moved else ["", ""]
        table.add_row(row["arm"], f"{row['trait']:.1%}", *change, f"{row['coherent']:.1%}", str(row["n"]))
    console.print(table)
    console.print(sign.sentence, highlight=False)
    if taken is not None:
        console.print(f"less of it removes {taken} of the excess over the base", highlight=False)
    console.print()


def _figures(sign: CausalSign, taken: Rate | None) -> dict[str, Any]:
    rows = {row.pop("arm"): row for row in sign.table.to_dict("records")}
    found: dict[str, Any] = {"role": sign.role, "sentence": sign.sentence}
    for arm, row in rows.items():
        found[arm] = {key: None if value != value else value for key, value in row.items() if key != "counts"}
    return found | ({} if taken is None else {"cut": taken.as_dict()})
