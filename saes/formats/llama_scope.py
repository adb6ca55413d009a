"""Llama Scope: a folder such as `Llama3_1-8B-Base-L15R-8x` with `hyperparams.json` and `checkpoints/final.safetensors`.

From the authors' own reader, Language-Model-SAEs (lm_saes/sae.py: encode, compute_norm_factor,
standardize_parameters_of_dataset_norm, transform_to_unit_decoder_norm; lm_saes/initializer.py, state "inference"),
and arXiv 2410.20526. The SAE reads s x, with s = sqrt(d_model) / the data set's mean norm "in", and writes in units of
"out". They fold both scales, then bring the decoder's rows to unit length, and only then compare with the one
threshold, which so is in the residual stream's own units. sae-lens leaves the rows as they are: where these have other
lengths, its latents differ.
"""

import math
from pathlib import Path
from typing import Any

import torch

from probes.errors import InputError
from saes.formats.places import place_of_hook
from saes.formats.published import Published, Weights, checked, configuration, fold_decoder_norm, needed, tensors
from saes.sae import Kind

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
FILES, EXTRA = (CONFIG, WEIGHTS), ()
_KEYS = ("d_model", "d_sae", "hook_point_in", "act_fn")


def read(folder: Path, label: str) -> Published:
    """Read one SAE of Llama Scope, its scales and decoder norms folded."""
    del label
    config = configuration(folder / CONFIG, _KEYS)
    hook = config["hook_point_in"]
    place = place_of_hook(hook)
    if config.get("hook_point_out", hook) != hook or place is None:
        raise InputError(
            f"{folder} maps {hook!r} to {config.get('hook_point_out', hook)!r}: a transcoder, or a place that is no "
            "site; take an SAE, of the releases LXR (residual) or LXM (MLP output)"
        )
    if config.get("use_glu_encoder"):
        raise InputError(f"{folder} has a GLU encoder, which is not read here: take an SAE of the Llama Scope releases")
    kind, k, threshold = _activation(folder, config)
    file = folder / WEIGHTS
    w_enc, w_dec, b_enc = needed(file, tensors(file), ("encoder.weight", "decoder.weight", "encoder.bias"))
    b_dec = (
        needed(file, tensors(file), ("decoder.bias",))[0] if config.get("use_decoder_bias", True) else w_dec[:, 0] * 0
    )
    weights = {"W_enc": w_enc.T, "W_dec": w_dec.T, "b_enc": b_enc, "b_dec": b_dec}
    weights = checked(file, weights, int(config["d_model"]), int(config["d_sae"]))
    weights, normalisation = _standardised(folder, weights, config)
    if config.get("sparsity_include_decoder_norm", True):
        weights = fold_decoder_norm(weights)
    if threshold is not None:
        weights["threshold"] = torch.full((int(config["d_sae"]),), threshold, dtype=weights["W_enc"].dtype)
    centred = bool(config.get("apply_decoder_bias_to_pre_encoder", False)) and config.get("use_decoder_bias", True)
    return Published(
        weights, kind, centred, k=k, hook=hook, place=place, model_name=_model(folder), normalisation=normalisation
    )


def _activation(folder: Path, config: dict[str, Any]) -> tuple[Kind, int | None, float | None]:
    """Kind, k and threshold. Top-k that comes with a threshold is used with that, each latent for itself."""
    name, threshold = str(config["act_fn"]).lower(), config.get("jump_relu_threshold")
    if name == "jumprelu" and threshold is None:
        raise InputError(f"{folder / CONFIG}: a JumpReLU SAE without jump_relu_threshold; fetch the file again")
    if name == "jumprelu" or (name == "topk" and threshold):
        return "jumprelu", None, float(threshold)  # type: ignore[arg-type]
    if name == "topk" and config.get("top_k"):
        return "topk", int(config["top_k"]), None
    if name == "relu":
        return "standard", None, None
    raise InputError(
        f"{folder / CONFIG}: act_fn {config['act_fn']!r}; 'jumprelu', 'topk' (with top_k) and 'relu' are read"
    )


def _standardised(folder: Path, weights: Weights, config: dict[str, Any]) -> tuple[Weights, str]:
    how = config.get("norm_activation", "dataset-wise")
    if how == "inference":
        return weights, "none"
    norms = config.get("dataset_average_activation_norm")
    if how != "dataset-wise" or not isinstance(norms, dict) or not norms.get("in"):
        raise InputError(
            f"{folder / CONFIG}: norm_activation {how!r} with dataset_average_activation_norm {norms!r}; only "
            "'dataset-wise' with its mean norms can be folded into the weights: take an SAE of the Llama Scope releases"
        )
    into = math.sqrt(int(config["d_model"])) / float(norms["in"])
    out = math.sqrt(int(config["d_model"])) / float(norms.get("out") or norms["in"])
    scaled = {
        "b_enc": weights["b_enc"] / into,
        "W_dec": weights["W_dec"] * (into / out),
        "b_dec": weights["b_dec"] / out,
    }
    return {**weights, **scaled}, f"times {into:.6g} (sqrt(d_model) over the data set's mean norm {norms['in']:g})"


def _model(folder: Path) -> str:
    """All SAEs of the release are of one model; a folder of another name does not say."""
    return "meta-llama/Llama-3.1-8B" if "Llama3_1-8B-Base" in str(folder) else ""
