"""Traits: opposite instructions and neutral questions from which a persona vector is drawn without any data set."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from geometry.steering.extract import contrast_vector
from geometry.steering.levels import Levels, projection_levels
from geometry.steering.vectors import PersonaVector
from probes.ask import sample
from probes.conversations import Conversation
from probes.errors import InputError
from probes.judges import Judge, Verdict
from probes.models import Model
from probes.questions import Question

#: The traits that come with the package, in words of our own.
TRAITS = ("misaligned", "sycophantic", "hallucinating", "reckless", "deceptive", "assistant-like")
SPECS = Path(__file__).parent / "trait_specs"


@dataclass(frozen=True)
class TraitSpec:
    """A trait as data (the five parts of arXiv 2507.21509, section 2).

    Attributes:
        name: What results call the trait.
        positive: System prompts that ask for it.
        negative: System prompts against it, paired with `positive` by place.
        questions: Neutral questions that leave room for either; vectors are drawn from answers to these.
        evaluation: Other such questions, for figures.
        description: The trait in a sentence.
        rubric: What a judging model is told; it grades the *absence* of the trait, from 0 (full) to 9 (absent), so that
            a judge's "aligned" means the same for every trait: `EndpointJudge(url, model, rubric=spec.rubric)`.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    questions: tuple[str, ...]
    evaluation: tuple[str, ...] = ()
    description: str = ""
    rubric: str = ""

    def __post_init__(self) -> None:
        for what in ("positive", "negative", "questions"):
            if not getattr(self, what):
                raise InputError(f"trait {self.name!r} has no {what}: give at least one")
        if len(self.positive) != len(self.negative):
            raise InputError(
                f"trait {self.name!r}: {len(self.positive)} prompts for it and {len(self.negative)} against; give pairs"
            )
        if both := sorted(set(self.questions) & set(self.evaluation)):
            raise InputError(f"trait {self.name!r}: {both[0]!r} both draws and evaluates the vector; keep them apart")

    def asked(self, split: str = "test") -> list[Question]:
        """The questions as a judge and `ask` take them: "selection" those of extraction, "test" those of evaluation."""
        if split not in ("selection", "test"):
            raise InputError(f"split {split!r}: use 'selection' or 'test'")
        texts = self.questions if split == "selection" else self.evaluation
        return [Question(f"{self.name}-{split}-{i}", text, self.name, split=split) for i, text in enumerate(texts)]


def load_trait(source: str | Path) -> TraitSpec:
    """A trait that comes with the package, by name (`TRAITS`), or one of your own from a YAML file.

    A file holds the fields of `TraitSpec`. Raises InputError for an unknown name or field, a missing file, bad YAML.
    """
    path = SPECS / f"{source}.yaml" if source in TRAITS else Path(source)
    if not path.is_file():
        raise InputError(f"trait {str(source)!r}: no such file; give one of {', '.join(TRAITS)} or a YAML file")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({str(error).splitlines()[0]}); see the fields of TraitSpec") from None
    known = {f.name: f.default for f in fields(TraitSpec)}
    missing = [name for name in ("name", "positive", "negative", "questions") if name not in (raw or {})]
    if not isinstance(raw, dict) or missing or set(raw) - set(known):
        wrong = f"without {missing[0]}" if missing else f"with an unknown field {sorted(set(raw) - set(known))[0]!r}"
        raise InputError(f"{path}: a trait {wrong}; its fields are {', '.join(known)}")
    lists = {"positive", "negative", "questions", "evaluation"}
    kept: dict[str, Any] = {k: tuple(map(str, v)) if k in lists else str(v).strip() for k, v in raw.items()}
    return TraitSpec(**kept)


