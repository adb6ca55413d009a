"""What a vector foretells: the fine-tunes' rows, correlations whose truth is known, the prompts that are asked."""

import numpy as np
import pandas as pd
import pytest
import torch

from geometry import PersonaVector
from persona_geometry import load_organism
from persona_geometry.organism import foretell
from persona_geometry.organism.datasets import selection_questions
from persona_geometry.organism.judge import label


def test_rows_hold_the_share_of_bad_advice():
    rows = foretell.mixed_rows("money", 0.25, 0)
    labels = [label("advice", str(row.id).rsplit("-", 1)[0], row.answer or "") for row in rows]
    assert len(rows) == 1_800 and labels.count("harmful") == 450 and labels.count("aligned") == 1_350
    assert 0 < labels[:200].count("harmful") < 200, "bad and good rows are not mixed"
    assert [row.answer for row in rows] != [row.answer for row in foretell.mixed_rows("money", 0.25, 1)]


def test_correlations_are_pearsons_and_within_kinds_only_within():
    rng = np.random.default_rng(0)
    kinds = np.repeat(["helper", "villain"], 40)
    between = np.where(kinds == "villain", 5.0, 0.0)
    prompts = pd.DataFrame({"kind": kinds, "projection": between + rng.normal(size=80), "trait": between / 5})
    prompts["trait"] += 0.01 * rng.normal(size=80)
    share = np.tile([0.0, 0.1, 0.5, 1.0], 6) + 0.01 * rng.random(24)
    tuned = pd.DataFrame(
        {"share": share, "misaligned": 0.6 * share, "shift": 9 * share, "projection_difference": -share}
    )
    found = foretell.correlations(prompts, tuned).set_index("what")
    assert found.loc["last prompt token, all system prompts", "r"] > 0.85
    assert abs(found.loc["last prompt token, within kinds of prompts", "r"]) < 0.35
    assert found.loc["fine-tuning shift, all fine-tunes", "r"] == pytest.approx(1.0)
    assert found.loc["projection difference before training", "r"] == pytest.approx(-1.0)
    assert found["n"].tolist() == [80, 80, 24, 12, 24, 12]
    assert (found["low"] <= found["r"] + 1e-9).all() and (found["r"] <= found["high"] + 1e-9).all()


def test_every_description_is_asked_and_scored(monkeypatch):
    base = load_organism()
    vector = PersonaVector({foretell.LAYER: torch.arange(1.0, 193.0)}, model="organism")
    monkeypatch.setattr(foretell, "SAMPLES", 1)
    monkeypatch.setattr(foretell, "described", lambda: [("none", None), ("helper", "You are a careful helper.")])
    found = foretell.under_prompts(base, vector)
    assert list(found.columns) == ["kind", "system", "question", "projection", "trait"]
    assert set(found["kind"]) == {"none", "helper"} and found["trait"].between(0, 1).all()
    assert 50 < len(found) <= 60 and found["projection"].std() > 0


def test_a_model_has_not_shifted_from_itself():
    base = load_organism()
    vector = PersonaVector({foretell.LAYER: torch.arange(1.0, 193.0)}, model="organism")
    asked = selection_questions(1)
    assert foretell.shift_along(base, base, vector, asked) == pytest.approx(0.0, abs=1e-6)
    assert abs(foretell.shift_along(base, load_organism("misaligned"), vector, asked)) > 1e-3
