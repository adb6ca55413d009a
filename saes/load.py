"""Loading sparse autoencoders that sae-lens can read, from a folder or by release name."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probes.errors import InputError
from probes.io import read_json
from saes.sae import SparseAutoencoder

_WEIGHTS, _CONFIG = "sae_weights.safetensors", "cfg.json"
_KINDS = ("standard", "topk", "jumprelu")
_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")


def load_sae(
    source: str | Path, *, layer: int | None = None, sae_id: str | None = None, device: str | torch.device = "cpu"
) -> SparseAutoencoder:
    """Load an SAE over the residual stream through sae-lens.

    `source` is a folder with `cfg.json` and `sae_weights.safetensors`, a release name of sae-lens' directory
    (`"qwen2.5-7b-instruct-andyrdt"`), or a hub repository. `layer` is the block whose output the SAE reads: it picks
    the SAE of a release, and must agree with the hook point that the SAE itself names. `sae_id` picks one SAE of a
    release that has several at that layer. Standard, top-k and JumpReLU (batch-top-k included) SAEs are read; decoder
    norms are folded, so that latents have the residual stream's units. InputError says what is missing or does not
    fit.
    """
    path = Path(source).expanduser()
    if path.exists() or isinstance(source, Path) or str(source).startswith(("/", ".", "~")):
        native, name = _from_folder(path, str(device)), path.resolve().name
    else:
        native, name = _from_release(str(source), layer, sae_id, str(device))
    return from_sae_lens(native, name=name, layer=layer)


def from_sae_lens(native: Any, *, name: str, layer: int | None = None) -> SparseAutoencoder:
    """Turn a live sae-lens SAE (which is left as it is) into a `SparseAutoencoder`."""
    config, meta = native.cfg, native.cfg.metadata
    kind = config.architecture()
    _check_kind(name, kind)
    if config.normalize_activations != "none" or config.reshape_activations != "none":
        raise InputError(
            f"SAE {name!r} rescales its input at run time (normalize_activations={config.normalize_activations!r}, "
            f"reshape_activations={config.reshape_activations!r}); fold that into its weights with sae-lens first"
        )
    weights = {key: value.detach().clone() for key, value in native.state_dict().items()}
    if kind == "topk" and getattr(config, "rescale_acts_by_decoder_norm", False):
        weights = _fold_decoder_norm(weights)
    return SparseAutoencoder(
        weights["W_enc"],
        weights["W_dec"],
        weights["b_enc"],
        weights["b_dec"],
        kind=kind,
        layer=_agreed_layer(name, meta.hook_name, layer),
        k=int(getattr(config, "k", 0)) or None,
        threshold=weights.get("threshold"),
        centred=bool(config.apply_b_dec_to_input),
        name=name,
        model_name=meta.model_name or "",
        hook=meta.hook_name or "",
    )


def layer_of_hook(hook: str) -> int | None:
    """The block whose output a hook name means, in TransformerLens' or Hugging Face's spelling; None for another site.

    `blocks.3.hook_resid_post`, `blocks.4.hook_resid_pre` and `model.layers.3` all mean block 3.
    """
    if found := re.search(r"(?:^|\.)blocks\.(\d+)\.hook_(resid_post|out|resid_pre|in)$", hook):
        return int(found[1]) - (found[2] in ("resid_pre", "in"))
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)$", hook)
    return int(found[1]) if found else None


def _check_kind(name: str, kind: str) -> None:
    if kind not in _KINDS:
        raise InputError(f"SAE {name!r} is of the kind {kind!r}; the kinds read here are {', '.join(_KINDS)}")


def _agreed_layer(name: str, hook: str | None, layer: int | None) -> int:
    """The one block that the SAE's own hook name and the caller agree on."""
    if not hook:
        if layer is None:
            raise InputError(
                f"SAE {name!r} does not say where it reads; pass layer=, the block whose output it was trained on"
            )
        return layer
    own = layer_of_hook(hook)
    if own is None or own < 0:
        raise InputError(
            f"SAE {name!r} reads {hook!r}; only SAEs at the output of a block (hook_resid_post) can be used here"
        )
    if layer is not None and layer != own:
        raise InputError(
            f"SAE {name!r} reads the output of block {own} ({hook}), not of block {layer}; pass layer={own} or none"
        )
    return own


