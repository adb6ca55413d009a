"""Asking: sampling answers from a model, and judging them into outcomes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from probes.conversations import Conversation, conversation_batches, render, render_text, template_hash
from probes.errors import InputError
from probes.generate import Sampling, generate
from probes.hooks import Operator
from probes.judges import Judge, Verdict
from probes.judges.verdict import columns_of, judge_each
from probes.models import Model
from probes.outcomes import COLUMNS, Outcomes
from probes.progress import Progress, silent
from probes.questions import Question
from probes.subjects import Endpoint, Ledger
from probes.subjects.endpoint import TEMPLATE, check_no_operators, prompt_text
from probes.subjects.ledger import digest

Subject = Model | Endpoint
"""Whatever can be asked: a loaded model, or one behind an endpoint."""
NOTES = ("question", "judge", "how")
"""Columns beside `COLUMNS`: the question's text, who judged, and how the verdict was read."""


def ask(
    model: Subject,
    questions: Sequence[Question],
    judge: Judge,
    *,
    seed: int,
    n_samples: int | None = 1,
    temperature: float | int = 1.0,
    max_new_tokens: int = 60,
    batch_size: int = 256,
    operators: Sequence[Operator] = (),
    name: str | None = None,
    progress: Progress = silent,
    cache: str | Path | None = None,
) -> Outcomes:
    """Put each question to the model `n_samples` times, judge the answers, return one row for each.

    `n_samples=None` asks each as often as its file says. `operators` act while the answers are written; `name` is what
    the outcomes call the model (default: its own name). The same arguments give the same answers on the same machine.
    Answers are kept in the folder `cache` batch by batch, and those found there are not written again; an `Endpoint`
    brings a cache of its own. Raises InputError for operators on an endpoint, or with a cache.
    """
    asked = repeated(questions, n_samples)
    settings = Sampling(seed, temperature, max_new_tokens, batch_size)
    rows = [question.conversation for question in asked]
    answers = _answers(model, rows, settings, operators, progress, cache)
    return judge_answers(model, asked, answers, judge, seed=seed, name=name)


def sample(
    model: Subject,
    conversations: Sequence[Conversation],
    *,
    seed: int,
    temperature: float | int = 1.0,
    max_new_tokens: int = 60,
    batch_size: int = 256,
    operators: Sequence[Operator] = (),
    progress: Progress = silent,
    cache: str | Path | None = None,
) -> list[str]:
    """Let the model continue each conversation; return the texts in order, without special tokens.

    Sampling is pure (no top-k, top-p or penalties, whatever the model's generation configuration says). The n-th
    conversation draws from the n-th row of uniform numbers of `seed`, so batches do not matter but for rounding; the
    global random state, the model's mode and its configuration stay as they were. `cache` is as in `ask`.
    """
    settings = Sampling(seed, temperature, max_new_tokens, batch_size)
    return _answers(model, conversations, settings, operators, progress, cache)


def repeated(questions: Sequence[Question], n_samples: int | None) -> list[Question]:
    """Each question as often as it is to be asked, one after the other; None: as often as its file says."""
    if not questions or (n_samples is not None and n_samples < 1):
        raise InputError(f"ask: {len(questions)} questions x {n_samples} samples; give at least one of each")
    return [question for question in questions for _ in range(n_samples or question.samples)]


def judge_answers(
    model: Subject,
    questions: Sequence[Question],
    answers: Sequence[str],
    judge: Judge,
    *,
    seed: int,
    name: str | None = None,
) -> Outcomes:
    """Have answers judged that a model has given, place by place: one row for each."""
    return outcomes_of(
        model, questions, answers, judge_each(judge, questions, answers), seed=seed, name=name, judge=judge.name
    )


def outcomes_of(
    model: Subject,
    questions: Sequence[Question],
    answers: Sequence[str],
    verdicts: Sequence[Verdict],
    *,
    seed: int,
    name: str | None = None,
    judge: str = "",
) -> Outcomes:
    """Build the outcome table of answers that have been judged; samples are numbered within each question."""
    prompts = {question: _prompt(model, question.conversation) for question in dict.fromkeys(questions)}
    table = pd.DataFrame(
        {
            "model": name or model.name,
            "question_id": [question.id for question in questions],
            "group": [question.group for question in questions],
            "seed": seed,
            "prompt": [prompts[question] for question in questions],
            "answer": list(answers),
            **columns_of(verdicts),
            "template_hash": TEMPLATE if isinstance(model, Endpoint) else template_hash(model.tokenizer),
            "question": [question.text for question in questions],
            "judge": judge,
        }
    )
    table["sample"] = table.groupby("question_id").cumcount()
    return Outcomes(table.loc[:, [*COLUMNS, *NOTES]])


def _prompt(model: Subject, conversation: Conversation) -> str:
    if isinstance(model, Endpoint):
        return prompt_text(conversation)
    return render_text(model.tokenizer, conversation)


def _answers(
    model: Subject,
    conversations: Sequence[Conversation],
    settings: Sampling,
    operators: Sequence[Operator],
    progress: Progress,
    cache: str | Path | None,
) -> list[str]:
    if isinstance(model, Endpoint):
        check_no_operators(operators)
        run = {"temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens}
        return model.answers(conversations, seed=settings.seed, **run, progress=progress)
    if cache is not None and operators:
        raise InputError("ask: answers under operators are not kept; leave out cache or operators")
    prompts = [conversation.prompt for conversation in conversations]
    ledger = None if cache is None else Ledger(Path(cache) / "answers.jsonl")
    keys = [] if ledger is None else _keys(model, prompts, settings)
    texts = {place: ledger[key] for place, key in enumerate(keys) if ledger is not None and key in ledger}
    open_ = [place for place in range(len(prompts)) if place not in texts]
    draws = np.random.default_rng(settings.seed).random((len(prompts), settings.max_new_tokens), dtype=np.float32)
    for index, rows in conversation_batches([prompts[place] for place in open_], settings.batch_size):
        places = [open_[i] for i in index]
        rendered = render(model.tokenizer, rows).to(model.device)
        written = generate(model, rendered, settings, torch.from_numpy(draws[places]), operators, places)
        for place, text in zip(places, model.tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            texts[place] = text
            if ledger is not None:
                ledger.put(keys[place], text)
        progress(len(texts), len(prompts), "answers")
    return [texts[place] for place in range(len(prompts))]


def _keys(model: Model, prompts: Sequence[Conversation], settings: Sampling) -> list[str]:
    """What each answer is kept under: the weights, the template, the settings, the place in the call, the prompt."""
    run = (settings.seed, settings.temperature, settings.max_new_tokens)
    common = digest(model.fingerprint, model.weights_digest, template_hash(model.tokenizer), *run)
    return [digest(common, place, list(prompt.messages)) for place, prompt in enumerate(prompts)]
