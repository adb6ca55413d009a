"""Outcome tables drawn at random, for tests that recount them by hand."""

import numpy as np
import pandas as pd

from probes import Outcomes
from probes.outcomes import COLUMNS


def outcomes(rows, model="m"):
    """Outcomes of (question, aligned, coherent) rows."""
    questions, aligned, coherent = zip(*rows, strict=True)
    table = pd.DataFrame({"question_id": questions, "aligned": aligned, "coherent": coherent})
    table = table.assign(
        model=model, group="g", seed=0, prompt="p", answer="a", refusal=False, label="", template_hash="t"
    )
    table["sample"] = table.groupby("question_id").cumcount()
    return Outcomes(table[list(COLUMNS)])


def scored(n_questions, n_samples, seed, *, shift=0.0, model="m"):
    """Scores that differ between questions, some missing; the same seed gives like scores, whatever the shift."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(n_questions):
        level = rng.uniform(10, 60)
        for _ in range(n_samples):
            value = float(np.clip(level + rng.normal(0, 20) + shift, 0, 100))
            rows.append((f"q{i}", None if rng.random() < 0.05 else value, float(rng.uniform(30, 100))))
    return outcomes(rows, model)
