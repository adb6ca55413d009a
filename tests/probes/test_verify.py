"""The self-test passes on a sound model and fails on an unsound one."""

import copy

import pytest
import torch

from probes import Conversation, InputError, load_model, self_test


def test_a_sound_model_passes(tiny_model, tiny_conversations):
    checks = self_test(tiny_model, tiny_conversations)
    assert len(checks) == 6 and all(check.passed for check in checks), checks


def test_peft_models_pass(tiny_tuned, tiny_conversations):
    assert all(check.passed for check in self_test(tiny_tuned, tiny_conversations))


def test_gpt2_passes(tiny_tokenizer, tiny_conversations):
    """Absolute positions are right only if they are counted from the mask."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": len(tiny_tokenizer)}
    hf = GPT2LMHeadModel(GPT2Config(initializer_range=0.2, bos_token_id=1, eos_token_id=2, **sizes)).eval()
    checks = self_test(load_model(hf, tokenizer=tiny_tokenizer), tiny_conversations)
    assert all(check.passed for check in checks), checks


def test_a_doubled_start_is_found(tiny_model, tiny_conversations):
    tokenizer = copy.deepcopy(tiny_model.tokenizer)
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    checks = {
        check.name: check for check in self_test(load_model(tiny_model.hf, tokenizer=tokenizer), tiny_conversations)
    }
    assert not checks["the first token is written once"].passed
    assert checks["the first token is written once"].figure == len(tiny_conversations)


def test_a_batch_dependent_model_is_found(tiny_model, tiny_conversations):
    """A block that mixes rows of a batch is just what the checks are for."""
    hf = copy.deepcopy(tiny_model.hf)
    hf.model.layers[0].mlp.register_forward_hook(lambda _, __, out: out + out.mean(dim=0, keepdim=True))
    failed = {
        c.name for c in self_test(load_model(hf, tokenizer=tiny_model.tokenizer), tiny_conversations) if not c.passed
    }
    assert "a batch equals single rows" in failed


def test_too_little_to_test(tiny_model):
    with pytest.raises(InputError, match="two or more"):
        self_test(tiny_model, [Conversation.of("Hi?", "Ho.")])
