"""SAELens: `cfg.json` and `sae_weights.safetensors`, as sae-lens 3 to 6 write them; read, and written by `save_sae`.

From sae-lens 6.54.12: `saes/{standard,topk,jumprelu,gated,batchtopk_,matryoshka_batchtopk}_sae.py` (encode, decode),
`saes/sae.py` (process_sae_in, fold_activation_norm_scaling_factor, fold_activation_whitening),
`training/activation_scaler.py`, `loading/pretrained_sae_loaders.py` (handle_pre_6_0_config).
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probes.errors import InputError
from probes.io import atomic_folder, read_json, write_json
from saes.formats.places import name_of_place, place_of_hook
from saes.formats.published import (
    Published,
    Weights,
    checked,
    configuration,
    fold_affine,
    fold_centring,
    fold_decoder_norm,
    fold_scale,
    gate_as_threshold,
    needed,
    tensors,
)
from saes.sae import Kind, SparseAutoencoder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_SCALER, _WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
FILES, EXTRA = (CONFIG, WEIGHTS), (_SCALER, _WHITENING)
#: What their architectures are here. The batch ones are written as JumpReLU, or, mid-training, with one threshold.
_KINDS: dict[str, Kind] = {
    "standard": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
}


def read(folder: Path, label: str) -> Published:
    """Read an SAE folder of sae-lens; decoder norms that top-k was taken with, and scalings kept beside, are folded."""
    del label
    config = _modern(configuration(folder / CONFIG, ("d_in", "d_sae")))
    name, meta = config["architecture"], config["metadata"]
    kind = _kind(str(folder), name)
    found = tensors(folder / WEIGHTS)
    weights = _weights(folder / WEIGHTS, found, name)
    weights = checked(folder / WEIGHTS, weights, int(config["d_in"]), int(config["d_sae"]))
    normed = bool(config.get("rescale_acts_by_decoder_norm")) and name.endswith("topk")
    if normed:  # a batch threshold is counted after the norms
        weights = {**fold_decoder_norm(weights), **{key: weights[key] for key in weights if key == "threshold"}}
    centred = bool(config.get("apply_b_dec_to_input", True))
    weights, normalisation = _unscaled(folder, weights, config.get("normalize_activations"), centred)
    if normed and normalisation.startswith("times"):
        weights = fold_decoder_norm(weights)
    if config.get("reshape_activations", "none") not in ("none", "hook_z") or meta.get("hook_head_index") is not None:
        raise InputError(f"SAE {folder} reads single heads (hook_head_index): only SAEs of whole sites are read here")
    hook = meta.get("hook_name") or ""
    found_here = Published(
        weights,
        kind if meta.get("kind") is None else _kind(str(folder), meta["kind"]),
        centred,
        k=int(config["k"]) if kind == "topk" and config.get("k") else None,
        hook=hook,
        place=place_of_hook(hook),
        model_name=meta.get("model_name") or "",
        normalisation=meta.get("normalisation") or normalisation,
        name=meta.get("name") or "",
    )
    of_centred = (meta.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights")
    return fold_centring(found_here) if of_centred else found_here


def from_sae_lens(native: Any, *, name: str) -> Published:
    """Read a live sae-lens SAE, which is left as it is."""
    config, meta = native.cfg, native.cfg.metadata
    kind = _kind(name, config.architecture())
    if config.normalize_activations not in (None, "none"):
        raise _rescales(name, config.normalize_activations)
    file = Path(name)
    found = {key: value.detach().clone() for key, value in native.state_dict().items()}
    weights = checked(file, _weights(file, found, config.architecture()), config.d_in, config.d_sae)
    if kind == "topk" and getattr(config, "rescale_acts_by_decoder_norm", False):
        weights = fold_decoder_norm(weights)
    hook = meta.hook_name or ""
    return Published(
        weights,
        kind,
        bool(config.apply_b_dec_to_input),
        k=int(getattr(config, "k", 0)) or None,
        hook=hook,
        place=place_of_hook(hook),
        model_name=meta.model_name or "",
    )


def save_sae(sae: SparseAutoencoder, folder: str | Path) -> Path:
    """Write an SAE as sae-lens 6 reads it: `cfg.json` and `sae_weights.safetensors`, in place of an SAE there.

    The weights are those that `sae` holds, with all that was folded into them; `load_sae` gives them back bit by bit. A
    gated SAE is written as the JumpReLU SAE that it equals. Raises InputError where the folder holds something else.
    """
    from safetensors.torch import save_file

    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONFIG).is_file())):
        raise InputError(f"{folder} exists and holds no SAE: choose another folder")
    with atomic_folder(folder) as new:
        names = ["W_enc", "W_dec", "b_enc", "b_dec", *(["threshold"] if sae.threshold is not None else [])]
        save_file({name: getattr(sae, name).detach().cpu().contiguous() for name in names}, new / WEIGHTS)
        write_json(new / CONFIG, _config(sae))
    return folder


def _config(sae: SparseAutoencoder) -> dict[str, Any]:
    own = place_of_hook(sae.hook) == (sae.layer, sae.site)
    meta = {
        "sae_lens_version": version("sae-lens"),
        "model_name": sae.model_name,
        "hook_name": sae.hook if own else name_of_place(sae.layer, sae.site),
        "name": sae.name,
        "normalisation": sae.normalisation,
    }
    if sae.kind == "gated":
        meta["kind"] = "gated"
    config = {
        "architecture": "jumprelu" if sae.kind == "gated" else sae.kind,
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": meta,
    }
    return config | ({"k": sae.k, "rescale_acts_by_decoder_norm": False} if sae.kind == "topk" else {})


def _modern(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the names of version 6: older ones had `metadata`'s entries beside the others."""
    config = {**config, "metadata": config.get("metadata") or config}
    meta = config["metadata"] = {**config["metadata"]}
    meta.setdefault("hook_name", meta.get("hook_point"))
    activation = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    kwargs = config.get("activation_fn_kwargs") or {}
    config.setdefault("architecture", "standard")
    if activation == "topk" and "k" in kwargs:
        config |= {"architecture": "topk", "k": kwargs["k"]}
    elif activation not in ("relu", "topk"):
        raise InputError(
            f"SAE {config.get('sae_id', '')!r} uses the activation {activation!r}; only relu and topk are read"
        )
    if config.get("normalize_activations") is True:
        config["normalize_activations"] = "expected_average_only_in"
    return config


