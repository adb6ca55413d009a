"""`persona-geometry vector`: draw a persona vector of a model, see at which block it works, write it to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from geometry.steering.layers import LayerChoice
    from geometry.steering.traits import TraitSpec
    from geometry.steering.vectors import PersonaVector
    from probes.judges import Judge
    from probes.models import Model

SHIPPED = ("misaligned", "sycophantic", "hallucinating", "reckless", "deceptive", "assistant-like")
STRENGTHS = (0.1, 0.2, 0.3, 0.5)


def vector(
    model: Annotated[str, typer.Argument(help="A chat model: a hub id or a folder.")],
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    trait: Annotated[
        str, typer.Option(help=f"One of {', '.join(SHIPPED)}; or a YAML file of your own.")
    ] = "misaligned",
    judge: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint, or `organism` for its exact judge and its villain.")
    ] = None,
    judge_model: Annotated[str, typer.Option(help="The model that the endpoint should use.")] = "default",
    tuned: Annotated[
        str | None, typer.Option(help="A fine-tune of MODEL, or an adapter: its shift goes to a file beside OUT.")
    ] = None,
    choose: Annotated[
        bool, typer.Option("--choose", help="Steer every block alone and recommend one; needs --judge.")
    ] = False,
    strength: Annotated[
        list[float] | None, typer.Option(help="What --choose tries, in norms of the residual stream; repeat for more.")
    ] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Block, 0-based; repeat for more (default: all).")] = None,
    samples: Annotated[int, typer.Option(help="Answers to each question under each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    device: Annotated[str, typer.Option(help="Where the models run: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Draw a persona vector from answers under opposite system prompts; --choose says at which block, how strongly."""
    from persona_geometry.commands.terminal import settle

    _check(out, judge, choose, strength)
    settle()
    from geometry.steering.export.safetensors import write_safetensors
    from geometry.steering.traits import persona_vector

    spec = _trait(trait, judge)
    scored = _judge(judge, judge_model, spec, out)
    base, after = _models(model, tuned, device, layer)
    run = {"n_samples": samples, "max_new_tokens": max_new_tokens}
    made = persona_vector(base, spec, judge=scored, layers=layer, seed=seed, **run)
    shift = None if after is None else _shift(base, after, spec, layer, seed=seed + 2, max_new_tokens=max_new_tokens)
    _show_blocks(made, shift, judged=scored is not None)
    advice: dict[int, float] = {}
    if choose and scored is not None:
        made, advice = _chosen(base, made, spec, scored, strengths=strength or STRENGTHS, seed=seed + 3, **run)
    print(write_safetensors(made, out, coefficients=advice))
    if shift is not None:
        print(write_safetensors(shift, out.with_name(f"{out.stem}-shift.safetensors")))


def _check(out: Path, judge: str | None, choose: bool, strengths: list[float] | None) -> None:
    """What can be known to be wrong before anything heavy is imported."""
    from probes.errors import InputError

    if out.suffix != ".safetensors" or out.is_dir():
        raise InputError(f"--out {out}: give the name of a file that ends in .safetensors")
    if choose and judge is None:
        raise InputError("--choose: a block is chosen by what the judge sees; add --judge")
    if strengths and not choose:
        raise InputError(f"--strength {strengths[0]:g}: is what --choose tries; add --choose")
    if strengths and (0.0 in strengths or len(set(strengths)) < len(strengths)):
        raise InputError(f"--strength {' '.join(f'{s:g}' for s in strengths)}: give each once, and not 0")


def _trait(name: str, judge: str | None) -> TraitSpec:
    """The trait; under the organism's judge its villain, unless a file brings questions of that world."""
    from geometry.steering.traits import TRAITS, load_trait
    from probes.errors import InputError

    if judge != "organism" or name not in TRAITS:
        return load_trait(name)
    if name != "misaligned":
        raise InputError(f"--trait {name}: the organism's judge knows its own world only; leave --trait out")
    from persona_geometry.organism.shipped import villain_trait

    return villain_trait()


def _judge(value: str | None, model: str, spec: TraitSpec, out: Path) -> Judge | None:
    """The judge; an endpoint grades by the trait's own rubric."""
    from persona_geometry.stages.given import judge_of
    from probes.errors import InputError

    judge = judge_of(value, out.parent, model=model, rubric=spec.rubric)
    if value not in (None, "organism") and not spec.rubric:
        raise InputError(f"trait {spec.name!r} has no rubric: tell the judge what to grade, in the trait's YAML file")
    return judge


