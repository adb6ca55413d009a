"""sparsify: checkpoints that the real package writes, its own encode and decode, and what is refused."""

import json

import numpy as np
import pytest
import torch

from probes import InputError
from saes import load_sae


@pytest.fixture(scope="session")
def sparsify():
    """The real package, `eai-sparsify`."""
    return pytest.importorskip("sparsify", reason="pip install eai-sparsify==1.3.3")


@pytest.fixture
def native(sparsify, weights):
    """A sparse coder of theirs with our weights; its decoder rows are not of unit length."""
    config = sparsify.SparseCoderConfig(num_latents=40, k=5, normalize_decoder=False)
    coder = sparsify.SparseCoder(16, config)
    with torch.no_grad():
        coder.encoder.weight.copy_(torch.from_numpy(weights["W_enc"].T))
        coder.encoder.bias.copy_(torch.from_numpy(weights["b_enc"]))
        coder.W_dec.copy_(torch.from_numpy(weights["W_dec"]))
        coder.b_dec.copy_(torch.from_numpy(weights["b_dec"]))
    return coder


@pytest.fixture
def folder(tmp_path, weights, write):
    """The same checkpoint written by hand."""
    arrays = {
        "encoder.weight": weights["W_enc"].T,
        "encoder.bias": weights["b_enc"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    config = {"activation": "topk", "expansion_factor": 32, "num_latents": 40, "k": 5, "d_in": 16, "transcode": False}
    write(tmp_path, {"config.json": {"model": "HuggingFaceTB/SmolLM2-135M"}})
    return write(tmp_path / "layers.10", {"cfg.json": config, "sae.safetensors": arrays})


def change(folder, **values):
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in {**config, **values}.items() if v is not None}))


def test_a_checkpoint_of_the_real_package(native, tmp_path, x, agrees):
    native.save_to_disk(tmp_path / "layers.3")
    with torch.no_grad():
        rows = torch.from_numpy(x).float()
        top, indices, _ = native.encode(rows)
        latents = torch.zeros(len(rows), 40).scatter(-1, indices, top)
        agrees(load_sae(tmp_path / "layers.3"), latents, native.decode(top, indices))


def test_the_formula(folder, weights, x, formulas, agrees):
    sae = load_sae(folder)
    latents = formulas.topk(formulas.pre(x, weights, centred=True), 5)
    agrees(sae, latents, formulas.decode(latents, weights))
    assert (sae.kind, sae.k, sae.layer, sae.site, sae.hook) == ("topk", 5, 10, "resid_post", "layers.10")
    assert sae.model_name == "HuggingFaceTB/SmolLM2-135M"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("layers.4.mlp", (4, "mlp_out")),
        ("layers.4.attention", (4, "attn_out")),
        ("h.7.attn", (7, "attn_out")),
        ("gpt_neox.layers.0", (0, "resid_post")),
    ],
)
def test_the_folder_names_the_module(folder, name, place):
    sae = load_sae(folder.rename(folder.parent / name))
    assert (sae.layer, sae.site) == place


def test_another_name_asks_and_a_run_is_searched(folder):
    other = folder.rename(folder.parent / "best")
    with pytest.raises(InputError, match="does not say where it reads"):
        load_sae(other)
    assert load_sae(other, layer=2).layer == 2
    other.rename(folder)
    assert load_sae(folder.parent).layer == load_sae(folder.parent, layer=10).layer == 10
    with pytest.raises(InputError, match="has 0 SAEs at block 9"):
        load_sae(folder.parent, layer=9)


def test_width_by_expansion_factor(folder):
    change(folder, num_latents=None, expansion_factor=3)
    with pytest.raises(InputError, match=r"W_enc has shape \(16, 40\) as read, but \(16, 48\)"):
        load_sae(folder)
    change(folder, num_latents=0, expansion_factor=None)
    assert load_sae(folder).d_sae == 40


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"transcode": True}, "is no SAE .transcode is set: a transcoder"),
        ({"skip_connection": True}, "skip_connection is set"),
        ({"activation": "groupmax"}, "uses 'groupmax' latents"),
        ({"signed": True}, "uses 'signed top-k' latents"),
        ({"k": None}, r"cfg\.json is not an SAE configuration of this layout \(no 'k'\)"),
        ({"k": 41}, "needs k between 1 and 40, not 41"),
        ({"d_in": 40, "num_latents": 16}, "W_enc is transposed for this layout"),
    ],
)
def test_what_is_no_sae_is_refused(folder, changes, says):
    change(folder, **changes)
    with pytest.raises(InputError, match=says):
        load_sae(folder)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"W_dec": np.ones((16, 40), np.float32)}, r"sae\.safetensors: W_dec is transposed .* expected \(40, 16\)"),
        ({"W_skip": np.ones((16, 16), np.float32)}, "W_skip in its weights"),
        ({"b_dec": np.full(16, np.nan, np.float32)}, "b_dec holds a value that is not finite"),
        ({"W_dec": None}, r"sae\.safetensors has no tensor 'W_dec'"),
    ],
)
def test_bad_weights_are_refused(folder, weights, write, arrays, says):
    from safetensors.numpy import load_file

    stored = {**load_file(folder / "sae.safetensors"), **arrays}
    write(folder, {"sae.safetensors": {key: value for key, value in stored.items() if value is not None}})
    with pytest.raises(InputError, match=says):
        load_sae(folder)


def test_token_embeddings_are_no_site(folder):
    with pytest.raises(InputError, match="an SAE of token embeddings"):
        load_sae(folder.rename(folder.parent / "embed_tokens"))
