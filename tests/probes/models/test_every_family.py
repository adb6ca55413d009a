"""Every family: what is read equals what transformers returns, with and without adapters, and what a bridge holds."""

import pytest
import torch

from probes import capture_blocks, check_same_family, hook_name, load_model, sample
from probes.conversations import Conversation
from probes.models import unwrap
from tests.probes.families import FAMILIES, build_adapted

LAYERS = (0, 1, 2, 3)
RANK_ONE = {"r": 1, "lora_alpha": 1, "use_rslora": True}
KINDS = [(family, None) for family in FAMILIES] + [(family, {}) for family in FAMILIES]
KINDS += [(family, RANK_ONE) for family in ("llama", "phi3", "gpt2", "gpt_neox")]


def made(family, lora, tokenizer, build_family):
    """A model of the family, with an adapter unless `lora` is None."""
    return build_family(family, tokenizer) if lora is None else build_adapted(family, tokenizer, **lora)


def reference(hf, padded):
    """The blocks' outputs of every row alone, without padding, mask or positions, as transformers returns them.

    Its last hidden state is past the final norm; the configuration asks for the one before.
    """
    base = unwrap(hf)
    base.config.tie_last_hidden_states = False
    rows = [ids[real.bool()][None] for ids, real in zip(padded.input_ids, padded.attention_mask, strict=True)]
    with torch.no_grad():
        states = [base(ids, output_hidden_states=True, use_cache=False).hidden_states[1:] for ids in rows]
    return torch.cat([torch.stack(row)[:, 0] for row in states], dim=1)


def of_real_tokens(values, padded):
    """Activations row by row, padding left out."""
    return values[:, padded.attention_mask.bool()]


def far(ours, theirs):
    """The largest distance between two activations of one token, relative to their norm."""
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


@pytest.mark.parametrize(("family", "lora"), KINDS)
def test_capture_equals_hidden_states(family, lora, tokenizer, rendered, right_padded, build_family):
    hf = made(family, lora, tokenizer, build_family)
    model, theirs = load_model(hf, tokenizer=tokenizer, name=family), reference(hf, rendered)
    for padded in (rendered, right_padded):
        ours = of_real_tokens(capture_blocks(model, padded, LAYERS), padded)
        assert far(ours, theirs) < 1e-5
        assert far(ours[:-1], theirs[1:]) > 0.05  # one block further on is another thing
    if lora is not None:
        with hf.disable_adapter():
            assert far(reference(hf, rendered), theirs) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bridge_agrees_and_leaves_the_model_alone(family, tokenizer, rendered, build_family):
    hf = build_adapted(family, tokenizer)
    model = load_model(hf, tokenizer=tokenizer, name=family)
    seen, before = capture_blocks(model, rendered, LAYERS), {k: v.clone() for k, v in hf.state_dict().items()}
    modules, config = [(name, type(module)) for name, module in hf.named_modules()], hf.config.to_dict()
    bridge = model.bridge()
    _, cache = bridge.run_with_cache(rendered.input_ids, attention_mask=rendered.attention_mask)
    theirs = torch.stack([cache[hook_name(layer)] for layer in LAYERS])
    ours = of_real_tokens(seen, rendered)
    assert far(ours, of_real_tokens(theirs, rendered)) < 2e-5  # merged weights round otherwise

    assert torch.equal(capture_blocks(model, rendered, LAYERS), seen)
    after = hf.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert modules == [(name, type(module)) for name, module in hf.named_modules()] and config == hf.config.to_dict()
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())

    held = load_model(bridge)
    assert held.blocks[2] is bridge.blocks[2] and (held.name, held.n_layers, held.d_model) == (family, 4, 32)
    assert far(ours, of_real_tokens(capture_blocks(held, rendered, LAYERS), rendered)) < 2e-5
    questions = [Conversation.of(text) for text in ("Hi?", "How are you today?", "Hi?", "Hi?")]
    drawn = [sample(m, questions, seed=3, max_new_tokens=4) for m in (model, held)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 1
    check_same_family(model, held)
