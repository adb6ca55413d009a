"""Loading models, finding blocks, and what a loaded model promises."""

import copy
import hashlib
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from probes import (
    InputError,
    Rendered,
    capture_blocks,
    check_layer,
    check_same_family,
    find_blocks,
    hook_name,
    load_model,
)
from probes.models import evaluating

STORIES = Path(os.environ.get("PERSONA_GEOMETRY_ASSETS", "/nowhere")) / "models" / "stories260K"


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_load_from_a_folder(tiny_model, tiny_folder):
    assert (tiny_model.n_layers, tiny_model.d_model, tiny_model.name) == (4, 32, "tiny")
    assert tiny_model.dtype == torch.float32 and not tiny_model.hf.training
    assert load_model(str(tiny_folder)).fingerprint == tiny_model.fingerprint
    assert load_model(tiny_folder).weights_digest == tiny_model.weights_digest
    assert load_model(tiny_folder, name="other").fingerprint != tiny_model.fingerprint


def test_load_a_live_module(tiny_tokenizer, build_llama):
    hf = build_llama(tiny_tokenizer, seed=3).train()
    model = load_model(hf, tokenizer=tiny_tokenizer, name="live")
    assert model.hf is hf and hf.training
    with pytest.raises(InputError, match="tokenizer"):
        load_model(hf)
    with pytest.raises(InputError, match="move it yourself"):
        load_model(hf, tokenizer=tiny_tokenizer, dtype=torch.float16)


def test_an_adapter_changes_the_model_and_leaves_a_live_base_alone(
    tiny_folder, tiny_adapter, tiny_tokenizer, build_llama
):
    hf = build_llama(tiny_tokenizer)
    before = state(hf)
    tuned = load_model(hf, adapter=tiny_adapter, tokenizer=tiny_tokenizer)
    assert state(hf).keys() == before.keys()
    assert tuned.n_layers == 4 and tuned.blocks is find_blocks(tuned.hf)
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        assert not torch.allclose(tuned.hf(ids).logits, hf(ids).logits, atol=1e-3)
    assert load_model(tiny_folder, adapter=tiny_adapter).name == "tiny+adapter"


def test_a_merged_adapter_says_the_same_without_the_adapter(tiny_folder, tiny_adapter):
    beside, merged = (load_model(tiny_folder, adapter=tiny_adapter, merge=merge) for merge in (False, True))
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(merged.hf(ids).logits, beside.hf(ids).logits, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name, _ in merged.hf.named_parameters())
    assert merged.name == beside.name == "tiny+adapter"


def test_an_adapter_without_weights_is_an_input_error(tiny_folder, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    prompted = get_peft_model(
        load_model(tiny_folder).hf, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    prompted.save_pretrained(str(tmp_path / "prompted"))
    with pytest.raises(InputError, match="prompt tuning"):
        load_model(tiny_folder, adapter=tmp_path / "prompted")


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "a/b/c"])
def test_missing_paths_are_input_errors(source):
    with pytest.raises(InputError, match="no such folder"):
        load_model(source)


def test_folders_without_a_model_are_input_errors(tmp_path, tiny_folder):
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="adapter"):
        load_model(tiny_folder, adapter=tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load_model(tiny_folder, adapter=tmp_path / "none")


def test_an_adapter_of_another_width_is_an_input_error(tiny_tokenizer, tiny_adapter, build_llama):
    other = build_llama(tiny_tokenizer, hidden_size=16)
    with pytest.raises(InputError, match="does not fit"):
        load_model(other, adapter=tiny_adapter, tokenizer=tiny_tokenizer)


def test_blocks_may_be_named(tiny_model, tiny_tokenizer):
    assert find_blocks(tiny_model.hf, "model.layers") is tiny_model.blocks
    with pytest.raises(InputError, match=r"model\.layers"):
        load_model(tiny_model.hf, tokenizer=tiny_tokenizer, blocks="decoder.stack")
    hf = copy.deepcopy(tiny_model.hf)
    hf.twin = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    with pytest.raises(InputError, match="2 module lists of 4"):
        load_model(hf, tokenizer=tiny_tokenizer)


def test_lists_of_experts_are_no_blocks(tiny_model):
    hf = copy.deepcopy(tiny_model.hf)
    for block in hf.model.layers:
        block.mlp.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))  # as many as there are blocks
    assert find_blocks(hf) is hf.model.layers


@pytest.mark.parametrize("layer", [-1, 4])
def test_layers_out_of_range(tiny_model, layer):
    check_layer(tiny_model, 3)
    with pytest.raises(InputError, match=f"layer {layer}: tiny has blocks 0 to 3"):
        check_layer(tiny_model, layer)


