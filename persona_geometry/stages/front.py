"""The front of the study: from what a user gives (models, files, names) to checked inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from geometry.steering.traits import TraitSpec, load_trait
from persona_geometry.results import Study
from persona_geometry.stages.cells import Say, quiet
from persona_geometry.stages.given import judge_of, load_tuned, questions_of
from persona_geometry.stages.inputs import Inputs, Rows, Sizes
from persona_geometry.stages.run import run_study
from probes.conversations import Conversation, load_conversations
from probes.errors import InputError
from probes.judges import Judge
from probes.models import Model, load_model
from probes.questions import Question
from saes.sae import SparseAutoencoder

Data = str | Path | Sequence[Conversation] | None


def study(
    base: Model,
    tuned: Model,
    *,
    out: str | Path,
    judge: Judge | str | None = None,
    sae: SparseAutoencoder | str | Path | None = None,
    layer: int | Sequence[int] | None = None,
    questions: str | Path | Sequence[Question] | None = None,
    controls: Mapping[str, Model] | None = None,
    trait: str | Path | TraitSpec = "misaligned",
    seed: int = 0,
    sizes: Sizes | None = None,
    say: Say = quiet,
    **data: Data,
) -> Study:
    """Study a base model and its fine-tune: verdict, features, geometry, vectors, rows, report.

    Args:
        base: The model before the fine-tune.
        tuned: The model after it; same architecture, tokenizer and chat template.
        out: Folder for report.html, study.json, tables/ and vectors/. The same call on it goes on where it stopped.
        judge: Scores answers; the address of an OpenAI-compatible endpoint; or None (then nothing is scored).
        sae: An SAE over the residual stream, or where `saes.load_sae` finds it; of several there, that of `layer`.
        layer: The 0-based block or blocks that may be steered (default: all but the first and the last).
        questions: A file or questions; `where: in_domain` marks those in the domain of the fine-tune,
            `split: selection` those that choices are made on. Default: open questions of our own.
        controls: Further models beside the pair: "benign", "narrow".
        trait: Opposite system prompts and questions, for the second persona vector.
        seed: Seed of every draw.
        sizes: Answers a cell, random controls.
        say: Hears of the stages.
        **data: Files or conversations: `train`, `benign`, `neutral`, `harmful`, `harmless`, `good`. Parts that need
            what is missing are left out, in words.

    Raises:
        InputError: Bad input, before any long work; or `out` holds another study.
    """
    unknown = sorted(set(data) - set(Rows.__dataclass_fields__))
    if unknown:
        raise InputError(f"study: no data called {unknown[0]!r}; there are {', '.join(Rows.__dataclass_fields__)}")
    asked = questions_of(questions)
    layers = () if layer is None else (layer,) if isinstance(layer, int) else tuple(layer)
    inputs = Inputs(
        models={"base": base, "tuned": tuned, **(controls or {})},
        questions=asked,
        out=Path(out),
        judge=judge_of(judge, Path(out)),
        sae=_sae(sae, layers),
        rows=Rows(**{name: _rows(value) for name, value in data.items()}),
        trait=trait if isinstance(trait, TraitSpec) else load_trait(trait),
        trained_group=next((q.group for q in asked if q.meta.get("where") == "in_domain"), ""),
        seed=seed,
        sizes=sizes or Sizes(max_new_tokens=200),
        layers=layers,
    )
    return run_study(inputs, say=say)


def from_files(base: str, tuned: str, *, out: Path, files: Mapping[str, Path | None], **options: Any) -> Inputs:
    """Inputs from what the command line gives; cheap checks come before any model is loaded."""
    asked = questions_of(options["questions"])
    rows = Rows(**{name: _rows(path) for name, path in files.items()})
    judge, device = judge_of(options["judge"], out, model=options["judge_model"]), options["device"]
    sae = _sae(options["sae"], options["layers"])
    start = load_model(base, device=device)
    after = load_tuned(base, tuned, device=device, beside=start)
    world = options["judge"] == "organism"
    sizes = Sizes() if world else Sizes(max_new_tokens=200)
    made = Inputs(
        models={"base": start, "tuned": after},
        questions=asked,
        out=out,
        judge=judge,
        sae=sae,
        rows=rows,
        trained_group=next((q.group for q in asked if q.meta.get("where") == "in_domain"), ""),
        seed=options["seed"],
        sizes=sizes,
        layers=options["layers"],
    )
    if world:
        from persona_geometry.organism.shipped import villain_trait

        made = replace(made, trait=villain_trait())
    return made


def _rows(value: Data) -> Sequence[Conversation]:
    if value is None:
        return ()
    return load_conversations(value) if isinstance(value, str | Path) else value


def _sae(value: SparseAutoencoder | str | Path | None, layers: Sequence[int]) -> SparseAutoencoder | None:
    """The SAE; of several in one place, that of the one block that is named."""
    if value is None or isinstance(value, SparseAutoencoder):
        return value
    from saes.formats.layouts import SeveralSAEs
    from saes.load import load_sae

    try:
        return load_sae(value)
    except SeveralSAEs:
        if len(layers) != 1:
            raise
    return load_sae(value, layer=layers[0])