def _from_folder(path: Path, device: str) -> Any:
    """Read a sae-lens folder after checking, before the slow import, that it can be one."""
    if not path.is_dir():
        raise InputError(
            f"no SAE folder at {path}: give a folder with {_CONFIG} and {_WEIGHTS}, or a sae-lens release name"
        )
    missing = [file for file in (_CONFIG, _WEIGHTS) if not (path / file).is_file()]
    if missing:
        pickles = [file.name for file in sorted(path.iterdir()) if file.suffix in _PICKLES]
        cure = f"; {pickles[0]} is a pickle, which is not read: save it as safetensors" if pickles else ""
        raise InputError(f"SAE folder {path} has no {missing[0]}{cure}")
    config = read_json(path / _CONFIG)
    if not isinstance(config, dict) or not {"d_in", "d_sae"} <= config.keys():
        raise InputError(f"{path / _CONFIG} is not an SAE configuration (no d_in and d_sae): save the SAE again")
    _check_kind(str(path), config.get("architecture", "standard"))
    from sae_lens import SAE
    from safetensors import SafetensorError

    try:
        return SAE.load_from_disk(path, device=device)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise InputError(
            f"SAE folder {path} cannot be read ({reason}): the file is damaged or not of this kind"
        ) from error


def _from_release(release: str, layer: int | None, sae_id: str | None, device: str) -> tuple[Any, str]:
    """Fetch one SAE of a sae-lens release, found by its id or by its layer."""
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory, get_releases_for_repo_id

    known = get_pretrained_saes_directory()
    if release not in known and (names := get_releases_for_repo_id(release)):
        release = names[0]
    if release in known:
        sae_id = _pick(release, list(known[release].saes_map), layer, sae_id)
    elif "/" not in release or sae_id is None:
        raise InputError(
            f"no SAE {release!r}: neither a folder nor a sae-lens release; for a hub repository pass sae_id= too"
        )
    try:
        return SAE.from_pretrained(release, sae_id, device=device), f"{release}/{sae_id}"
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise InputError(f"SAE {release}/{sae_id} cannot be fetched: {reason}") from error


def _pick(release: str, ids: list[str], layer: int | None, sae_id: str | None) -> str:
    """The id asked for, or the only id at `layer`."""
    if sae_id is not None:
        if sae_id not in ids:
            raise InputError(f"release {release!r} has no SAE {sae_id!r}; it has {_listed(ids)}")
        return sae_id
    if layer is None:
        raise InputError(f"release {release!r} holds {len(ids)} SAEs: pass layer= or sae_id=, one of {_listed(ids)}")
    fitting = [i for i in ids if _layer_of_id(i) == layer]
    if len(fitting) != 1:
        raise InputError(
            f"release {release!r} has {len(fitting)} SAEs at block {layer}: "
            f"pass sae_id=, one of {_listed(fitting or ids)}"
        )
    return fitting[0]


def _layer_of_id(sae_id: str) -> int | None:
    own = layer_of_hook(sae_id)
    found = re.search(r"layer[_.](\d+)", sae_id)
    return own if own is not None else int(found[1]) if found else None


def _listed(ids: list[str]) -> str:
    return ", ".join(repr(i) for i in ids[:5]) + (", ..." if len(ids) > 5 else "")


def _fold_decoder_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Unit decoder rows; encoder and bias take the norms, so that latents and reconstruction stay the same."""
    norms = weights["W_dec"].norm(dim=-1)
    folded = {
        "W_enc": weights["W_enc"] * norms,
        "b_enc": weights["b_enc"] * norms,
        "W_dec": weights["W_dec"] / norms[:, None],
    }
    return {**weights, **folded}
