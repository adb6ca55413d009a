"""A base and its fine-tunes over one set of weights: each is itself, in any order, whatever happens in between."""

import contextlib

import pytest
import torch

from probes import Conversation, InputError, capture_blocks, check_same_family, intervene, load_model, sample
from probes.models import load_pair, with_adapter
from tests.probes.families import build_adapted
from tests.probes.operators import Change

LAYERS = (0, 1, 2, 3)
QUESTIONS = [Conversation.of("Hi?"), Conversation.of("Who are you?")]


def fail(_):
    """Breaks a pass off."""
    raise ZeroDivisionError


@pytest.fixture
def pair(tiny_folder, tiny_adapter):
    """The tiny model and its fine-tune over the same weights."""
    return load_pair(tiny_folder, tiny_adapter)


def answers(model):
    return sample(model, QUESTIONS, seed=4, max_new_tokens=5)


def test_both_equal_models_loaded_alone_in_any_order(pair, tiny_model, tiny_tuned, rendered):
    alone = tiny_model, tiny_tuned
    values, words = [capture_blocks(m, rendered, LAYERS) for m in alone], [answers(m) for m in alone]
    assert not torch.allclose(*values, atol=0.1) and words[0] != words[1]
    for i in (0, 1, 1, 0):
        assert torch.equal(capture_blocks(pair[i], rendered, LAYERS), values[i]) and answers(pair[i]) == words[i]
        with contextlib.suppress(ZeroDivisionError), intervene(pair[i], Change(fail)):
            answers(pair[i])
    check_same_family(*pair)
    assert [m.name for m in pair] == ["tiny", "tiny+adapter"] and pair[1].fingerprint == tiny_tuned.fingerprint
    assert [m.weights_digest for m in pair] == [m.weights_digest for m in alone]


def test_edits_of_one_leave_the_other_alone(pair, tiny_adapter, rendered):
    base, tuned = pair
    plain = [capture_blocks(m, rendered, LAYERS) for m in pair]
    for edited, other, before, untouched in ((base, tuned, *plain), (tuned, base, *plain[::-1])):
        with intervene(edited, Change(lambda x: x + 1)):
            assert not torch.allclose(capture_blocks(edited, rendered, LAYERS)[1:], before[1:], atol=0.1)
            assert torch.equal(capture_blocks(other, rendered, LAYERS), untouched)
    with intervene(base, Change(lambda x: x + 1)):
        late = with_adapter(base, tiny_adapter)
    assert torch.equal(capture_blocks(late, rendered, LAYERS), plain[1])  # the base's edits are not copied with it


def test_the_weights_are_held_once(pair, tiny_tuned):
    held = {weight.data_ptr() for weight in pair[0].hf.parameters()}
    own = {name: weight.numel() for name, weight in pair[1].hf.named_parameters() if weight.data_ptr() not in held}
    assert own and all("lora_" in name for name in own)
    alone = sum(weight.numel() for weight in tiny_tuned.hf.parameters())
    assert sum(own.values()) < 0.2 * alone


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "gemma2", "qwen2_moe"])
def test_families_with_rank_one_adapters(family, tokenizer, rendered, build_family, tmp_path):
    tuned = build_adapted(family, tokenizer, r=1, use_rslora=True)
    tuned.save_pretrained(str(tmp_path))
    both = load_pair(build_family(family, tokenizer), tmp_path, tokenizer=tokenizer, name=family)
    for model, alone in zip(both, (build_family(family, tokenizer), tuned), strict=True):
        values = capture_blocks(load_model(alone, tokenizer=tokenizer), rendered, LAYERS)
        torch.testing.assert_close(capture_blocks(model, rendered, LAYERS), values, atol=1e-5, rtol=1e-5)


def test_a_live_base_keeps_what_it_was_and_is_seen_by_its_tune(tokenizer, build_llama, tiny_adapter, rendered):
    hf = build_llama(tokenizer).train()
    hf.model.layers[0].requires_grad_(False)
    grads, modes = [p.requires_grad for p in hf.parameters()], [m.training for m in hf.modules()]
    base, tuned = load_pair(hf, tiny_adapter, tokenizer=tokenizer, tuned_name="tuned")
    assert base.hf is hf and tuned.name == "tuned" and not any("lora" in name for name, _ in hf.named_modules())
    assert [p.requires_grad for p in hf.parameters()] == grads and [m.training for m in hf.modules()] == modes
    before = capture_blocks(tuned, rendered, LAYERS)
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight.mul_(2)
    assert not torch.allclose(capture_blocks(tuned, rendered, LAYERS), before, atol=0.1)


def test_a_study_shares_weights_away_from_the_cpu(tiny_model, tiny_folder, tiny_adapter):
    from persona_geometry.stages.given import load_tuned

    asked = {"base": str(tiny_folder), "tuned": str(tiny_adapter), "beside": tiny_model}
    merged, shared = load_tuned(**asked, device="cpu"), load_tuned(**asked, device="cuda")
    held = {weight.data_ptr() for weight in tiny_model.hf.parameters()}
    assert merged.name == shared.name and not held & {w.data_ptr() for w in merged.hf.parameters()}
    assert held < {w.data_ptr() for w in shared.hf.parameters()}


def test_an_adapter_that_does_not_fit_leaves_the_base_alone(tiny_adapter, tokenizer, build_family, rendered):
    base = load_model(build_family("llama", tokenizer, hidden_size=16), tokenizer=tokenizer)
    before, grads = capture_blocks(base, rendered, LAYERS), [p.requires_grad for p in base.hf.parameters()]
    with pytest.raises(InputError, match="does not fit"):
        with_adapter(base, tiny_adapter)
    assert torch.equal(capture_blocks(base, rendered, LAYERS), before)
    assert [p.requires_grad for p in base.hf.parameters()] == grads


def test_one_adapter_at_a_time(tiny_tuned, tiny_adapter):
    with pytest.raises(InputError, match="has one already"):
        with_adapter(tiny_tuned, tiny_adapter)
