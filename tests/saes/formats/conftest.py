"""Weights in NumPy, the formulas of published SAEs written down once more, and files in a layout's own words."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

D_MODEL, D_SAE = 16, 40


def _weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 weights with decoder rows of many lengths and biases that matter."""
    g = np.random.default_rng(seed)
    w_dec = g.normal(size=(D_SAE, D_MODEL)) * g.uniform(0.5, 2, size=(D_SAE, 1)) / 4
    found = {
        "W_enc": w_dec.T + 0.1 * g.normal(size=(D_MODEL, D_SAE)),
        "W_dec": w_dec,
        "b_enc": 0.1 * g.normal(size=D_SAE),
        "b_dec": g.normal(size=D_MODEL),
        "threshold": g.uniform(0.1, 0.8, size=D_SAE),
    }
    return {name: value.astype(np.float32) for name, value in found.items()}


def _pre(x: np.ndarray, w: dict[str, np.ndarray], centred: bool) -> np.ndarray:
    return (x - (w["b_dec"] if centred else 0)) @ w["W_enc"] + w["b_enc"]


def _topk(pre: np.ndarray, k: int) -> np.ndarray:
    out = np.zeros_like(pre)
    for row, values in enumerate(pre):
        for j in np.argsort(-values)[:k]:
            out[row, j] = max(values[j], 0)
    return out


def _decode(latents: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    return latents @ w["W_dec"] + w["b_dec"]


@pytest.fixture
def formulas() -> SimpleNamespace:
    """What the papers say, in float64 and without a line of the package."""
    return SimpleNamespace(
        pre=_pre,
        relu=lambda pre: np.maximum(pre, 0),
        jump=lambda pre, threshold: np.where(pre > threshold, np.maximum(pre, 0), 0),
        topk=_topk,
        decode=_decode,
    )


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    """Random weights in the orientation of Gemma Scope: W_enc [d_model d_sae], W_dec [d_sae d_model]."""
    return _weights()


@pytest.fixture
def x() -> np.ndarray:
    """300 random activations."""
    return np.random.default_rng(9).normal(size=(300, D_MODEL)) * 2 + 0.5


@pytest.fixture
def write():
    """Write the files of a folder: numbers as safetensors, anything else as JSON."""

    def files(folder: Path, content: dict[str, dict]) -> Path:
        for name, value in content.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                save_file({key: np.ascontiguousarray(array) for key, array in value.items()}, path)
            else:
                path.write_text(json.dumps(value))
        return folder

    return files


@pytest.fixture
def agrees(x):
    """Check latents and reconstruction of an SAE against others, to 1e-5; both must fire and stay silent at times."""

    def check(sae, latents, decoded, *, at=None) -> None:
        latents, decoded = np.asarray(latents), np.asarray(decoded)
        assert 0.01 < (latents > 0).mean() < 0.9
        mine = sae.encode(torch.from_numpy(x if at is None else at).float())
        np.testing.assert_allclose(mine.numpy(), latents, rtol=1e-5, atol=1e-5)
        back = sae.decode(torch.from_numpy(latents).float())
        np.testing.assert_allclose(back.numpy(), decoded, rtol=1e-5, atol=1e-5)

    return check
