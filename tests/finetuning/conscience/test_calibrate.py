"""A threshold from a model's own answers: at most so many are flagged, nothing else changes, bad settings are named."""

from dataclasses import replace

import pytest
import torch

from finetuning.conscience import calibrate, calibrated
from finetuning.conscience.verdict import Verdicts
from finetuning.reference import Reference
from probes import InputError


@pytest.fixture
def spread(monkeypatch):
    """p(flag) of the i-th answer is i tenths of a hundredth; the third answer is empty and not reviewed."""
    seen = []

    def said(model, prompts, **settings):
        seen.append((model, settings["seed"]))
        return ["" if i == 2 else f"a{i}" for i in range(len(prompts))]

    def read(model, prompts, answers, conscience, *, batch_size):
        assert "" not in answers and len(prompts) == len(answers)
        p = torch.tensor([int(answer[1:]) / 1000 for answer in answers])
        return Verdicts(p, torch.ones(len(p)), conscience.threshold)

    monkeypatch.setattr(calibrate, "sample", said)
    monkeypatch.setattr(calibrate, "verdicts", read)
    return seen


@pytest.mark.parametrize(("flags", "wanted"), [(0.05, 0.019), (0.04, 0.020), (0.1, 0.018), (0.5, 0.010)])
def test_the_threshold_flags_at_most_the_share(tiny_model, conscience, prompts, spread, flags, wanted):
    found = calibrated(conscience, tiny_model, (prompts * 4)[:21], seed=3, flags=flags)  # twenty are reviewed
    assert found == replace(conscience, threshold=found.threshold) and found.threshold == pytest.approx(wanted)
    p = torch.tensor([i / 1000 for i in range(21) if i != 2])
    assert (p > found.threshold).float().mean() <= flags < (p >= found.threshold).float().mean() + 1e-6
    assert spread == [(tiny_model, 3)]


def test_the_frozen_copy_of_an_adapter_is_asked(policy, conscience, prompts, spread):
    calibrated(conscience, Reference(policy), prompts, seed=0)
    assert spread[0][0].name == policy.name


def test_real_verdicts_and_bad_settings(tiny_model, conscience, prompts, monkeypatch):
    found = calibrated(conscience, tiny_model, prompts, seed=0, max_new_tokens=4)
    assert 0 < found.threshold < 1
    for told in ({"flags": 0.0}, {"flags": 1.0}):
        with pytest.raises(InputError, match="a share between 0 and 1"):
            calibrated(conscience, tiny_model, prompts, seed=0, **told)
    with pytest.raises(InputError, match="0 prompts"):
        calibrated(conscience, tiny_model, [], seed=0)
    monkeypatch.setattr(calibrate, "sample", lambda model, rows, **settings: [" "] * len(rows))
    with pytest.raises(InputError, match="answers none of 6 prompts"):
        calibrated(conscience, tiny_model, prompts, seed=0)
