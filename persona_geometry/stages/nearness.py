"""How near the harm lies to what was trained: feature sets, distances with their null, the map, the worst rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from geometry.features.filtering import nearness_scores, projection_scores
from geometry.features.identify import identify_features
from geometry.features.maps import decoder_map, neighbourhood
from geometry.features.nulls import GeometryTable, compare_sets
from geometry.features.sets import FeatureSet
from persona_geometry.stages.cells import Cells
from persona_geometry.stages.inputs import Inputs
from persona_geometry.stages.latents import needed
from persona_geometry.stages.steering import Choice, Material
from probes.capture import Activations, capture
from probes.conversations import Conversation

#: How many latents a feature set holds (arXiv 2605.00842), at most what share of the SAE's; how many a map shows.
SET_SIZE, SET_SHARE, MAPPED = 100, 0.125, 1_200


def set_size(d_sae: int) -> int:
    """How many latents a set holds: 100, fewer in a small SAE."""
    return max(2, min(SET_SIZE, int(SET_SHARE * d_sae)))


def _read(inputs: Inputs, rows: Sequence[Conversation]) -> Activations:
    return capture(inputs.base, rows, layers=(needed(inputs).layer,), pool="tokens")


def answer_tokens(acts: Activations) -> Activations:
    """The tokens of the answers alone."""
    assert acts.in_response is not None
    return acts.select(acts.in_response)


def feature_sets(inputs: Inputs) -> dict[str, FeatureSet]:
    """Harmful features from other domains' answers; inducing and benign ones from the data, each against the other.

    All are read off the base model, before any fine-tune.
    """
    sae, rows = needed(inputs), inputs.rows
    acts = {
        name: answer_tokens(_read(inputs, getattr(rows, name)))
        for name in ("train", "benign", "neutral", "harmful", "harmless")
        if getattr(rows, name)
    }
    k = set_size(sae.d_sae)
    return {
        "harmful": identify_features(acts["harmful"], acts["harmless"], sae, k=k),
        "inducing": identify_features(acts["train"], acts["benign"], sae, k=k),
        "benign": identify_features(acts["benign"], acts["train"], sae, k=k),
    }


def compared(inputs: Inputs, cells: Cells) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """study.json's `geometry`, and the tables geometry, geometry_null and distances."""
    sae = needed(inputs)

    def found() -> tuple[dict[str, FeatureSet], GeometryTable]:
        sets = feature_sets(inputs)
        generator = torch.Generator().manual_seed(inputs.seed * 7_919 + 11)
        n = inputs.sizes.permutations
        return sets, compare_sets(
            sae, sets["inducing"], sets["benign"], sets["harmful"], generator=generator, n_permutations=n
        )

    def run() -> dict[str, Any]:
        sets, result = found()
        result.table.to_parquet(cells.folder / "geometry.table.parquet", index=False)
        result.nulls.to_parquet(cells.folder / "geometry_null.table.parquet", index=False)
        result.distances.to_parquet(cells.folder / "distances.table.parquet", index=False)
        return result.summary() | {"sets": {name: list(s.latents) for name, s in sets.items()}}

    summary = cells.json("geometry", run)
    tables = [
        pd.read_parquet(cells.folder / f"{name}.table.parquet") for name in ("geometry", "geometry_null", "distances")
    ]
    return summary, tables[0], tables[1], tables[2]


def mapped(
    inputs: Inputs, cells: Cells, sets: dict[str, list[int]], alive: Sequence[int], labels: dict[int, str]
) -> pd.DataFrame:
    """UMAP of the decoder directions with the sets marked; a large dictionary is cut to their neighbourhood."""
    sae = needed(inputs)

    def run() -> pd.DataFrame:
        groups = {name: FeatureSet.of(sae, latents) for name, latents in sets.items()}
        wanted = sorted({i for latents in sets.values() for i in latents} | set(alive))
        if len(wanted) > MAPPED:
            centre = sorted({i for latents in sets.values() for i in latents})
            wanted = neighbourhood(sae.directions, centre, n=10).tolist()
        made = decoder_map(sae.directions[wanted], seed=inputs.seed, latents=wanted)
        return made.table(groups, labels).assign(trustworthiness=made.trust_umap)

    return cells.table("map", run)


def worst_rows(
    inputs: Inputs, cells: Cells, found: Material, choice: Choice | None, harmful: list[int]
) -> pd.DataFrame:
    """Training rows by how near they lie to the harmful features, beside their projection on the persona vector."""
    sae, rows = needed(inputs), inputs.rows.train

    def run() -> pd.DataFrame:
        acts = answer_tokens(_read(inputs, rows))
        score = nearness_scores(acts, sae, FeatureSet.of(sae, harmful))
        vector = found.vectors[choice.vector if choice else "shift"]
        layer = choice.layers[-1] if choice else sae.layer
        projection = projection_scores(
            capture(inputs.base, rows, layers=(layer,), pool="response_mean"), vector, layer=layer
        )
        table = pd.DataFrame(
            {
                "index": range(len(rows)),
                "score": score.tolist(),
                "question": [r.messages[-2]["content"] for r in rows],
                "answer": [r.answer for r in rows],
                "base_projection": projection.tolist(),
            }
        )
        return table.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)

    return cells.table("rows", run)


def coloured_tokens(inputs: Inputs, cells: Cells, found: Material, choice: Choice) -> pd.DataFrame:
    """A few answers token by token: the projection on the persona vector, less the base's mean, in shifts."""
    vector, layer = found.vectors[choice.vector], choice.layers[-1]
    levels = found.levels[choice.vector]

    def run() -> pd.DataFrame:
        parts = []
        for name, said in (("base", found.base), ("tuned", found.tuned)):
            picked = [said[i] for i in (0, len(said) // 3, 2 * len(said) // 3)]
            acts = capture(inputs.models[name], picked, layers=(layer,), pool="tokens")
            assert acts.in_response is not None and acts.token_ids is not None
            inside = acts.in_response
            values = (vector.project(acts.at(layer)[inside], layer) - levels.reference[layer]) / (
                levels.shift[layer] or 1.0
            )
            ids, rows = acts.token_ids[inside].tolist(), acts.conversation_index[inside].tolist()
            parts.append(
                pd.DataFrame(
                    {
                        "row": [r if name == "base" else r + 3 for r in rows],
                        "question": [picked[r].messages[-2]["content"] for r in rows],
                        "model": name,
                        "token": [inputs.base.tokenizer.decode([i]) for i in ids],
                        "projection": values.tolist(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    return cells.table("tokens", run)
