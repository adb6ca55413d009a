"""Gemma Scope 2: a folder such as `resid_post/layer_12_width_16k_l0_small` with `config.json` and `params.safetensors`.

The file's keys, `config.json`'s `hf_hook_point_in` and the names of folders are those of the release
(google/gemma-scope-2-*), as sae-lens 6.54.12 reads them (`loading/pretrained_sae_loaders.py`, gemma_3); the formula is
that of Gemma Scope. Transcoders, cross-layer transcoders and crosscoders, which map one place to others, are refused.
"""

import re
from pathlib import Path

from probes.errors import InputError
from saes.formats.gemma_scope import NAMES
from saes.formats.places import Place, place_of_hook
from saes.formats.published import Published, checked, configuration, taken, tensors

CONFIG, WEIGHTS = "config.json", "params.safetensors"
FILES, EXTRA = (WEIGHTS,), (CONFIG,)
_FOLDERS = {"resid_post": "{}.output", "mlp_out": "{}.post_feedforward_layernorm.output"}
_FOLDERS["attn_out"] = "{}.self_attn.o_proj.input"


def read(folder: Path, label: str) -> Published:
    """Read one SAE of Gemma Scope 2; without a `config.json`, its path or hub id says the layer and the site."""
    config = configuration(folder / CONFIG, ()) if (folder / CONFIG).is_file() else {}
    hook = config.get("hf_hook_point_in") or _hook(label)
    _check_is_an_sae(folder, label, config)
    file = folder / WEIGHTS
    weights = taken(file, tensors(file), {name: name.lower() for name in NAMES})
    width = config.get("width")
    return Published(
        checked(file, weights, d_sae=int(width) if width else None),
        "jumprelu",
        centred=False,
        hook=hook,
        place=_place(folder, hook),
        model_name=_model(config.get("model_name") or "", label),
    )


def _check_is_an_sae(folder: Path, label: str, config: dict[str, object]) -> None:
    kind = config.get("architecture", "jump_relu")
    if kind != "jump_relu":
        raise InputError(f"{folder / CONFIG}: architecture {kind!r}; the SAEs of this layout are 'jump_relu'")
    out = config.get("hf_hook_point_out")
    other = re.search(r"(?:^|/)(transcoder|clt|crosscoder)", label)
    if other or (out and out != config.get("hf_hook_point_in")):
        name = other[1] if other else f"map to {out}"
        raise InputError(f"{folder} is a {name}, not an SAE: it maps one place of the model to another; take an SAE")


def _place(folder: Path, hook: str) -> Place | None:
    place = place_of_hook(hook)
    if hook and place is None:
        raise InputError(
            f"{folder} reads {hook!r}, which is no site that is known here: take an SAE of a block's output"
        )
    return place


def _hook(label: str) -> str:
    found = re.search(r"(?:^|/)(resid_post|attn_out|mlp_out)(?:_all)?/layer_(\d+)_", label)
    return _FOLDERS[found[1]].format(f"model.layers.{found[2]}") if found else ""


def _model(name: str, label: str) -> str:
    """The model's hub id. The release spells it "gemma-v3-1b-pt"; on the hub the smallest has no "-pt"."""
    if not name and (found := re.search(r"gemma-scope-2-(\w+)-(pt|it)", label)):
        name = f"gemma-3-{found[1]}-{found[2]}"
    name = name.replace("-v3-", "-3-")
    name = f"google/{name}" if name and "/" not in name else name
    return name.replace("-pt", "") if "270m" in name else name