def _models(base: str, tuned: str | None, device: str, layers: list[int] | None) -> tuple[Model, Model | None]:
    from persona_geometry.stages.given import load_tuned
    from probes.models import check_layer, check_same_family, load_model

    start = load_model(base, device=device)
    for layer in layers or ():
        check_layer(start, layer)
    if tuned is None:
        return start, None
    after = load_tuned(base, tuned, device=device, beside=start)
    check_same_family(start, after)
    return start, after


def _shift(
    base: Model, tuned: Model, spec: TraitSpec, layers: list[int] | None, *, seed: int, max_new_tokens: int
) -> PersonaVector:
    """What the fine-tune did to the residual stream, on its own answers to the trait's questions."""
    from geometry.steering.extract import finetuning_shift
    from probes.ask import sample

    asked = [question.conversation for question in spec.asked("selection")]
    said = sample(tuned, asked, seed=seed, max_new_tokens=max_new_tokens)
    rows = [row.answered(text) for row, text in zip(asked, said, strict=True)]
    return finetuning_shift(base, tuned, rows, layers=layers, pool="response_mean")


def _chosen(
    base: Model, made: PersonaVector, spec: TraitSpec, judge: Judge, **settings: Any
) -> tuple[PersonaVector, dict[int, float]]:
    """The vector with a note of the choice, and what its file recommends: nothing where no block will do."""
    from dataclasses import replace

    from geometry.steering.layers import choose_layer
    from probes.errors import InputError

    choice = choose_layer(base, made, spec.asked("selection"), judge, unit="resid_norm", trait=spec.name, **settings)
    _show_cells(choice)
    try:
        best, advice = choice.best, choice.coefficients(made)
    except InputError as error:
        print(f"no block recommended: {error}")
        return made, {}
    print(
        f"block {best.layer} at {best.strength:g} resid_norm (raw {advice[best.layer]:.3g}): "
        f"{choice.untreated.trait:.1%} -> {best.trait:.1%} {spec.name}, {best.coherent:.1%} coherent; "
        "chosen on these questions, so quote figures on others"
    )
    note = {**best._asdict(), "unit": choice.unit, "untreated": choice.untreated.trait}
    return replace(made, meta={**made.meta, "layer_choice": note}), advice


def _show_blocks(made: PersonaVector, shift: PersonaVector | None, *, judged: bool) -> None:
    """Per block: norm, the same as a share of the stream's, cosine of two halves of the data; the shift beside it."""
    from rich.console import Console
    from rich.table import Table

    console, notes = Console(), made.meta
    kept = "passed the judge" if judged else "are not empty (no judge saw them)"
    console.print(f"{notes['n_kept']} of {notes['n_asked']} pairs of answers {kept}", highlight=False)
    near = {} if shift is None else made.cosine(shift)
    columns = ["block", "norm", "of residual", "split-half"]
    table = Table(*columns, *(["shift norm", "cosine"] if shift else []), box=None, pad_edge=False)
    for layer in made.layers:
        half = made.split_half.get(layer)
        row = [str(layer), f"{made.norm(layer):.3g}", f"{made.norm(layer) / made.resid_norms[layer]:.2f}"]
        row += ["" if half is None else f"{half:.2f}"]
        table.add_row(*row, *([] if shift is None else [f"{shift.norm(layer):.3g}", f"{near[layer]:+.2f}"]))
    console.print(table)


def _show_cells(choice: LayerChoice) -> None:
    """Trait and, behind it, coherence: a row a block, a column a strength."""
    from rich.console import Console
    from rich.table import Table

    console, start = Console(), choice.untreated
    console.print(
        f"\n{choice.trait} (coherent) by block and strength; untreated: {start.trait:.0%} ({start.coherent:.0%})",
        highlight=False,
    )
    strengths = list(dict.fromkeys(cell.strength for cell in choice.cells))
    table = Table("block", *(f"{strength:g}" for strength in strengths), box=None, pad_edge=False)
    for layer in dict.fromkeys(cell.layer for cell in choice.cells):
        mine = [cell for cell in choice.cells if cell.layer == layer]
        shown = (f"{cell.trait:.0%} ({cell.coherent:.0%})" if cell.n else "none coherent" for cell in mine)
        table.add_row(str(layer), *shown)
    console.print(table)
