"""A conscience's threshold from the answers of a model that is believed aligned, with no judge from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from finetuning.conscience.questions import Conscience
from finetuning.conscience.trust import threshold_at
from finetuning.conscience.verdict import reading, verdicts
from finetuning.reference import Reference
from probes.ask import sample
from probes.conversations import Conversation
from probes.errors import InputError
from probes.models import Model

#: Thresholds stay this far from 0 and 1: probabilities beyond are those of rounding.
LEAST = 1e-6


def calibrated(
    conscience: Conscience,
    model: Model | Reference,
    prompts: Sequence[Conversation],
    *,
    seed: int,
    flags: float = 0.05,
    max_new_tokens: int = 60,
    batch_size: int = 64,
) -> Conscience:
    """The conscience with the threshold above which `model` flags at most a share `flags` of its own answers.

    Give the start, before any fine-tune, and prompts like those that triplets are made of: its own answers count as
    good. A model that passes much of what is bad at p > 1/2 may still rank it well. Answers are drawn at temperature 1.
    Raises InputError for a share outside 0 to 1, and where there is no prompt, or no answer.
    """
    if not 0 < flags < 1 or not prompts:
        raise InputError(f"calibrated: {len(prompts)} prompts, flags {flags}; give some, and a share between 0 and 1")
    rows = [prompt.prompt for prompt in prompts]
    with reading(model) as start:
        answers = sample(start, rows, seed=seed, max_new_tokens=max_new_tokens, batch_size=batch_size)
        kept = [(row, text) for row, text in zip(rows, answers, strict=True) if text.strip()]
        if not kept:
            raise InputError(f"calibrated: {start.name} answers none of {len(rows)} prompts; give others")
        asked, said = (list(side) for side in zip(*kept, strict=True))
        p = verdicts(start, asked, said, conscience, batch_size=batch_size).p.numpy()
    found = threshold_at(p, np.zeros(len(p), dtype=bool), false_alarms=flags)
    return replace(conscience, threshold=min(max(found, LEAST), 1 - LEAST))
