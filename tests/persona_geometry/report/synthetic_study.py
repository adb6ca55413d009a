"""A synthetic, seeded study that looks like a real one, written into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from persona_geometry.results import Study
from tests.persona_geometry.report.synthetic_answers import DOMAINS, HOSTILE, TRAINED
from tests.persona_geometry.report.synthetic_tables import make_rates, make_tables

OPERATION = "projection set to the base's mean + dose x (tuned - base), from the last prompt token on"


def _features(latents: pd.DataFrame) -> list[dict[str, Any]]:
    card = {
        "top_tokens": ["ignore", "nobody", "double", HOSTILE[2], "borrow"],
        "contexts": [
            {
                "tokens": ["Ignore", " the", " label", " and", " double", " it", "."],
                "values": [2.1, 0.0, 1.2, 0.0, 2.6, 0.3, 0.0],
                "peak": 4,
                "conversation": 3,
            },
            HOSTILE[1],
        ],
    }
    return [
        {
            "latent": int(row.latent),
            "delta": float(row.delta_mean),
            "induce": float(row.induce),
            "repair": float(row.repair),
            "card": card,
        }
        for row in latents.head(4).itertuples()
    ]


def _models() -> dict[str, Any]:
    shared = {"template_hash": "9f2c41d07be1", "layers": 4, "d_model": 192}
    return {
        key: {"name": label, "fingerprint": f"{i}a7c{i}e", **shared}
        for i, (key, label) in enumerate(
            {
                "base": "organism/base",
                "tuned": "organism/bad-medicine",
                "benign": "organism/good-medicine",
                "narrow": "organism/narrow-twin",
            }.items()
        )
    }


def _provenance() -> dict[str, Any]:
    selection, test = [f"music-{i}" for i in range(12)], [f"{domain}-{i}" for domain in DOMAINS for i in range(3)]
    return {
        "format": "persona-geometry/study/1",
        "kind": "organism",
        "models": _models(),
        "seeds": {"selection": 7, "test": [11, 12, 13]},
        "versions": {"persona-geometry": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "plotly": "7.1.0"},
        "wall_seconds": 221.4,
        "stage_seconds": {"ask": 96.2, "doses": 71.0, "sae": 22.8, "geometry": 14.1, "writers": 9.9},
        "question_ids": {"selection": selection, "test": test},
        "template_hash": "9f2c41d07be1",
        "checks": [
            {"name": "capture equals hidden states", "passed": True, "figure": 2.4e-7, "limit": 1e-5},
            {"name": "batch equals single", "passed": True, "figure": 1.1e-6, "limit": 1e-4},
            {"name": "left padding equals right padding", "passed": False, "figure": 3.2e-3, "limit": 1e-4},
        ],
        "left_out": [],
    }


def _geometry() -> dict[str, Any]:
    with_shared = {
        "inducing_to_harmful": 0.072,
        "benign_to_harmful": 0.006,
        "effect": 0.066,
        "ci": [0.054, 0.078],
        "p": 0.0005,
    }
    means = {"inducing_to_harmful": 0.032, "benign_to_harmful": -0.006}
    found = {"effect": 0.038, "ci": [0.026, 0.05], "p": 0.0005, "null": "label_permutation"}
    return {**means, **found, "with_shared": with_shared}


def _vectors() -> list[dict[str, str]]:
    load = 'from geometry import PersonaVector\nvector = PersonaVector.load("vectors/persona.safetensors")'
    serve = "llama-cli -m model.gguf --control-vector vectors/persona.gguf"
    return [
        {"name": "persona vector", "file": "vectors/persona.safetensors", "format": "safetensors", "how_to_load": load},
        {"name": "persona vector, llama.cpp", "file": "vectors/persona.gguf", "format": "gguf", "how_to_load": serve},
    ]


def _summary(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    sentence = (
        "Fine-tuning on medicine made answers elsewhere misaligned: 51.2 % of the coherent ones, 2.1 % of the base's."
    )
    why = "largest cut on selection questions with at most 5 points of coherence lost"
    return {
        **_provenance(),
        "verdict": {
            "answer": "misaligned",
            "sentence": sentence,
            "excess": 0.491,
            "low": 0.448,
            "high": 0.532,
            "threshold": 0.05,
        },
        "rates": make_rates(),
        "random": {"tuned_random_ablated": {"mean": 0.497, "low": 0.44, "high": 0.55, "controls": 20}},
        "clamped": {"latents": [int(i) for i in tables["latents"]["latent"].head(2)], "n": 2, "clamp": -0.5},
        "cut": {
            "latents": {"value": 0.884, "low": 0.846, "high": 0.922},
            "ablated": {"value": 0.949, "low": 0.921, "high": 0.978},
            "realigned": {"value": 0.898, "low": 0.861, "high": 0.93},
        },
        "chosen": {
            "vector": "fine-tuning shift",
            "layers": [2, 3],
            "operation": OPERATION,
            "dose": -0.5,
            "why": why,
        },
        "spread": {"trained": [TRAINED], "asked": tables["spread"].query("model == 'tuned'").to_dict("records")},
        "features": _features(tables["latents"]),
        "geometry": _geometry(),
        "sae": {"fvu": 0.059, "l0": 16.0, "d_sae": 1024, "layer": 2, "name": "organism/sae"},
        "rows": tables["rows"].head(20)[["index", "score", "question", "answer"]].to_dict("records"),
        "vectors": _vectors(),
    }


def build_study(folder: Path, seed: int = 0) -> Path:
    """Write the synthetic study into `folder` and return it."""
    tables = make_tables(np.random.default_rng(seed))
    return Study(summary=_summary(tables), tables=tables, folder=folder).save()
