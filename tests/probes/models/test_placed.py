"""Models that do not lie in memory as they were saved: quantised, in half precision, spread, on disk, in training."""

import importlib.util

import pytest
import torch

from probes import InputError, capture_blocks, load_model
from probes.models import load, with_adapter

LAYERS = (0, 1, 2, 3)
ON_DISK = {
    "model.embed_tokens": "disk",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.layers.3": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.mark.parametrize("device", ["auto", {"": "cpu"}, ON_DISK], ids=["auto", "cpu", "disk"])
def test_a_model_may_be_spread(device, tiny_model, tiny_folder, tiny_adapter, rendered):
    spread = load_model(tiny_folder, device=device, dtype=torch.float32)
    assert torch.equal(capture_blocks(spread, rendered, LAYERS), capture_blocks(tiny_model, rendered, LAYERS))
    assert spread.chat("Hi?", max_new_tokens=4) == tiny_model.chat("Hi?", max_new_tokens=4)
    assert (spread.weights_digest, spread.fingerprint) == (tiny_model.weights_digest, tiny_model.fingerprint)
    assert spread.device == torch.device("cpu") and spread.dtype == torch.float32
    if device is ON_DISK:
        assert any(weight.is_meta for weight in spread.hf.parameters())
        with pytest.raises(InputError, match="kept off the device"):
            with_adapter(spread, tiny_adapter)


def test_half_precision_is_near(tiny_model, tiny_folder, rendered):
    half = load_model(tiny_folder, dtype=torch.bfloat16)
    real, wide = rendered.attention_mask.bool(), capture_blocks(tiny_model, rendered, LAYERS)
    error = (capture_blocks(half, rendered, LAYERS).float() - wide)[:, real].norm() / wide[:, real].norm()
    assert half.dtype == torch.bfloat16 and 1e-4 < error < 0.05


def test_quantisation_says_what_it_needs(tiny_folder, tiny_model, monkeypatch):
    with pytest.raises(InputError, match='give "8bit" or "4bit"'):
        load._packing("2bit", None)
    with pytest.raises(InputError, match="is for loading"):
        load_model(tiny_model.hf, tokenizer=tiny_model.tokenizer, quantisation="4bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for kind in ("8bit", "4bit"):
        with pytest.raises(InputError, match=rf"'{kind}' needs another package: pip install bitsandbytes"):
            load_model(tiny_folder, quantisation=kind)


@pytest.mark.parametrize(("kind", "dtype"), [("8bit", None), ("4bit", None), ("4bit", torch.float16)])
def test_the_route_of_quantisation(kind, dtype, tiny_folder, tiny_model, monkeypatch):
    """Up to the door of transformers, as though bitsandbytes were there."""
    seen = {}

    def from_pretrained(source, **options):
        seen.update(options)
        return tiny_model.hf

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.50.2")
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    load_model(tiny_folder, tokenizer=tiny_model.tokenizer, quantisation=kind, dtype=dtype, device="cuda:1")
    config = seen["quantization_config"]
    assert seen["device_map"] == {"": "cuda:1"} and seen["dtype"] == (dtype or "auto")
    assert (config.load_in_8bit, config.load_in_4bit) == (kind == "8bit", kind == "4bit")
    if kind == "4bit":
        assert config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_compute_dtype == (dtype or torch.bfloat16)


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_quantised_models_share_weights_and_keep_their_digest(kind, build_family, tokenizer, tmp_path, rendered):
    pytest.importorskip("bitsandbytes", reason="an optional package: pip install bitsandbytes")
    build_family("llama", tokenizer, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    asked = {"tokenizer": tokenizer, "quantisation": kind, "dtype": torch.float32}
    packed, other = (load_model(tmp_path, **asked) for _ in range(2))
    assert packed.hf.is_quantized and packed.weights_digest == other.weights_digest
    first = capture_blocks(packed, rendered, LAYERS)
    wide = capture_blocks(load_model(tmp_path, tokenizer=tokenizer), rendered, LAYERS)
    real = rendered.attention_mask.bool()
    assert 1e-4 < (first - wide)[:, real].norm() / wide[:, real].norm() < 0.9
    assert packed.weights_digest and torch.equal(capture_blocks(packed, rendered, LAYERS), first)


def test_a_module_in_training_keeps_what_is_its_own(build_family, tokenizer, rendered):
    hf = build_family("llama", tokenizer, attention_dropout=0.5).train()
    hf.activation_checkpointing_enable()
    hf.model.layers[1].eval()
    seen = []
    hook = hf.model.layers[2].register_forward_hook(lambda *_: seen.append(1))
    model = load_model(hf, tokenizer=tokenizer, name="live")
    hf(rendered.input_ids, labels=rendered.input_ids, use_cache=False).loss.backward()
    grads, modes = [p.grad.clone() for p in hf.parameters()], [m.training for m in hf.modules()]
    before = capture_blocks(model, rendered, LAYERS)
    assert torch.equal(capture_blocks(model, rendered, LAYERS), before)  # without dropout
    still = load_model(build_family("llama", tokenizer), tokenizer=tokenizer)
    assert torch.equal(capture_blocks(still, rendered, LAYERS), before) and not before.requires_grad
    assert all(torch.equal(p.grad, grad) for p, grad in zip(hf.parameters(), grads, strict=True))
    assert (
        [m.training for m in hf.modules()] == modes and hook.id in hf.model.layers[2]._forward_hooks and len(seen) > 2
    )
    torch.optim.SGD(hf.parameters(), lr=0.1).step()
    assert not torch.allclose(capture_blocks(model, rendered, LAYERS), before, atol=1e-3)