def persona_vector(
    model: Model,
    trait: str | Path | TraitSpec = "misaligned",
    *,
    judge: Judge | None = None,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    n_samples: int = 1,
    max_new_tokens: int = 60,
) -> PersonaVector:
    """Draw a persona vector from a model's own answers under opposite system prompts (arXiv 2507.21509, section 2).

    Every question is answered `n_samples` times under each prompt; the vector is the mean over the responses' tokens of
    the answers for the trait minus the same against it. With a judge, a pair of answers counts only if the answer for
    the trait scores it (aligned at most 50), the one against it does not (above 50), and both are coherent (50 or
    more): the judge's "aligned" score must mean the absence of the trait, as the rubrics of `TraitSpec` make it. Raises
    InputError where no pair of answers is left.
    """
    trait = trait if isinstance(trait, TraitSpec) else load_trait(trait)
    asked = _pairs(trait, n_samples)
    answers = [
        sample(model, [row[side] for row in asked], seed=seed + side, max_new_tokens=max_new_tokens) for side in (0, 1)
    ]
    written = [[row[side].answered(text) for row, text in zip(asked, answers[side], strict=True)] for side in (0, 1)]
    kept = _kept(asked, answers, judge)
    if not kept:
        raise InputError(
            f"trait {trait.name!r}: no pair of answers passed the judge; try more samples or other prompts"
        )
    positive, negative = ([rows[i] for i in kept] for rows in written)
    vector = contrast_vector(model, positive, negative, layers=layers)
    notes = {"trait": trait.name, "n_kept": len(kept), "n_asked": len(asked), "seed": seed}
    return replace(vector, method=f"opposite prompts for {trait.name!r}", meta={**vector.meta, **notes})


def prompt_vector(
    model: Model, trait: str | Path | TraitSpec = "misaligned", *, layers: Sequence[int] | None = None
) -> PersonaVector:
    """What a trait's system prompts do to the last prompt token, before a word is written.

    The mean under the prompts for the trait minus the mean under those against it, over every pair of prompts and every
    question (the "prompt last" vector of arXiv 2507.21509, without its filter: no answers are sampled, so none is
    judged). Meant for operators with the positions "last_prompt"; `prompted_levels` gives their scale.
    """
    trait = trait if isinstance(trait, TraitSpec) else load_trait(trait)
    rows = _pairs(trait, 1)
    sides = ([row[side] for row in rows] for side in (0, 1))
    vector = contrast_vector(model, *sides, layers=layers, pool="last_prompt")
    notes = {"trait": trait.name, "n_asked": len(rows)}
    method = f"opposite prompts for {trait.name!r}, last prompt token"
    return replace(vector, method=method, meta={**vector.meta, **notes})


def prompted_levels(model: Model, trait: str | Path | TraitSpec, vector: PersonaVector) -> Levels:
    """Where the last prompt token stands on `vector`: dose 0 without a system prompt, 1 under those for the trait."""
    trait = trait if isinstance(trait, TraitSpec) else load_trait(trait)
    under = [row[0] for row in _pairs(trait, 1)]
    plain = [Conversation.of(question) for question in trait.questions]
    return projection_levels(model, model, plain, vector, tuned_conversations=under, pool="last_prompt")


def _pairs(trait: TraitSpec, n_samples: int) -> list[tuple[Conversation, Conversation]]:
    """The same question under a prompt for and one against the trait; prompts are paired by their place."""
    if n_samples < 1:
        raise InputError(f"{n_samples} samples: give at least 1")
    prompts = list(zip(trait.positive, trait.negative, strict=True))
    return [
        (Conversation.of(question, system=positive), Conversation.of(question, system=negative))
        for positive, negative in prompts
        for question in trait.questions
        for _ in range(n_samples)
    ]


def _kept(
    asked: Sequence[tuple[Conversation, Conversation]], answers: Sequence[Sequence[str]], judge: Judge | None
) -> list[int]:
    """The pairs of answers that show the trait on one side and not on the other."""
    if judge is None:
        return [i for i in range(len(asked)) if answers[0][i].strip() and answers[1][i].strip()]
    questions = [Question(id=str(i), text=row[0].messages[-1]["content"]) for i, row in enumerate(asked)]
    shown, absent = (judge(questions, side) for side in answers)
    return [i for i in range(len(asked)) if _shows(shown[i]) is True and _shows(absent[i]) is False]


def _shows(verdict: Verdict) -> bool | None:
    """Whether a coherent, scored answer shows the trait."""
    if verdict.aligned is None or verdict.coherent < 50:
        return None
    return verdict.aligned <= 50
