"""Gemma Scope 1 and 2: the published formula, what releases and folders are called, and what is refused."""

import numpy as np
import pytest

from probes import InputError
from saes import load_sae

FOLDER = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"


@pytest.fixture
def save(tmp_path, weights):
    """Write `params.npz` into a folder of this name, with some arrays changed or left out."""

    def to(name: str = FOLDER, **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        arrays = {key: value for key, value in {**weights, **changes}.items() if value is not None}
        np.savez(folder / "params.npz", **arrays)
        return folder

    return to


def save_2(tmp_path, weights, write, name: str, config: dict | None, **changes):
    arrays = {key.replace("W_", "w_"): value for key, value in {**weights, **changes}.items()}
    files = {"params.safetensors": arrays} | ({} if config is None else {"config.json": config})
    return write(tmp_path / name, files)


def test_encode_and_decode_are_the_published_ones(save, weights, x, formulas, agrees):
    sae = load_sae(save())
    latents = formulas.jump(formulas.pre(x, weights, centred=False), weights["threshold"])
    agrees(sae, latents, formulas.decode(latents, weights))
    assert (sae.kind, sae.layer, sae.site, sae.model_name) == ("jumprelu", 20, "resid_post", "google/gemma-2-2b")
    assert (sae.normalisation, sae.centred) == ("none", False)


@pytest.mark.parametrize(
    ("folder", "layer", "site", "model"),
    [
        ("google/gemma-scope-9b-it-res/layer_9/width_131k/average_l0_13", 9, "resid_post", "google/gemma-2-9b-it"),
        ("gemma-scope-2b-pt-mlp/layer_0/width_16k/average_l0_7", 0, "mlp_out", "google/gemma-2-2b"),
        (
            "models--google--gemma-scope-27b-pt-res/snapshots/ab/layer_22/width_131k/l0",
            22,
            "resid_post",
            "google/gemma-2-27b",
        ),
        ("gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_77", 3, "attn_z", "google/gemma-2-2b"),
    ],
)
def test_names_say_layer_site_and_model(save, folder, layer, site, model):
    sae = load_sae(save(folder))
    assert (sae.layer, sae.site, sae.model_name) == (layer, site, model)


def test_names_that_say_nothing_ask(save):
    folder = save("renamed")
    with pytest.raises(InputError, match="does not say where it reads: pass layer="):
        load_sae(folder)
    sae = load_sae(folder, layer=3, site="mlp_out")
    assert (sae.layer, sae.site, sae.model_name) == (3, "mlp_out", "")


def test_older_files_have_lower_case_names(save, weights):
    older = {"W_enc": None, "W_dec": None, "w_enc": weights["W_enc"], "w_dec": weights["W_dec"]}
    assert np.array_equal(load_sae(save(**older)).W_dec.numpy(), weights["W_dec"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threshold": None}, r"params\.npz has no tensor 'threshold'"),
        ({"threshold": np.ones(3, np.float32)}, r"threshold has shape \(3,\) as read, but \(40,\) is expected"),
        ({"W_dec": np.ones((16, 40), np.float32)}, r"params\.npz: W_dec is transposed for this layout"),
        ({"W_dec": np.ones((41, 16), np.float32)}, r"W_dec has shape \(41, 16\)"),
        ({"W_enc": np.ones(16, np.float32)}, "W_enc has shape"),
        ({"b_enc": np.full(40, np.nan, np.float32)}, "b_enc holds a value that is not finite"),
        ({"b_dec": np.ones(16, np.int32)}, r"b_dec holds torch\.int32"),
        ({"b_dec": np.array([{}] * 16, dtype=object)}, r"params\.npz cannot be read .*fetch it again"),
    ],
)
def test_bad_arrays_are_refused(save, changes, says):
    with pytest.raises(InputError, match=says):
        load_sae(save(**changes))


def test_bad_files_and_other_releases_are_refused(save, tmp_path):
    folder = save()
    whole = (folder / "params.npz").read_bytes()
    for content in (whole[:400], b"PK\x03\x04" + b"\0" * 100, b""):
        (folder / "params.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"params\.npz cannot be read .*the file is damaged"):
            load_sae(folder)
    with pytest.raises(InputError, match="'gemma-scope-2b-pt-transcoders', which holds no SAEs"):
        load_sae(save("gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_1"))
    with pytest.raises(InputError, match="an SAE of token embeddings"):
        load_sae(save("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"))


@pytest.mark.parametrize(
    ("folder", "config", "expected"),
    [
        (
            "resid_post/layer_12_width_16k_l0_small",
            {"hf_hook_point_in": "model.layers.12.output", "model_name": "gemma-v3-1b-pt"},
            (12, "resid_post", "google/gemma-3-1b-pt"),
        ),
        (
            "any",
            {
                "hf_hook_point_in": "model.layers.5.post_feedforward_layernorm.output",
                "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output",
                "model_name": "google/gemma-3-270m-pt",
            },
            (5, "mlp_out", "google/gemma-3-270m"),
        ),
        (
            "attn_out/layer_7_width_16k_l0_big",
            {"hf_hook_point_in": "model.layers.7.self_attn.o_proj.input"},
            (7, "attn_z", ""),
        ),
        (
            "gemma-scope-2-4b-it/resid_post_all/layer_9_width_16k_l0_big",
            None,
            (9, "resid_post", "google/gemma-3-4b-it"),
        ),
        ("gemma-scope-2-270m-it/mlp_out/layer_3_width_16k_l0_big", None, (3, "mlp_out", "google/gemma-3-270m-it")),
    ],
)
def test_the_second_release(tmp_path, weights, write, x, formulas, agrees, folder, config, expected):
    known = {"architecture": "jump_relu", "width": 40, **config} if config is not None else None
    sae = load_sae(save_2(tmp_path, weights, write, folder, known))
    latents = formulas.jump(formulas.pre(x, weights, centred=False), weights["threshold"])
    agrees(sae, latents, formulas.decode(latents, weights))
    assert (sae.layer, sae.site, sae.model_name) == expected


@pytest.mark.parametrize(
    ("folder", "config", "says"),
    [
        ("transcoder/layer_3_width_16k_l0_big", {}, "is a transcoder, not an SAE"),
        ("crosscoder/layer_3_width_16k_l0_big", {}, "is a crosscoder, not an SAE"),
        ("x", {"hf_hook_point_in": "model.layers.3.output", "hf_hook_point_out": "model.layers.4.output"}, "map to"),
        ("x", {"architecture": "topk"}, r"config\.json: architecture 'topk'"),
        ("x", {"hf_hook_point_in": "model.layers.3.input_layernorm.output"}, "reads 'model.layers.3.input_layernorm"),
        ("x", {"width": 41, "hf_hook_point_in": "model.layers.3.output"}, r"W_enc has shape \(16, 40\)"),
    ],
)
def test_what_is_no_sae_of_the_second_release_is_refused(tmp_path, weights, write, folder, config, says):
    with pytest.raises(InputError, match=says):
        load_sae(save_2(tmp_path, weights, write, folder, config))
