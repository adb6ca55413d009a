"""The self-test passes on sound models of every family and fails, on the right check, on broken ones."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from probes import Conversation, InputError, NoChatTemplate, load_model, plain_text, self_test
from probes.verify import SAMPLES, activations_of
from probes.verify.suite import SUITE
from tests.probes.families import FAMILIES
from tests.probes.verify.faults import FAULTS

STORIES = Path(os.environ.get("PERSONA_GEOMETRY_ASSETS", "")) / "models" / "stories260K"
ADAPTER = ("the adapter changes the model", "switched off, the adapter leaves the base")


def names(checks, passed=None):
    return [check.name for check in checks if passed in (None, check.passed)]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_pass(build_family, build_tokenizer, family):
    tokenizer = build_tokenizer()
    checks = self_test(load_model(build_family(family, tokenizer), tokenizer=tokenizer))
    assert names(checks) == [entry.name for entry in SUITE if entry.name not in ADAPTER]
    assert names(checks, passed=False) == [] and all(0 <= check.figure <= check.limit for check in checks)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_its_checks_and_no_other(tiny_model, tiny_tuned, monkeypatch, fault):
    plant, expected = FAULTS[fault]
    tuned = any(name in ADAPTER for name in expected)
    whole = tiny_tuned if tuned else tiny_model
    model = plant(replace(whole, hf=copy.deepcopy(whole.hf), tokenizer=copy.deepcopy(whole.tokenizer)), monkeypatch)
    checks = self_test(model, base=activations_of(tiny_model, SAMPLES) if tuned else None)
    assert set(names(checks, passed=False)) == set(expected)
    assert all(check.figure > check.limit for check in checks if not check.passed)


def test_every_check_has_a_fault():
    """The steered cache has none of its own: what breaks it breaks the cache or the steering."""
    meant, all_seen = {seen[0] for _, seen in FAULTS.values()}, {name for _, seen in FAULTS.values() for name in seen}
    assert {entry.name for entry in SUITE} - meant == {"a filled cache changes no steered logit"} <= all_seen


@pytest.mark.skipif(not STORIES.is_dir(), reason="no stories260K under PERSONA_GEOMETRY_ASSETS")
@pytest.mark.parametrize("plain", [False, True])
def test_a_real_model_without_a_template_passes(plain):
    model = load_model(STORIES)
    if plain:
        assert names(self_test(plain_text(model), PLAIN_ROWS), passed=False) == []
    else:
        with pytest.warns(NoChatTemplate):
            assert names(self_test(model), passed=False) == []


PLAIN_ROWS = [Conversation.of("Once upon a time", " there was a cat."), Conversation.of("Tim had", " a big red ball.")]


def test_an_adapter_passes_and_its_base_is_left_when_it_is_off(tiny_model, tiny_tuned, tiny_conversations):
    checks = self_test(tiny_tuned, tiny_conversations, base=activations_of(tiny_model, tiny_conversations))
    assert names(checks) == [entry.name for entry in SUITE] and names(checks, passed=False) == []
    assert len(self_test(tiny_tuned, tiny_conversations)) == len(SUITE) - 1  # without a base to compare


@pytest.mark.parametrize(("family", "dtype"), [("gemma2", torch.bfloat16), ("llama", torch.float64)])
def test_other_dtypes_pass(build_family, build_tokenizer, family, dtype):
    tokenizer = build_tokenizer()
    checks = self_test(load_model(build_family(family, tokenizer).to(dtype), tokenizer=tokenizer))
    assert names(checks, passed=False) == []
    assert {check.limit for check in checks} == {0.0, {torch.bfloat16: 5e-2, torch.float64: 1e-8}[dtype]}


def test_a_model_that_raises_has_failed(tiny_model):
    def forward(*_, **kwargs):
        raise RuntimeError("out of luck\nmore")

    model = replace(tiny_model, hf=copy.deepcopy(tiny_model.hf))
    model.hf.forward = forward
    checks = {check.name: check for check in self_test(model)}
    failed = checks["capture equals the model's hidden states"]
    assert (failed.passed, failed.figure, failed.detail) == (False, 1.0, "RuntimeError: out of luck")
    assert checks["a left-padded batch equals single rows"].passed


def test_the_model_is_left_as_it_was(tiny_model):
    before = (tiny_model.weights_digest, [m.training for m in tiny_model.hf.modules()], torch.get_rng_state().tolist())
    self_test(tiny_model)
    after = (tiny_model.weights_digest, [m.training for m in tiny_model.hf.modules()], torch.get_rng_state().tolist())
    assert before == after


def test_too_little_to_test(tiny_model):
    with pytest.raises(InputError, match="two or more"):
        self_test(tiny_model, [Conversation.of("Hi?", "Ho.")])


def test_the_page_names_every_check_and_its_bug():
    page = (Path(__file__).parents[3] / "docs" / "verify.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("| ")]
    assert [(row[1], row[3]) for row in rows[1:]] == [(entry.name, entry.guards) for entry in SUITE]
