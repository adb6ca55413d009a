"""The page's colours: contrast of text and marks, and meanings that every eye can tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from persona_geometry.report.theming import DARK, LIGHT


def _linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _contrast(one: str, other: str) -> float:
    low, high = sorted(float(_linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(linear, 0, 1) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_has_contrast(palette: dict[str, str]) -> None:
    for ink in ("ink", "soft", "aligned-text", "misaligned-text", "chosen-text"):
        assert _contrast(palette[ink], palette["paper"]) >= 4.5, ink
    for mark in ("aligned", "misaligned", "control", "chosen"):
        assert _contrast(palette[mark], palette["paper"]) >= 3, mark


# Severe protan, deutan and tritan vision (Machado, Oliveira and Fernandes 2009, linear RGB), and full vision.
SIGHT = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "full": np.eye(3).tolist(),
}


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_meanings_stay_apart_for_every_eye(palette: dict[str, str], sight: str) -> None:
    seen = [
        _lab(np.array(SIGHT[sight]) @ _linear(palette[key])) for key in ("aligned", "misaligned", "control", "chosen")
    ]
    gaps = [float(np.linalg.norm(a - b)) for i, a in enumerate(seen) for b in seen[i + 1 :]]
    assert min(gaps) > 12
