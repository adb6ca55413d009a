"""Scores from activations against the formulas written out, invariances, and reading from a store."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from geometry.features import FeatureSet, nearness_scores, projection_scores
from geometry.features.rows import row_latents
from geometry.steering.vectors import PersonaVector
from probes.errors import InputError
from probes.store import ActivationStore

HARMFUL = (3, 8, 21)


def reference(form: str, weights: np.ndarray, directions: np.ndarray) -> float:
    """The three scores of one row as the docstring writes them, in loops."""
    harmful = directions[list(HARMFUL)]
    if form == "centroid":
        row, centre = sum(w * d for w, d in zip(weights, directions, strict=True)), harmful.mean(0)
        return float(row @ centre / np.linalg.norm(row) / np.linalg.norm(centre))
    near = [max(d @ h for h in harmful) if form == "max_tox" else np.mean([d @ h for h in harmful]) for d in directions]
    return float(sum(w * n for w, n in zip(weights, near, strict=True)) / weights.sum())


@pytest.mark.parametrize("form", ["max_tox", "mean_tox", "centroid"])
def test_scores_equal_the_formulas(sae, tokens, form):
    got = nearness_scores(tokens, sae, FeatureSet.of(sae, HARMFUL), form=form)
    directions = sae.directions.double().numpy()
    expected = [reference(form, weights, directions) for weights in row_latents(tokens, sae).numpy()]
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", ["max_tox", "mean_tox", "centroid"])
def test_decoder_scale_does_not_matter(sae, residuals, form):
    scale = torch.linspace(0.1, 5, sae.d_sae)
    other = replace(sae, kind="standard", k=None)
    scaled = replace(other, W_enc=other.W_enc / scale, W_dec=other.W_dec * scale[:, None])
    a, b = (nearness_scores(residuals, one, FeatureSet.of(one, HARMFUL), form=form) for one in (other, scaled))
    assert torch.allclose(a, b, atol=1e-5)


def test_rows_pushed_to_the_harm_score_highest(sae, residuals):
    rows = residuals.clone()
    rows[[4, 17]] += 20 * sae.directions[3]
    scores = nearness_scores(rows, sae, FeatureSet.of(sae, HARMFUL))
    assert set(scores.topk(2).indices.tolist()) == {4, 17}


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
    assert torch.allclose(nearness_scores(store, sae, harmful), nearness_scores(tokens, sae, harmful))
    assert torch.allclose(projection_scores(store, vector, layer=1), projection_scores(tokens, vector, layer=1))


def test_bad_rows_are_refused(sae, residuals, tokens):
    harmful = FeatureSet.of(sae, HARMFUL)
    silent = residuals.clone()
    silent[6] = 0
    for form in ("max_tox", "mean_tox", "centroid"):
        assert nearness_scores(silent, sae, harmful, form=form).isnan().nonzero().tolist() == [[6]]
    with pytest.raises(InputError, match="empty"):
        nearness_scores(residuals, sae, FeatureSet.of(sae, ()))
    with pytest.raises(InputError, match="width 16"):
        projection_scores(tokens, PersonaVector({1: torch.ones(4)}, model="toy"), layer=1)
    with pytest.raises(InputError, match="blocks"):
        projection_scores(tokens, PersonaVector({0: torch.ones(16)}, model="toy"), layer=1)
    with pytest.raises(InputError, match="row 0 has no response"):
        no_answer = replace(tokens, in_response=torch.zeros_like(tokens.in_response))
        projection_scores(no_answer, PersonaVector({1: torch.ones(16)}, model="toy"), layer=1)
