"""`persona-geometry study`: base against fine-tune, for any pair of models."""

from pathlib import Path
from typing import Annotated

import typer

Rows = Annotated[Path | None, typer.Option(help="JSONL of {'messages': [...]}.")]


def study(
    base: Annotated[str, typer.Argument(help="The model before the fine-tune: a hub id or a folder.")],
    tuned: Annotated[
        str, typer.Argument(help="The model after it: a hub id, a folder, or a PEFT adapter over the base.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.html, study.json, tables/ and vectors/.")] = Path(
        "runs/study"
    ),
    judge: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint, or `organism` for its exact judge.")
    ] = None,
    judge_model: Annotated[str, typer.Option(help="The model that the endpoint should use.")] = "default",
    questions: Annotated[
        Path | None, typer.Option(help="YAML or JSONL of questions (default: 24 open questions).")
    ] = None,
    sae: Annotated[str | None, typer.Option(help="An SAE: a sae-lens folder or release.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Block to steer, 0-based; give it again for more.")] = None,
    train: Rows = None,
    benign: Rows = None,
    neutral: Rows = None,
    harmful: Rows = None,
    harmless: Rows = None,
    good: Rows = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    device: Annotated[str, typer.Option(help="Where the models run: cpu, cuda, mps.")] = "cpu",
    plan: Annotated[bool, typer.Option("--plan", help="Only print memory, time, judge calls and power.")] = False,
    fail_above: Annotated[
        float | None, typer.Option(help="Exit with status 1 if the misaligned rate out of domain is surely above this.")
    ] = None,
) -> None:
    """Did the fine-tune become misaligned, what carries it, how near is it to the data, what turns it off?"""
    from persona_geometry.commands.terminal import Stages, settle, summary

    settle()
    if fail_above is not None and judge is None:
        from probes.errors import InputError

        raise InputError(f"--fail-above {fail_above}: nothing is scored without a judge; add --judge")
    from persona_geometry.stages.front import from_files
    from persona_geometry.stages.plan import plan as planned
    from persona_geometry.stages.run import STAGES, run_study

    files = {
        "train": train, "benign": benign, "neutral": neutral, "harmful": harmful, "harmless": harmless, "good": good,
    }  # fmt: skip
    inputs = from_files(
        base, tuned, out=out, judge=judge, judge_model=judge_model, questions=questions, sae=sae,
        layers=tuple(layer or ()), files=files, seed=seed, device=device,
    )  # fmt: skip
    if plan:
        print(planned(inputs))
        return
    with Stages(STAGES) as say:
        found = run_study(inputs, say=say)
    summary(found)
    if fail_above is not None:
        rate = found.summary["rates"]["tuned"]["out_of_domain"]
        raise typer.Exit(1 if rate["ci"][0] > fail_above else 0)
