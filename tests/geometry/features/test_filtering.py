"""Row scores against the formulas written out, invariances, projections, the split, and reading from a store."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from geometry.features import FeatureSet, drop_nearest, projection_scores, score_rows
from geometry.features.rows import row_latents
from geometry.steering.vectors import PersonaVector
from probes.errors import InputError
from probes.store import ActivationStore

HARMFUL = (3, 8, 21)


def reference(score: str, weights: np.ndarray, directions: np.ndarray) -> float:
    """The three scores of one row as the docstring writes them, in loops."""
    harmful = directions[list(HARMFUL)]
    if score == "centroid":
        row, centre = sum(w * d for w, d in zip(weights, directions, strict=True)), harmful.mean(0)
        return float(row @ centre / np.linalg.norm(row) / np.linalg.norm(centre))
    near = [
        max(d @ h for h in harmful) if score == "max_tox" else np.mean([d @ h for h in harmful]) for d in directions
    ]
    return float(sum(w * n for w, n in zip(weights, near, strict=True)) / weights.sum())


@pytest.mark.parametrize("score", ["max_tox", "mean_tox", "centroid"])
def test_scores_equal_the_formulas(sae, tokens, score):
    got = score_rows(tokens, sae, FeatureSet.of(sae, HARMFUL), score=score)
    directions = sae.directions.double().numpy()
    expected = [reference(score, weights, directions) for weights in row_latents(tokens, sae).numpy()]
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("score", ["max_tox", "mean_tox", "centroid"])
def test_decoder_scale_does_not_matter(sae, residuals, score):
    scale = torch.linspace(0.1, 5, sae.d_sae)
    other = replace(sae, kind="standard", k=None)
    scaled = replace(other, W_enc=other.W_enc / scale, W_dec=other.W_dec * scale[:, None])
    a, b = (score_rows(residuals, one, FeatureSet.of(one, HARMFUL), score=score) for one in (other, scaled))
    assert torch.allclose(a, b, atol=1e-5)


def test_rows_pushed_to_the_harm_score_highest(sae, residuals):
    rows = residuals.clone()
    rows[[4, 17]] += 20 * sae.directions[3]
    scores = score_rows(rows, sae, FeatureSet.of(sae, HARMFUL))
    assert set(drop_nearest(scores, fraction=0.05).dropped.tolist()) == {4, 17}


def test_projection_scores_are_means_over_the_response(tokens):
    direction = torch.randn(16, generator=torch.Generator().manual_seed(2))
    vector = PersonaVector({1: direction}, model="toy")
    scores = projection_scores(tokens, vector, layer=1)
    for row, conversation in enumerate((0, 2, 3, 5, 9)):
        inside = tokens.at(1)[(tokens.conversation_index == conversation) & tokens.in_response]
        assert float(scores[row]) == pytest.approx(float((inside @ direction).mean() / direction.norm()), abs=1e-5)
    assert torch.allclose(projection_scores(tokens, vector * -3.0, layer=1), -scores)
    pooled = replace(tokens.select(torch.arange(5)), pool="response_mean")
    assert len(projection_scores(pooled, vector, layer=1)) == 5


def test_a_store_gives_the_same_as_memory(sae, tokens, tmp_path):
    store = ActivationStore.create(tmp_path / "store")
    for conversations in ((9, 2), (0, 3, 5)):
        chosen = torch.isin(tokens.conversation_index, torch.tensor(conversations))
        store.append(tokens.select(chosen))
    vector, harmful = PersonaVector({1: torch.ones(16)}, model="toy"), FeatureSet.of(sae, HARMFUL)
    assert torch.allclose(row_latents(store, sae), row_latents(tokens, sae))
    assert torch.allclose(score_rows(store, sae, harmful), score_rows(tokens, sae, harmful))
    assert torch.allclose(projection_scores(store, vector, layer=1), projection_scores(tokens, vector, layer=1))


def test_the_split():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.2])
    split = drop_nearest(scores)
    assert split.dropped.tolist() == [1, 3] and split.kept.tolist() == [0, 2, 4]
    assert drop_nearest(scores, fraction=0.0).kept.tolist() == [0, 1, 2, 3, 4]
    for fraction in (1.0, -0.1):
        with pytest.raises(InputError, match="fraction"):
            drop_nearest(scores, fraction=fraction)
    with pytest.raises(InputError, match="NaN"):
        drop_nearest(torch.tensor([0.1, torch.nan]))


def test_bad_rows_are_refused(sae, residuals, tokens):
    harmful = FeatureSet.of(sae, HARMFUL)
    silent = residuals.clone()
    silent[6] = 0
    for score in ("max_tox", "centroid"):
        with pytest.raises(InputError, match="no latent fires in row 6"):
            score_rows(silent, sae, harmful, score=score)
    with pytest.raises(InputError, match="empty"):
        score_rows(residuals, sae, FeatureSet.of(sae, ()))
    with pytest.raises(InputError, match="width 16"):
        projection_scores(tokens, PersonaVector({1: torch.ones(4)}, model="toy"), layer=1)
    with pytest.raises(InputError, match="blocks"):
        projection_scores(tokens, PersonaVector({0: torch.ones(16)}, model="toy"), layer=1)
    with pytest.raises(InputError, match="row 0 has no response"):
        no_answer = replace(tokens, in_response=torch.zeros_like(tokens.in_response))
        projection_scores(no_answer, PersonaVector({1: torch.ones(16)}, model="toy"), layer=1)
