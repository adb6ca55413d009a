"""The cells of the SAE claims: quality, diffs, attribution, and attribution against true ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from persona_geometry.organism.claims.bench import Bench, paired_rows, records
from persona_geometry.organism.claims.causal import induces, measured, repairs
from probes.conversations import Conversation
from probes.models import Model
from saes.attribute import ablation_effects, attribute_latents, delta_ablation, delta_attribution
from saes.diff import diff_latents
from saes.fidelity import quality
from saes.latents import latent_stats
from saes.sae import SparseAutoencoder
from saes.splicing import spliced_loss
from saes.stability import latent_stability

#: How many of a ranking's first latents are kept, and how many of them may hold the causal one.
KEPT, FIRST = 10, 3
REFERENCES = ("zero", "mean")
COLUMNS = ("latent", "rank", "delta_mean", "base_freq", "tuned_freq", "base_mean", "tuned_mean", "control_delta")
ATTRIBUTED = ("latent", "rank", "attribution", "low", "high")


def qualities(bench: Bench, sae_name: int | str) -> dict[str, Any]:
    """FVU, L0 and cross-entropy recovered on answers that no SAE read, in the domains that were read and in others."""

    def run() -> dict[str, Any]:
        sae = bench.sae(sae_name)
        plans = {"fresh": ("fresh", "base"), "fresh, tuned": ("fresh", "misaligned"), "test": ("test", "base")}
        return {name: _quality(bench, sae, *where) for name, where in plans.items()}

    return bench.cells.json(f"quality-{sae_name}", run)


def _quality(bench: Bench, sae: SparseAutoencoder, where: str, arm: str) -> dict[str, Any]:
    said = bench.held_out(where, arm)
    if where == "fresh":
        said = unread(said, bench.text)
    model = bench.model(arm)
    acts, spliced = bench.tokens(model, said), spliced_loss(sae, model, said, batch_size=64)
    found = {"answers": len(said), "recovered": spliced.recovered.as_dict(), "kl": spliced.kl.as_dict()}
    for tokens in ("response", "all"):
        q = quality(sae, acts, where=tokens)
        found[tokens] = {"fvu": q.rates["fvu"].as_dict(), "l0": q.l0, "dead": q.dead, "n": q.n}
    return found


def unread(said: list[Conversation], read: list[Conversation]) -> list[Conversation]:
    """The answers that do not stand word for word among those that were read."""
    known = {row.answer for row in read}
    return [row for row in said if row.answer not in known]


def diffed(bench: Bench, sae_name: int | str, arm: str, seed: int) -> list[dict[str, Any]]:
    """The latents that rose most on each model's own answers, the benign fine-tune's change beside them."""

    def run() -> list[dict[str, Any]]:
        sae = bench.sae(sae_name)
        models = {"base": ("base", 0), "tuned": (arm, seed), "benign": ("benign", seed)}
        acts = {name: bench.tokens(bench.model(*which), bench.said(*which)) for name, which in models.items()}
        table = diff_latents(acts["base"], acts["tuned"], sae, control=acts["benign"], where="response").top(KEPT)
        return records(pd.DataFrame(table, columns=list(COLUMNS)))

    return bench.cells.json(f"diff-{sae_name}-{arm}-{seed}", run)


def causal_ranks(bench: Bench, sae_name: int | str, arm: str, seed: int) -> dict[str, Any]:
    """Which of the first latents of a diff are causal; they are tried in their order until one is."""
    rows = diffed(bench, sae_name, arm, seed)
    risen = [int(row["latent"]) for row in rows]
    tried = []
    for row in rows[:FIRST]:
        latent = int(row["latent"])
        repair = repairs(bench, sae_name, arm, seed, latent, risen)
        induce = induces(bench, sae_name, latent)
        share = abs(row["control_delta"]) / row["delta_mean"]
        tried.append({"rank": int(row["rank"]), "latent": latent, "repair": repair, "induce": induce, "benign": share})
        if len(tried) >= bench.plan.looked_at and any(_causal(t) for t in tried):
            break
    causal = [t["rank"] for t in tried if _causal(t)]
    return {"tried": tried, "rank": min(causal, default=None)}


def _causal(tried: dict[str, Any]) -> bool:
    return tried["repair"]["counts"] or tried["induce"]["counts"]


def delta(bench: Bench, sae_name: int | str, arm: str, seed: int) -> list[dict[str, Any]]:
    """The first latents of the delta-attribution: harmful less good answers to the same questions, tuned model."""

    def run() -> list[dict[str, Any]]:
        sides = paired_rows(bench.plan.pairs, seed=seed)
        table = delta_attribution(bench.model(arm, seed), bench.sae(sae_name), *sides, batch_size=64).table
        first = pd.DataFrame(table.nsmallest(KEPT, "rank"), columns=list(ATTRIBUTED))
        return records(first)

    return bench.cells.json(f"delta-{sae_name}-{arm}-{seed}", run)


def attributed(bench: Bench, sae_name: int | str, arm: str, seed: int) -> dict[str, Any]:
    """The latent that leads the delta-attribution, switched off beside random latents of like firing rate."""
    rows = delta(bench, sae_name, arm, seed)
    latents = [int(row["latent"]) for row in rows]
    return measured(bench, sae_name, arm, seed, latents[0], "off", risen=latents)


def first_order(bench: Bench, sae_name: int | str, arm: str, seed: int) -> dict[str, Any]:
    """Attribution against true ablation over the strongest latents: by mean activation, and by its own size.

    `own`: the loss of the tuned model's own answers; `contrast`: that of harmful less that of good answers.
    """

    def run() -> dict[str, Any]:
        few = bench.plan.attributed
        said = bench.said(arm, seed)[:: max(1, len(bench.said(arm, seed)) // few)]
        bad, good = paired_rows(few, seed=seed)
        model, sae = bench.model(arm, seed), bench.sae(sae_name)
        return {
            what: {ref: _against_truth(bench, model, sae, rows, ref) for ref in REFERENCES}
            for what, rows in (("own", (said,)), ("contrast", (bad, good)))
        }

    return bench.cells.json(f"first-order-{sae_name}-{arm}-{seed}", run)


def _against_truth(
    bench: Bench, model: Model, sae: SparseAutoencoder, rows: tuple[list[Conversation], ...], reference: Any
) -> dict[str, Any]:
    run = {"reference": reference, "batch_size": 64}
    estimate: Any = attribute_latents if len(rows) == 1 else delta_attribution
    truth: Any = ablation_effects if len(rows) == 1 else delta_ablation
    told = estimate(model, sae, *rows, **run).table["attribution"].to_numpy()
    read = [row for side in rows for row in side]
    means, n = latent_stats(sae, bench.tokens(model, read)).mean.numpy(), bench.plan.strongest
    chosen = {"activation": np.argsort(-means)[:n], "attribution": np.argsort(-np.abs(told))[:n]}
    ids = sorted({int(i) for some in chosen.values() for i in some})
    true = dict(zip(ids, truth(model, sae, *rows, ids, **run).tolist(), strict=True))
    return {
        by: {"pearson": _r(told[some], [true[int(i)] for i in some]), "spearman": _rho(told[some], some, true)}
        for by, some in chosen.items()
    } | {"answers": len(read)}


def _r(a: Any, b: Any) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def _rho(told: np.ndarray, some: np.ndarray, true: dict[int, float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(told, [true[int(i)] for i in some])[0])  # pyright: ignore[reportArgumentType]


def stable(bench: Bench, latents: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """How many latents the SAEs share, and for the given `latents` of each their nearest in the others."""

    def run() -> dict[str, Any]:
        named = {str(seed): bench.sae(seed) for seed in bench.plan.sae_seeds}
        made = latent_stability(named, draws=1)
        return {
            "table": made.table.to_dict(orient="records"),
            "latents": [
                {"sae": a, "latent": i, "other": b, "nearest": int(m.nearest[i]), "cosine": float(m.best[i])}
                for (a, b), m in made.matches.items()
                for i in latents[a]
            ],
        }

    if len(bench.plan.sae_seeds) < 2:
        return {"table": [], "latents": []}
    known = "-".join(f"{name}_{'_'.join(map(str, some))}" for name, some in latents.items())
    return bench.cells.json(f"stability-{known}", run)
