"""Predicted and measured spill-over: the formulas in loops, the sign of a training step, random targets about zero."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from finetuning import LoRA, Schedule, finetune
from geometry.features import FeatureSet
from geometry.features.filtering import loss_gradients
from geometry.features.spillover import (
    Spillover,
    decoder_spillover,
    gradient_spillover,
    measured_spillover,
    step_spillover,
    unshared,
)  # fmt: skip
from probes import InputError, capture


@pytest.fixture
def target(wide_sae) -> FeatureSet:
    """Four target latents of known effects, one of which is harmful too."""
    return FeatureSet.of(wide_sae, (2, 4, 30, 50), effect=(1.0, 0.5, 0.25, 0.25))


def test_decoder_form_is_the_formula(wide_sae, harm, target):
    found = decoder_spillover(wide_sae, harm, target, n_random=30)
    d = (wide_sae.W_dec / wide_sae.W_dec.norm(dim=1, keepdim=True)).numpy()
    wanted = [sum(w * (d[j] @ d[i]) for i, w in zip(target, target.effect, strict=True) if i != j) for j in harm]
    assert found.change.tolist() == pytest.approx(wanted, abs=1e-5) and found.random.shape == (30, 5)
    assert abs(float(found.random.mean())) < 0.1 < float(found.random.std())
    equal = decoder_spillover(wide_sae, harm, FeatureSet.of(wide_sae, target), n_random=1)
    assert equal.change[0] == pytest.approx(sum(d[1] @ d[i] for i in target), abs=1e-5)


def test_gradient_form_is_the_formula(wide_sae, harm, rows, tiny_model):
    found = gradient_spillover(tiny_model, wide_sae, harm, rows, batch_size=5)
    parts = list(loss_gradients(tiny_model, rows, layer=2))
    pushes = [p.push[i, p.learns[i]].double().mean(0) for p in parts for i in range(len(p.rows))]
    encoder = (wide_sae.W_enc * wide_sae.W_dec.norm(dim=1)).double()
    wanted = torch.stack(pushes).mean(0) @ encoder[:, list(harm)]
    assert torch.allclose(found.change, wanted, atol=1e-4)
    gated = gradient_spillover(tiny_model, wide_sae, harm, rows)
    assert torch.allclose(gated.change, found.change, atol=1e-4)  # batches do not matter
    some = gradient_spillover(tiny_model, wide_sae, harm, rows, gate=True, n_random=3)
    assert some.form == "gradient, gated" and not torch.allclose(some.change, found.change, atol=1e-3)


@pytest.fixture
def many(wide_sae) -> FeatureSet:
    """Forty of the latents, so that ranks mean something."""
    return FeatureSet.of(wide_sae, range(40))


def test_a_step_foretells_a_fine_tune(wide_sae, many, rows, tiny_model):
    tuned = finetune(tiny_model, rows, schedule=Schedule(steps=4, lr=2e-3, batch=12), seed=0, lora=LoRA(rank=16)).model
    measured = measured_spillover(tiny_model, tuned, wide_sae, many, rows)
    before = [p.clone() for p in tiny_model.hf.parameters()]
    found = step_spillover(tiny_model, wide_sae, many, rows, rows, n_random=5)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, tiny_model.hf.parameters(), strict=True))
    line = found.against(measured)
    assert line["spearman"] > 0.5 and line["low"] > line["random_mean"] and abs(line["random_mean"]) < 0.3
    assert line["spearman"] == pytest.approx(stats.spearmanr(found.change, measured).statistic, abs=1e-9)
    small, half = (
        step_spillover(tiny_model, wide_sae, many, rows, rows, size=size, n_random=1) for size in (1e-4, 5e-5)
    )
    assert torch.allclose(half.change * 2, small.change, rtol=0.05, atol=0.02)  # first order


def test_measured_is_the_difference_of_means(wide_sae, harm, rows, tiny_model, tiny_tuned):
    found = measured_spillover(tiny_model, tiny_tuned, wide_sae, harm, rows, pool="last_prompt")
    sides = []
    for model in (tiny_tuned, tiny_model):
        latents = wide_sae.encode(capture(model, rows, layers=[2], pool="last_prompt").at(2))
        sides.append(latents.double().mean(0) * wide_sae.W_dec.norm(dim=1))
    assert torch.allclose(found, (sides[0] - sides[1])[list(harm)], atol=1e-5)


def test_random_targets_say_nothing(many):
    rng = np.random.default_rng(0)
    measured = torch.tensor(rng.normal(size=40))
    random = torch.tensor(rng.normal(size=(200, 40)))
    line = Spillover(many, measured + 0.1 * random[0], random, "made").against(measured)
    assert line["spearman"] > 0.9 and line["low"] > line["random_high"] > 0 > line["random_low"]
    assert abs(line["random_mean"]) < 0.05 and line["n"] == 40


def test_shared_latents_are_left_out(wide_sae, harm, target):
    found = decoder_spillover(wide_sae, harm, target, n_random=2)
    assert unshared(found, target).tolist() == [0, 2, 3, 4]


def test_bad_input(wide_sae, harm, target, sae, rows, tiny_model):
    found = decoder_spillover(wide_sae, harm, target, n_random=2)
    with pytest.raises(InputError, match="3 measured changes for 5"):
        found.against(torch.zeros(3))
    with pytest.raises(InputError, match="different SAEs"):
        decoder_spillover(sae, harm, target)
    with pytest.raises(InputError, match="too few for a random target"):
        decoder_spillover(wide_sae, harm, FeatureSet.of(wide_sae, range(40)))
    with pytest.raises(InputError, match="width"):
        gradient_spillover(tiny_model, replace(sae, layer=2), FeatureSet.of(sae, (1,)), rows)
