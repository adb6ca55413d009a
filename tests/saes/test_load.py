"""Loading: a round trip through sae-lens' folders, the sites that hook names mean, and what is refused."""

import json
import shutil

import pytest
import torch

from probes import InputError
from saes import layer_of_hook, load_sae
from saes.load import _pick


def test_a_saved_sae_loads_as_sae_lens_loads_it(trained, planted):
    from sae_lens import SAE

    native = SAE.load_from_disk(trained.folder)
    x = planted.x[:200]
    with torch.no_grad():
        latents = native.encode(x)
        torch.testing.assert_close(load_sae(trained.folder).encode(x), latents, rtol=0, atol=1e-6 * x.abs().max())
        torch.testing.assert_close(
            load_sae(trained.folder).decode(latents), native.decode(latents), rtol=0, atol=1e-6 * x.abs().max()
        )


def test_batch_top_k_loads_as_jump_relu(tmp_path, rows):
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    meta = SAEMetadata(model_name="m", hook_name="blocks.3.hook_resid_pre")
    native = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=32, d_sae=64, k=4, metadata=meta))
    native.topk_threshold.fill_(0.25)
    native.save_inference_model(tmp_path)
    sae = load_sae(tmp_path)
    assert (sae.kind, sae.layer, sae.d_sae, sae.model_name) == ("jumprelu", 2, 64, "m")
    with torch.no_grad():
        expected = SAE.load_from_disk(tmp_path).encode(rows)
    torch.testing.assert_close(sae.encode(rows), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.3.hook_resid_post", 3),
        ("blocks.3.hook_out", 3),
        ("blocks.4.hook_resid_pre", 3),
        ("blocks.4.hook_in", 3),
        ("blocks.0.hook_resid_pre", -1),
        ("model.layers.12", 12),
        ("transformer.h.7", 7),
        ("blocks.3.hook_mlp_out", None),
        ("blocks.3.attn.hook_z", None),
        ("model.layers.3.mlp", None),
        ("", None),
    ],
)
def test_hook_names_mean_blocks(hook, layer):
    assert layer_of_hook(hook) == layer


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of a saved SAE that a test may damage."""
    return shutil.copytree(trained.folder, tmp_path / "sae")


def change(folder, **values):
    config = json.loads((folder / "cfg.json").read_text())
    metadata = values.pop("metadata", {})
    config["metadata"].update(metadata)
    (folder / "cfg.json").write_text(json.dumps(config | values))


def test_the_layer_must_agree(folder):
    assert load_sae(folder, layer=1).layer == 1
    with pytest.raises(InputError, match=r"reads the output of block 1 .*, not of block 2"):
        load_sae(folder, layer=2)
    change(folder, metadata={"hook_name": "blocks.1.hook_mlp_out"})
    with pytest.raises(InputError, match="only SAEs at the output of a block"):
        load_sae(folder)
    change(folder, metadata={"hook_name": "blocks.0.hook_resid_pre"})
    with pytest.raises(InputError, match="only SAEs at the output of a block"):
        load_sae(folder)
    change(folder, metadata={"hook_name": None})
    assert load_sae(folder, layer=3).layer == 3
    with pytest.raises(InputError, match="does not say where it reads; pass layer="):
        load_sae(folder)


def test_missing_and_damaged_folders(folder, tmp_path):
    with pytest.raises(InputError, match="no SAE folder at"):
        load_sae(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no SAE folder at"):
        load_sae("./nowhere")
    whole = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        load_sae(folder)
    (folder / "sae_weights.safetensors").write_bytes(whole)
    change(folder, d_sae=49)
    with pytest.raises(InputError, match="cannot be read"):
        load_sae(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(InputError, match=r"cfg\.json: not JSON"):
        load_sae(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(InputError, match=r"cfg\.json is not an SAE configuration"):
        load_sae(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(InputError, match=r"has no cfg\.json"):
        load_sae(folder)


def test_pickles_are_not_read(folder):
    (folder / "sae_weights.safetensors").rename(folder / "sae_weights.pt")
    with pytest.raises(InputError, match=r"sae_weights\.pt is a pickle, which is not read"):
        load_sae(folder)


def test_kinds_and_scalings_that_cannot_be_read_are_refused(folder):
    change(folder, normalize_activations="layer_norm")
    with pytest.raises(InputError, match="rescales its input at run time"):
        load_sae(folder)
    change(folder, normalize_activations="none", architecture="temporal")
    with pytest.raises(InputError, match="is of the kind 'temporal'"):
        load_sae(folder)


def test_an_unknown_release_is_named():
    with pytest.raises(InputError, match="no SAE 'no-such-release': neither a folder nor a sae-lens release"):
        load_sae("no-such-release", layer=1)
    with pytest.raises(InputError, match="holds 7 SAEs: pass layer= or sae_id="):
        load_sae("andyrdt/saes-qwen2.5-7b-instruct")
    with pytest.raises(InputError, match="has 0 SAEs at block 4"):
        load_sae("qwen2.5-7b-instruct-andyrdt", layer=4)


def test_a_release_is_searched_by_layer():
    ids = ["resid_post_layer_3_trainer_1", "resid_post_layer_13_trainer_1", "blocks.5.hook_resid_pre"]
    assert _pick("r", ids, 3, None) == ids[0]
    assert _pick("r", ids, 13, None) == ids[1]
    assert _pick("r", ids, 4, None) == ids[2]
    assert _pick("r", ids, None, ids[1]) == ids[1]
    with pytest.raises(InputError, match="has no SAE 'x'"):
        _pick("r", ids, 3, "x")
    with pytest.raises(InputError, match="has 2 SAEs at block 0"):
        _pick("r", ["layer_0/width_16k/l0_13", "layer_0/width_16k/l0_105"], 0, None)
