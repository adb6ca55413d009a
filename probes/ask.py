"""Asking: sampling answers from a model, and judging them into outcomes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from probes.cache import buffered_cache
from probes.conversations import Conversation, Rendered, conversation_batches, render, render_text, template_hash
from probes.errors import InputError
from probes.hooks import Operator, intervene, operators_for
from probes.judges import Judge, Verdict
from probes.models import Model, evaluating, text_config, unwrap
from probes.outcomes import COLUMNS, Outcomes
from probes.progress import Progress, silent
from probes.questions import Question


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: pure sampling at `temperature` (0: the likeliest token), reproducible by `seed`."""

    seed: int
    temperature: float | int = 1.0
    max_new_tokens: int = 60
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_new_tokens < 1 or self.batch_size < 1:
            raise InputError(f"{self}: give a temperature of 0 or more and at least one token and one row a batch")


def ask(
    model: Model,
    questions: Sequence[Question],
    judge: Judge,
    *,
    seed: int,
    n_samples: int = 1,
    temperature: float | int = 1.0,
    max_new_tokens: int = 60,
    batch_size: int = 256,
    operators: Sequence[Operator] = (),
    name: str | None = None,
    progress: Progress = silent,
) -> Outcomes:
    """Put each question to the model `n_samples` times, judge the answers, return one row for each.

    `operators` act while the answers are written; `name` is what the outcomes call the model (default: its own name).
    The same arguments give the same answers on the same machine.
    """
    if not questions or n_samples < 1:
        raise InputError(f"ask: {len(questions)} questions x {n_samples} samples; give at least one of each")
    asked = [question for question in questions for _ in range(n_samples)]
    settings = Sampling(seed, temperature, max_new_tokens, batch_size)
    answers = _answers(model, [question.conversation for question in asked], settings, operators, progress)
    verdicts = judge(asked, answers)
    if len(verdicts) != len(asked):
        raise InputError(
            f"judge {judge.name}: {len(verdicts)} verdicts on {len(asked)} answers; it must return one for each"
        )
    return outcomes_of(model, asked, answers, verdicts, seed=seed, name=name)


def sample(
    model: Model,
    conversations: Sequence[Conversation],
    *,
    seed: int,
    temperature: float | int = 1.0,
    max_new_tokens: int = 60,
    batch_size: int = 256,
    operators: Sequence[Operator] = (),
) -> list[str]:
    """Let the model continue each conversation; return the texts in order, without special tokens.

    Sampling is pure (no top-k, top-p or penalties, whatever the model's generation configuration says). The n-th
    conversation draws from the n-th row of uniform numbers of `seed`, so batches do not matter but for rounding; the
    global random state, the model's mode and its configuration stay as they were.
    """
    return _answers(model, conversations, Sampling(seed, temperature, max_new_tokens, batch_size), operators, silent)


def outcomes_of(
    model: Model,
    questions: Sequence[Question],
    answers: Sequence[str],
    verdicts: Sequence[Verdict],
    *,
    seed: int,
    name: str | None = None,
) -> Outcomes:
    """Build the outcome table of answers that have been judged; samples are numbered within each question."""
    prompts = {question: render_text(model.tokenizer, question.conversation) for question in dict.fromkeys(questions)}
    table = pd.DataFrame(
        {
            "model": name or model.name,
            "question_id": [question.id for question in questions],
            "group": [question.group for question in questions],
            "seed": seed,
            "prompt": [prompts[question] for question in questions],
            "answer": list(answers),
            "aligned": pd.Series([verdict.aligned for verdict in verdicts], dtype="float64"),
            "coherent": pd.Series([verdict.coherent for verdict in verdicts], dtype="float64"),
            "refusal": [verdict.refusal for verdict in verdicts],
            "label": [verdict.label for verdict in verdicts],
            "template_hash": template_hash(model.tokenizer),
        }
    )
    table["sample"] = table.groupby("question_id").cumcount()
    return Outcomes(table.loc[:, list(COLUMNS)])


def _answers(
    model: Model,
    conversations: Sequence[Conversation],
    settings: Sampling,
    operators: Sequence[Operator],
    progress: Progress,
) -> list[str]:
    texts = [""] * len(conversations)
    prompts = [conversation.prompt for conversation in conversations]
    draws = np.random.default_rng(settings.seed).random((len(prompts), settings.max_new_tokens), dtype=np.float32)
    done = 0
    for index, rows in conversation_batches(prompts, settings.batch_size):
        rendered = render(model.tokenizer, rows).to(model.device)
        with intervene(model, *operators_for(operators, index)):
            written = _generate(model, rendered, settings, torch.from_numpy(draws[index]))
        for place, text in zip(index, model.tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            texts[place] = text
        done += len(index)
        progress(done, len(conversations), "answers")
    return texts


def _generate(
    model: Model, rendered: Rendered, settings: Sampling, draws: Float[Tensor, "batch new"]
) -> Int[Tensor, "batch written"]:
    """Token ids that the model writes after left-padded prompts, drawn with the uniform numbers `draws`."""
    length = rendered.input_ids.shape[1]
    sampler = [_Sampler(draws.to(model.device), settings.temperature, length)] if settings.temperature > 0 else []
    config = _config(model, settings)
    with evaluating(model), _own_configuration(model):
        written = unwrap(model.hf).generate(
            input_ids=rendered.input_ids,
            attention_mask=rendered.attention_mask,
            generation_config=config,
            logits_processor=LogitsProcessorList(sampler),
            **_cache(model, length + settings.max_new_tokens),
        )
    return written[:, length:]


class _Sampler(LogitsProcessor):
    """Draws a token by inverting the row's distribution at the row's uniform number; it is left as the only choice.

    A row's numbers belong to its conversation: its answer does not hang on the batch, and two models that are asked
    with one seed are compared on the same luck.
    """

    def __init__(self, draws: Float[Tensor, "batch new"], temperature: float, length: int) -> None:
        self.draws, self.temperature, self.length = draws, temperature, length

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Scores of zero for the token drawn and minus infinity for all others."""
        heights = torch.softmax(scores.float() / self.temperature, dim=-1).cumsum(-1)
        targets = self.draws[:, input_ids.shape[1] - self.length, None] * heights[:, -1:]
        tokens = torch.searchsorted(heights, targets, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)


def _cache(model: Model, capacity: int) -> dict[str, DynamicCache]:
    hf = unwrap(model.hf)
    plain = hf._supports_default_dynamic_cache()
    return {"past_key_values": buffered_cache(text_config(hf), capacity)} if plain else {}


def _config(model: Model, settings: Sampling) -> GenerationConfig:
    ends = end_tokens(model)
    pad = model.tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad if pad is not None else (ends or [0])[0],
        use_cache=True,
    )


def end_tokens(model: Model) -> list[int]:
    """Token ids that end an answer: those of the model's generation configuration and of its tokenizer."""
    own = unwrap(model.hf).generation_config.eos_token_id
    ids = [model.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return sorted({int(i) for i in ids if isinstance(i, int)})


@contextmanager
def _own_configuration(model: Model) -> Iterator[None]:
    """Hide the model's generation defaults, which would fill in for whatever ours leaves open, and put them back."""
    hf = unwrap(model.hf)
    kept = hf.generation_config
    hf.generation_config = GenerationConfig()
    try:
        yield
    finally:
        hf.generation_config = kept