def _kind(name: str, kind: str) -> Kind:
    if kind not in _KINDS:
        raise InputError(f"SAE {name!r} is of the kind {kind!r}; the kinds read here are {', '.join(_KINDS)}")
    return _KINDS[kind]


def _weights(file: Path, found: Weights, architecture: str) -> Weights:
    w_enc, w_dec, b_dec = needed(file, found, ("W_enc", "W_dec", "b_dec"))
    for odd in ("scaling_factor", "finetuning_scaling_factor"):
        if odd in found and not torch.allclose(found[odd].float(), torch.ones(())):
            w_dec = w_dec * found[odd][:, None]  # version 3 to 5: latents times this, then the decoder
    if architecture == "gated":
        return {
            **gate_as_threshold(w_enc, *needed(file, found, ("r_mag", "b_gate", "b_mag"))),
            "W_dec": w_dec,
            "b_dec": b_dec,
        }
    weights = {"W_enc": w_enc, "W_dec": w_dec, "b_enc": needed(file, found, ("b_enc",))[0], "b_dec": b_dec}
    if _KINDS[architecture] == "jumprelu":
        weights["threshold"] = _threshold(file, found)
    return weights


def _threshold(file: Path, found: Weights) -> Tensor:
    if "log_threshold" in found:
        return found["log_threshold"].exp()
    if "topk_threshold" in found:
        return found["topk_threshold"].float()
    return needed(file, found, ("threshold",))[0]


def _unscaled(folder: Path, weights: Weights, how: Any, centred: bool) -> tuple[Weights, str]:
    """Fold what sae-lens does to the input. A checkpoint in training keeps the numbers for that beside the weights."""
    if how in (None, False, "none"):
        return weights, "none"
    if how == "expected_average_only_in" and (folder / _SCALER).is_file():
        scale = read_json(folder / _SCALER).get("scaling_factor")
        if scale:
            return fold_scale(weights, float(scale)), f"times {float(scale):.6g} (mean norm to sqrt(d_model))"
    if how == "covariance_whitening" and (folder / _WHITENING).is_file():
        file = folder / _WHITENING
        mean, matrix, inverse = needed(file, tensors(file), ("mean", "matrix", "inverse_matrix"))
        return fold_affine(weights, mean, matrix, inverse, centred=centred), "whitened by its covariance"
    raise _rescales(str(folder), how)


def _rescales(name: str, how: Any) -> InputError:
    return InputError(
        f"SAE {name!r} rescales its input at run time (normalize_activations={how!r}), token by token or by a factor "
        "that its files do not hold; fold that into its weights with sae-lens first, or take another SAE"
    )