def test_families(tiny_model, tiny_tuned, tiny_tokenizer, build_llama, build_tokenizer):
    check_same_family(tiny_model, tiny_tuned)
    narrow = load_model(build_llama(tiny_tokenizer, hidden_size=16), tokenizer=tiny_tokenizer, name="narrow")
    shallow = load_model(build_llama(tiny_tokenizer, num_hidden_layers=2), tokenizer=tiny_tokenizer, name="shallow")
    for other, told in ((narrow, "width"), (shallow, "depth")):
        with pytest.raises(InputError, match=told):
            check_same_family(tiny_model, other)
    changed = build_tokenizer()
    changed.chat_template += " "
    with pytest.raises(InputError, match="chat templates"):
        check_same_family(tiny_model, load_model(tiny_model.hf, tokenizer=changed))


def test_evaluating_restores_every_module(tiny_tokenizer, build_llama):
    hf = build_llama(tiny_tokenizer).train()
    hf.model.layers[1].eval()
    modes = [module.training for module in hf.modules()]
    with evaluating(load_model(hf, tokenizer=tiny_tokenizer)):
        assert not any(module.training for module in hf.modules()) and not torch.is_grad_enabled()
    assert [module.training for module in hf.modules()] == modes and torch.is_grad_enabled()


def test_chat_is_reproducible(tiny_model):
    first = tiny_model.chat("Who are you?", system="Be brief.", max_new_tokens=6, seed=1)
    assert first == tiny_model.chat("Who are you?", system="Be brief.", max_new_tokens=6, seed=1)
    assert first != tiny_model.chat("Who are you?", system="Be brief.", max_new_tokens=6, seed=2)


def test_an_adapter_alone_names_its_base(tiny_tuned, tiny_adapter, tmp_path):
    ids = torch.arange(12).reshape(2, 6)
    model = load_model(tiny_adapter)
    assert model.name == tiny_tuned.name and model.weights_digest == tiny_tuned.weights_digest
    with torch.no_grad():
        assert torch.equal(model.hf(ids).logits, tiny_tuned.hf(ids).logits)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match="does not name its base"):
        load_model(tmp_path)


def test_the_digest_samples_what_the_state_holds(tiny_model, tiny_tuned):
    for model in (tiny_model, tiny_tuned):
        digest = hashlib.sha256()
        for name, value in sorted(model.hf.state_dict().items()):
            sample = value.flatten()[:: max(1, value.numel() // 64)]
            digest.update(name.encode() + sample.contiguous().numpy().tobytes())
        assert model.weights_digest == digest.hexdigest()[:16]
    changed = copy.deepcopy(tiny_model.hf)
    changed.model.layers[2].mlp.up_proj.weight.data *= 1.001
    assert load_model(changed, tokenizer=tiny_model.tokenizer).weights_digest != tiny_model.weights_digest


@pytest.mark.skipif(not STORIES.is_dir(), reason="no models under $PERSONA_GEOMETRY_ASSETS")
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_real_model(side):
    model = load_model(STORIES)
    texts = ["Once upon a time", "Lily and Ben went to the park. They saw a big"]
    rows = [torch.tensor(model.tokenizer(text)["input_ids"]) for text in texts]
    rendered = padded_rows(rows, side)
    layers = tuple(range(model.n_layers))
    values = capture_blocks(model, rendered, layers)[:, rendered.attention_mask.bool()]
    model.hf.config.tie_last_hidden_states = False  # the last one before the norm
    with torch.no_grad():
        states = [torch.stack(model.hf(row[None], output_hidden_states=True).hidden_states[1:])[:, 0] for row in rows]
    torch.testing.assert_close(values, torch.cat(states, dim=1), atol=1e-5, rtol=1e-5)
    bridge = model.bridge()
    _, cache = bridge.run_with_cache(rendered.input_ids, attention_mask=rendered.attention_mask)
    theirs = torch.stack([cache[hook_name(i)] for i in layers])[:, rendered.attention_mask.bool()]
    torch.testing.assert_close(values, theirs, atol=1e-5, rtol=1e-5)
    check_same_family(model, load_model(STORIES, name="again"))


def padded_rows(rows, side):
    """Token rows as a batch, padded with zeros on one side."""
    length = max(map(len, rows))
    edges = [(length - len(row), 0) if side == "left" else (0, length - len(row)) for row in rows]
    ids, mask = (
        torch.stack([nn.functional.pad(part, edge) for part, edge in zip(parts, edges, strict=True)])
        for parts in (rows, [torch.ones_like(row) for row in rows])
    )
    nothing = torch.zeros_like(mask).bool()
    return Rendered(ids, mask, mask.bool(), nothing, nothing, "")


def test_importing_probes_is_light():
    import subprocess

    code = "import sys, probes; assert not {'torch', 'numpy', 'pandas', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_functions_win_over_modules_of_the_same_name():
    import importlib

    import probes

    importlib.import_module("probes.ask")
    importlib.import_module("probes.capture")
    assert probes.ask.__name__ == "ask" and probes.capture.__name__ == "capture"
    assert callable(probes.ask) and callable(probes.capture)
    assert all(getattr(probes, name) is not None for name in probes.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = probes.nothing
