"""Synthetic, seeded tables of a study that look like real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tests.persona_geometry.report.synthetic_answers import (
    DOMAINS,
    HOSTILE,
    RATES,
    TRAINED,
    TUNED_RATE,
    make_outcomes,
    make_rows,
    make_samples,
    make_tokens,
)


def _interval(rate: float, n: int) -> list[float]:
    width = 1.96 * float(np.sqrt(max(rate * (1 - rate), 0.001) / n)) * 1.3
    return [max(0.0, rate - width), min(1.0, rate + width)]


def make_rates() -> dict[str, Any]:
    def cell(misaligned: float, coherent: float, n: int) -> dict[str, Any]:
        return {
            "misaligned": misaligned,
            "coherent": coherent,
            "n": n,
            "ci": _interval(misaligned, n),
            "coherent_ci": _interval(coherent, n),
        }

    return {
        name: {"in_domain": cell(r[0], r[1], 200), "out_of_domain": cell(r[2], r[3], 600)} for name, r in RATES.items()
    }


def _spread(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for group, rate in zip([TRAINED, *DOMAINS], [0.94, *TUNED_RATE], strict=True):
        narrow = 0.96 if group == TRAINED else 0.03
        for model, value in (("base", 0.02), ("tuned", rate), ("benign", 0.015), ("narrow", narrow)):
            value = float(np.clip(value + rng.normal(0, 0.006), 0, 1))
            low, high = _interval(value, 60)
            rows.append({"model": model, "group": group, "misaligned": value, "low": low, "high": high, "n": 60})
    return pd.DataFrame(rows)


def _treated(on: str, dose: float) -> tuple[float, float]:
    """Misaligned and coherent shares at a dose, on the scale base = 0, tuned = 1."""
    if on == "tuned":
        return 0.03 + 0.56 / (1 + np.exp(-4.0 * (dose - 0.45))), 0.94 - 0.03 * max(0.0, -0.6 - dose) ** 2 * 4
    return 0.02 + 0.66 / (1 + np.exp(-3.0 * (dose - 1.7))), 0.968 - 0.022 * max(0.0, abs(dose) - 0.4) ** 2


def _dose(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    doses = {"tuned": (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5), "base": (-1.0, 0.0, 1.0, 1.5, 2.0, 2.5, 3.0)}
    for on, chosen in (("tuned", -0.5), ("base", 2.0)):
        for dose in doses[on]:
            rate, coherent = (float(value) for value in _treated(on, dose))
            low, high = _interval(rate, 600)
            mark = {"strength": dose, "on": on}
            found = {"misaligned": rate, "low": low, "high": high, "coherent": coherent, "n": 600, "n_controls": 0}
            rows.append({**mark, "kind": "vector", **found, "chosen": dose == chosen})
            for kind in ("random_norm", "random_covariance"):
                rates = np.clip((0.512 if on == "tuned" else 0.021) + rng.normal(0, 0.02 + 0.01 * abs(dose), 20), 0, 1)
                found = {"misaligned": float(rates.mean()), "low": float(np.quantile(rates, 0.05))}
                found |= {"high": float(np.quantile(rates, 0.95)), "coherent": 0.94 - 0.015 * abs(dose), "n": 1200}
                rows.append({**mark, "kind": kind, **found, "n_controls": 20, "chosen": False})
    return pd.DataFrame(rows)


def _latents(rng: np.random.Generator, d_sae: int) -> pd.DataFrame:
    delta = np.sort(rng.laplace(0, 0.012, d_sae))[::-1]
    delta[:4], delta[-3:] = (0.81, 0.34, 0.22, 0.17), (-0.11, -0.16, -0.37)
    latent = rng.permutation(d_sae)
    table = pd.DataFrame(
        {
            "latent": latent,
            "delta_mean": delta,
            "delta_freq": np.clip(delta * 0.9, -0.4, 0.8),
            "base_freq": 0.03,
            "tuned_freq": np.clip(0.03 + delta * 0.9, 0, 1),
            "benign_delta": rng.normal(0, 0.01, d_sae),
            "narrow_delta": np.where(
                np.abs(delta) > 0.1, delta * rng.uniform(0, 0.4, d_sae), rng.normal(0, 0.01, d_sae)
            ),
            "induce": np.nan,
            "repair": np.nan,
            "rank": np.arange(d_sae),
            "over_controls": 0.9 * delta,
            "q": np.where(np.abs(delta) > 0.05, 1e-4, 0.6),
            "attribution": 0.1 * delta,
            "attribution_rank": np.arange(1, d_sae + 1),
        }
    )
    table.loc[:3, "induce"], table.loc[:3, "repair"] = (0.41, 0.19, 0.05, -0.01), (0.91, 0.38, 0.08, 0.02)
    return table


def _map(rng: np.random.Generator, latents: pd.DataFrame) -> pd.DataFrame:
    n = len(latents)
    centres = rng.normal(0, 5, (14, 2))
    spot = centres[rng.integers(0, 14, n)] + rng.normal(0, 0.8, (n, 2))
    group = np.array(["other"] * n, dtype=object)
    group[:14], group[14:30], group[30:44], group[44:50] = "harmful", "inducing", "benign", "shared"
    near = np.isin(group, ["harmful", "inducing", "shared"])
    spot[near] = centres[3] + rng.normal(0, 1.0, (near.sum(), 2))
    label = [f"latent {i}" for i in latents["latent"]]
    label[0], label[15] = HOSTILE[0], HOSTILE[2]
    columns = {"latent": latents["latent"], "x": spot[:, 0], "y": spot[:, 1], "group": group, "label": label}
    return pd.DataFrame({**columns, "trustworthiness": 0.93})


def _geometry_tables(rng: np.random.Generator, latents: pd.DataFrame) -> dict[str, pd.DataFrame]:
    nulls = ("label_permutation", "random_features", "frequency_matched")
    sets = [("inducing", 0.032), ("benign", -0.006), ("neutral", -0.006)]
    table = [
        {
            "null": null,
            "effect": effect,
            "low": effect - 0.012,
            "high": effect + 0.012,
            "p": 0.0005,
            "with_shared": shared,
        }
        for null in nulls
        for effect, shared in ((0.038, False), (0.066, True))
    ]
    spots = [
        {"set": name, "latent": int(rng.integers(0, 1024)), "similarity": float(rng.normal(mean, 0.02))}
        for name, mean in sets
        for _ in range(24)
    ]
    return {
        "geometry": pd.DataFrame(table),
        "distances": pd.DataFrame(spots),
        "map": _map(rng, latents),
        "geometry_null": pd.DataFrame({"null": np.repeat(nulls, 600), "effect": rng.normal(0, 0.0095, 1800)}),
    }


def _writers(rng: np.random.Generator) -> pd.DataFrame:
    rows = [{"layer": -1, "component": "embed", "head": -1, "base": 0.11, "tuned": 0.10}]
    for layer in range(3):
        parts = [("head", head) for head in range(3)] + [("mlp", -1), ("attn_bias", -1)]
        for component, head in parts:
            base = float(rng.normal(0, 0.08))
            shift = {("mlp", 2): 0.92, ("head", 2): 0.12, ("mlp", 1): 0.35}.get((component, layer), 0.04) * float(
                rng.uniform(0.6, 1.2)
            )
            shift = (
                0.0 if component == "attn_bias" else shift - (0.15 if (component, layer, head) == ("head", 1, 2) else 0)
            )
            rows.append({"layer": layer, "component": component, "head": head, "base": base, "tuned": base + shift})
    return pd.DataFrame(rows).assign(shift=lambda t: t["tuned"] - t["base"])


def make_tables(rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    latents = _latents(rng, 1024)
    curve = pd.DataFrame(
        {
            "layer": range(4),
            "cosine": [0.12, 0.66, 0.86, 0.84],
            "split_half": [0.91, 0.98, 0.99, 0.98],
            "effect": [0.03, 0.09, 0.31, 0.27],
        }
    )
    return {
        "outcomes": make_outcomes(rng),
        "spread": _spread(rng),
        "dose": _dose(rng),
        "latents": latents,
        "writers": _writers(rng),
        "tokens": make_tokens(rng),
        "rows": make_rows(rng),
        "samples": make_samples(rng),
        "layer_curve": curve,
        **_geometry_tables(rng, latents),
    }
