"""What a user gives by name: a fine-tune beside its base, and a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from probes.errors import InputError
from probes.judges import Judge
from probes.models import Model, load_model, with_adapter
from probes.questions import Question, load_questions

OPEN_QUESTIONS = Path(__file__).parent / "open_questions.yaml"


def load_tuned(base: str, tuned: str, *, device: str, beside: Model | None = None) -> Model:
    """A fine-tune: a model of its own, or a folder that holds an adapter over `base`.

    An adapter is merged, which is faster. Away from the CPU memory counts more: there it shares the weights of
    `beside`, the base as it is loaded already.
    """
    if (Path(tuned) / "adapter_config.json").is_file():
        if beside is not None and not device.startswith("cpu"):
            return with_adapter(beside, tuned, name=tuned)
        return load_model(base, adapter=tuned, device=device, name=tuned, merge=True)
    return load_model(tuned, device=device)


def judge_of(value: Judge | str | None, out: Path, *, model: str = "default", rubric: str = "") -> Judge | None:
    """A judge as it is, or by name: an endpoint's address, or "organism" for the exact one.

    An endpoint's answers are kept in `out / "judge-cache"`; `rubric` replaces what it is asked to grade.
    """
    if value is None or not isinstance(value, str):
        return value
    if value == "organism":
        from persona_geometry.organism.judge import ExactJudge

        return ExactJudge()
    if not value.startswith(("http://", "https://")):
        raise InputError(f"--judge {value!r}: give the address of an OpenAI-compatible endpoint, or `organism`")
    from probes.judges import EndpointJudge, rubrics

    return EndpointJudge(value, model=model, cache=out / "judge-cache", rubric=rubric or rubrics.ALIGNED)


def questions_of(value: str | Path | Sequence[Question] | None) -> list[Question]:
    """Questions as they are, from a file, or the open ones that come with the package (None).

    Where none is marked for choosing, every third one is.
    """
    found = load_questions(value or OPEN_QUESTIONS) if value is None or isinstance(value, str | Path) else list(value)
    if any(q.split == "selection" for q in found):
        return found
    ids = sorted({q.id for q in found})
    chosen = set(ids[::3])  # no split was given: every third question serves for choosing, never for figures
    return [replace(q, split="selection") if q.id in chosen else q for q in found]
