"""dictionary_learning: a folder such as `resid_post_layer_15/trainer_1` with `config.json` and `ae.pt`.

From dictionary-learning 0.1.0: `dictionary.py` (AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder),
`trainers/{top_k,batch_top_k,matryoshka_batch_top_k}.py` (encode, decode, scale_biases), `utils.py` (load_dictionary)
and `training.py` (what `config.json` holds; a norm divided out in training is back in the biases when it saves).
So are the SAEs of Qwen2.5-7B-Instruct and Llama-3.1-8B-Instruct published (andyrdt/saes-*).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probes.activations import Site
from probes.errors import InputError
from saes.formats.places import Place, place_of_hook, settled
from saes.formats.published import (
    Published,
    Weights,
    checked,
    configuration,
    fold_decoder_norm,
    gate_as_threshold,
    needed,
    taken,
)
from saes.formats.torch_zip import read_tensors
from saes.sae import Kind

CONFIG, WEIGHTS = "config.json", "ae.pt"
FILES, EXTRA = (CONFIG, WEIGHTS), ()
_SITES: dict[str, Site] = {
    "resid_post": "resid_post",
    "resid_pre": "resid_pre",
    "resid_mid": "resid_mid",
    "mlp_out": "mlp_out",
    "attn_out": "attn_out",
    "attention_out": "attn_out",
}
Reader = Callable[[Path, Weights], Weights]


def read(folder: Path, label: str) -> Published:
    """Read one dictionary; its site is in `submodule_name` or the folder's name, else it is the block's output."""
    config = configuration(folder / CONFIG, ("trainer",))
    trainer, file = config["trainer"], folder / WEIGHTS
    name = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if name not in _CLASSES:
        raise InputError(f"{folder / CONFIG}: dict_class {name!r}; the classes read here are {', '.join(_CLASSES)}")
    kind, centred, take = _CLASSES[name]
    found = read_tensors(file)
    weights = checked(file, take(file, found), trainer.get("activation_dim"), trainer.get("dict_size"))
    if name == "AutoEncoder":  # as its own from_pretrained does
        weights = fold_decoder_norm(weights)
    buffer = config.get("buffer")
    io = buffer.get("io", "out") if isinstance(buffer, dict) else "out"
    hook, place = _place(folder, label, trainer, io)
    return Published(
        weights,
        kind,
        centred,
        k=_k(file, found, trainer) if kind == "topk" else None,
        hook=hook,
        place=place,
        model_name=str(trainer.get("lm_name") or ""),
        normalisation="divided by a norm in training" if trainer.get("norm_factor") else "none",
    )


def _linear(file: Path, found: Weights, b_dec: str) -> Weights:
    w_enc, b_enc, w_dec, bias = needed(file, found, ("encoder.weight", "encoder.bias", "decoder.weight", b_dec))
    return {"W_enc": w_enc.T, "b_enc": b_enc, "W_dec": w_dec.T, "b_dec": bias}


def _plain(file: Path, found: Weights) -> Weights:
    return taken(file, found, {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")})


def _gated(file: Path, found: Weights) -> Weights:
    names = ("encoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder.weight", "decoder_bias")
    w_enc, r_mag, gate, mag, w_dec, b_dec = needed(file, found, names)
    return {**gate_as_threshold(w_enc.T, r_mag, gate, mag), "W_dec": w_dec.T, "b_dec": b_dec}


def _settled_threshold(file: Path, found: Weights, weights: Weights) -> Weights:
    """With the one threshold that batch top-k learns in training; until then it is -1 and lets every latent through."""
    threshold = needed(file, found, ("threshold",))[0]
    if threshold.numel() == 1 and float(threshold) < 0:
        raise InputError(
            f"{file}: the threshold is {float(threshold):g}, so training ended before it was estimated (its "
            "threshold_start_step): train longer, or take another checkpoint"
        )
    return {**weights, "threshold": threshold}


#: Kind, whether the decoder's bias is taken off the input, and how the tensors are read, by `dict_class`.
_CLASSES: dict[str, tuple[Kind, bool, Reader]] = {
    "AutoEncoder": ("standard", True, lambda file, found: _linear(file, found, "bias")),
    "AutoEncoderNew": ("standard", False, lambda file, found: _linear(file, found, "decoder.bias")),
    "AutoEncoderTopK": ("topk", True, lambda file, found: _linear(file, found, "b_dec")),
    "BatchTopKSAE": (
        "jumprelu",
        True,
        lambda file, found: _settled_threshold(file, found, _linear(file, found, "b_dec")),
    ),
    "MatryoshkaBatchTopKSAE": (
        "jumprelu",
        True,
        lambda file, found: _settled_threshold(file, found, _plain(file, found)),
    ),
    "GatedAutoEncoder": ("gated", True, _gated),
    "JumpReluAutoEncoder": (
        "jumprelu",
        False,
        lambda file, found: {**_plain(file, found), "threshold": needed(file, found, ("threshold",))[0]},
    ),
}


def _k(file: Path, found: Weights, trainer: dict[str, Any]) -> int:
    told = [int(value) for value in (found.get("k"), trainer.get("k")) if value is not None]
    if not told or len(set(told)) > 1:
        raise InputError(f"{file}: k is {told or 'missing'} by weights and configuration: fetch both again")
    return told[0]


def _place(folder: Path, label: str, trainer: dict[str, Any], io: str) -> tuple[str, Place | None]:
    if io == "in_and_out":
        raise InputError(f"{folder} was trained on input and output of a module: a transcoder, not an SAE; take an SAE")
    layer, name = trainer.get("layer"), str(trainer.get("submodule_name") or "")
    found = re.findall("|".join(_SITES), f"{label} {name}")
    if layer is None:
        layer = next(reversed(re.findall(r"layer_?(\d+)", f"{label} {name}")), None)
    if place := place_of_hook(name):
        return name, settled(place[0], "resid_pre") if io == "in" and place[1] == "resid_post" else place
    if layer is None or (name and not re.search("|".join(_SITES), name)):
        return name, None
    site = _SITES[found[-1]] if found else "resid_post"
    if io == "in" and site != "resid_pre":
        return name, settled(int(layer), "resid_pre") if site == "resid_post" else None
    return name, settled(int(layer), site)
