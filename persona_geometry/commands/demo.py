"""`persona-geometry demo`: the study of the embedded model organism."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html, study.json, tables/ and vectors/.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    quick: Annotated[bool, typer.Option(help="A tenth of the answers: to look around, not to quote.")] = False,
) -> None:
    """Study the model organism shipped in the package: from its weights to a report, in some minutes, offline."""
    from persona_geometry.commands.terminal import Stages, settle, summary

    settle()
    from persona_geometry.organism.shipped import organism_inputs
    from persona_geometry.stages.inputs import QUICK, Sizes
    from persona_geometry.stages.run import STAGES, run_study

    inputs = organism_inputs(out, seed=seed, sizes=QUICK if quick else Sizes())
    with Stages(STAGES) as say:
        study = run_study(inputs, say=say)
    summary(study)
