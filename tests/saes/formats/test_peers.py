"""sae-lens's own readers of foreign layouts, on the same files: another pair of eyes on names, signs and transposes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from saes import load_sae

QWEN = {"layer": 15, "lm_name": "Qwen/Qwen2.5-7B-Instruct", "activation_dim": 16, "dict_size": 40, "k": 5}
LLAMA = {
    "hook_point_in": "blocks.15.hook_resid_post",
    "d_model": 16,
    "d_sae": 40,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.6,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 10.5, "out": 10.5},
}
GEMMA = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
GEMMA_3 = "google/gemma-scope-2-1b-pt/resid_post/layer_12_width_16k_l0_small"


def gemma(folder: Path, w: dict) -> None:
    np.savez(folder / "params.npz", **w)


def gemma_3(folder: Path, w: dict) -> None:
    save_file({name.lower(): value for name, value in w.items()}, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.12.output"}
    (folder / "config.json").write_text(json.dumps(config))


def linear(w: dict) -> dict:
    arrays = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}


def batch_topk(folder: Path, w: dict) -> None:
    config = {"trainer": {"dict_class": "BatchTopKSAE", **QWEN}, "buffer": {"ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    state = {**linear(w), "b_dec": w["b_dec"], "k": np.int32(5), "threshold": np.float32(0.4)}
    torch.save({name: torch.as_tensor(np.array(value)) for name, value in state.items()}, folder / "ae.pt")


def llama(folder: Path, w: dict) -> None:
    w["W_dec"] /= np.linalg.norm(w["W_dec"], axis=1, keepdims=True)
    (folder / "hyperparams.json").write_text(json.dumps(LLAMA))
    (folder / "checkpoints").mkdir()
    save_file({**linear(w), "decoder.bias": w["b_dec"]}, folder / "checkpoints" / "final.safetensors")


@pytest.mark.parametrize(
    ("reader", "name", "writer", "unit"),
    [
        ("gemma_2", GEMMA, gemma, 1.0),
        ("gemma_3", GEMMA_3, gemma_3, 1.0),
        ("dictionary_learning_1", "andyrdt/saes/resid_post_layer_15/trainer_1", batch_topk, 1.0),
        ("llama_scope", "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x", llama, 4 / 10.5),
    ],
)
def test_sae_lens_reads_the_same(tmp_path, monkeypatch, weights, x, agrees, reader, name, writer, unit):
    """`unit`: sae-lens leaves Llama Scope's latents in the unit of training."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as theirs

    def local(repo_id, filename, *, subfolder="", force_download=False):
        del force_download
        return str(tmp_path / repo_id / subfolder / filename)

    def shapes(repo_id, filename):
        with safe_open(local(repo_id, filename), framework="np") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118

    owner, repo, *below = name.split("/")
    (tmp_path / name).mkdir(parents=True)
    writer(tmp_path / name, weights)
    monkeypatch.setattr(theirs, "hf_hub_download", local)
    monkeypatch.setattr(theirs, "get_safetensors_tensor_shapes", shapes)
    sizes = {"d_in": 16, "d_sae": 40, "dtype": "float32", "device": "cpu"}
    config, state, _ = theirs.NAMED_PRETRAINED_SAE_LOADERS[reader](
        repo_id=f"{owner}/{repo}", folder_name="/".join(below), device="cpu", force_download=False, cfg_overrides=sizes
    )
    native = SAE.from_dict(theirs.handle_config_defaulting(config))
    native.load_state_dict(state)
    if reader == "llama_scope":  # in its `from_pretrained`, with the factor of its directory
        native.fold_activation_norm_scaling_factor(unit)
    sae = load_sae(tmp_path / name)
    with torch.no_grad():
        latents = native.encode(torch.from_numpy(x).float())
        agrees(sae, latents / unit, native.decode(latents))
    assert native.cfg.metadata.hook_name == f"blocks.{sae.layer}.hook_resid_post"
    assert native.cfg.metadata.model_name.split("/")[-1] == sae.model_name.split("/")[-1]
