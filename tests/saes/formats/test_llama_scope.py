"""Llama Scope: its authors' way from checkpoint to latents, step by step, against the folded weights."""

import numpy as np
import pytest
import torch

from probes import InputError
from saes import load_sae

HOOK = "blocks.15.hook_resid_post"
CONFIG = {
    "hook_point_in": HOOK,
    "hook_point_out": HOOK,
    "d_model": 16,
    "d_sae": 40,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.6,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 10.5, "out": 10.5},
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "sparsity_include_decoder_norm": True,
    "top_k": 5,
}


@pytest.fixture
def save(tmp_path, weights, write):
    """Write the folder with some of the configuration changed (None: left out)."""

    def to(arrays: dict | None = None, **changes):
        config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
        stored = {
            "encoder.weight": weights["W_enc"].T,
            "encoder.bias": weights["b_enc"],
            "decoder.weight": weights["W_dec"].T,
            "decoder.bias": weights["b_dec"],
        }
        files = {"hyperparams.json": config, "checkpoints/final.safetensors": {**stored, **(arrays or {})}}
        return write(tmp_path / "Llama3_1-8B-Base-L15R-8x", files)

    return to


def inference(weights, into, out, norm):
    """The checkpoint as the authors' reader changes it before use: scales first, then unit decoder rows."""
    b_enc, w_dec, b_dec = weights["b_enc"] / into, weights["W_dec"] * into / out, weights["b_dec"] / out
    norms = np.linalg.norm(w_dec, axis=1) if norm else np.ones(len(w_dec))
    return {
        "W_enc": weights["W_enc"] * norms,
        "b_enc": b_enc * norms,
        "W_dec": w_dec / norms[:, None],
        "b_dec": b_dec,
    }


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("out", [10.5, 8.25])
@pytest.mark.parametrize("act", ["jumprelu", "topk", "TopK without threshold", "relu"])
def test_latents_and_reconstruction_are_the_authors(save, weights, x, formulas, agrees, act, out, norm):
    name, threshold = act.split()[0].lower(), None if "without" in act else 0.6
    sae = load_sae(
        save(
            act_fn=name,
            jump_relu_threshold=threshold,
            sparsity_include_decoder_norm=norm,
            dataset_average_activation_norm={"in": 10.5, "out": out},
        )
    )
    folded = inference(weights, 4 / 10.5, 4 / out, norm)
    pre = formulas.pre(x, folded, centred=False)
    if name == "relu":
        latents = formulas.relu(pre)
    elif threshold is None:
        latents = formulas.topk(pre, 5)
    else:
        latents = formulas.jump(pre, threshold)
    agrees(sae, latents, formulas.decode(latents, folded))
    # and in the training's own words: scale the input, run the stored weights, scale the output back
    hidden = x * (4 / 10.5) @ weights["W_enc"] + weights["b_enc"]
    strength = hidden * np.linalg.norm(weights["W_dec"], axis=1) / (4 / out) if norm else hidden / (4 / 10.5)
    np.testing.assert_allclose(pre, strength, atol=1e-6)
    assert (sae.layer, sae.site, sae.hook, sae.model_name) == (15, "resid_post", HOOK, "meta-llama/Llama-3.1-8B")
    assert sae.normalisation.startswith("times 0.380952 (sqrt(d_model)")


def test_with_unit_decoder_rows_it_is_what_sae_lens_makes_of_it(save, weights, x, formulas):
    """sae-lens folds scale and threshold (not the rows' lengths): the same latents, in the unit of training."""
    weights["W_dec"] /= np.linalg.norm(weights["W_dec"], axis=1, keepdims=True)
    sae, scale = load_sae(save({"decoder.weight": weights["W_dec"].T})), 4 / 10.5
    theirs = formulas.jump(x @ (weights["W_enc"] * scale) + weights["b_enc"], 0.6 * scale)
    np.testing.assert_allclose(sae.encode(torch.from_numpy(x).float()).numpy() * scale, theirs, atol=1e-5)


def test_the_decoder_bias_may_be_taken_off_or_missing(save, weights, x, formulas, agrees):
    sae = load_sae(save(apply_decoder_bias_to_pre_encoder=True, norm_activation="inference"))
    folded = inference(weights, 1, 1, True)
    latents = formulas.jump(formulas.pre(x, folded, centred=True), 0.6)
    agrees(sae, latents, formulas.decode(latents, folded))
    assert sae.normalisation == "none"
    assert not load_sae(save(use_decoder_bias=False)).b_dec.any()


@pytest.mark.parametrize(
    ("hook", "place"), [("blocks.4.hook_mlp_out", (4, "mlp_out")), ("blocks.4.hook_attn_out", (4, "attn_out"))]
)
def test_other_sites(save, hook, place):
    sae = load_sae(save(hook_point_in=hook, hook_point_out=hook))
    assert (sae.layer, sae.site) == place


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"hook_point_in": "blocks.15.ln2.hook_normalized", "hook_point_out": "blocks.15.hook_mlp_out"},
            "a transcoder",
        ),
        ({"jump_relu_threshold": None}, r"hyperparams\.json: a JumpReLU SAE without jump_relu_threshold"),
        ({"act_fn": "gelu"}, "act_fn 'gelu'"),
        ({"norm_activation": "token-wise"}, "norm_activation 'token-wise'.* only 'dataset-wise'"),
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm None"),
        ({"use_glu_encoder": True}, "GLU encoder"),
        ({"d_sae": 41}, r"final\.safetensors: W_enc has shape \(16, 40\) as read, but \(16, 41\)"),
        ({"d_model": None}, r"hyperparams\.json is not an SAE configuration of this layout \(no 'd_model'\)"),
        ({"arrays": {"encoder.weight": np.ones((16, 40), np.float32)}}, "W_enc is transposed"),
        ({"arrays": {"decoder.bias": np.full(16, np.inf, np.float32)}}, "b_dec holds a value that is not finite"),
    ],
)
def test_bad_files_are_refused(save, changes, says):
    with pytest.raises(InputError, match=says):
        load_sae(save(**changes))
