"""Whether an SAE belongs to a model: width, block, site, and the base model by name where both are known."""

import re
from typing import Any

from probes.activations import SITES
from probes.errors import InputError
from probes.hooks import find_points
from probes.models import Model
from saes.base_names import other_base
from saes.sae import SparseAutoencoder


def check_fits(sae: SparseAutoencoder, model: Model) -> None:
    """Raise InputError unless `sae` can read `model`: width, block, site, and no other base model by name.

    Names are compared by family, version and size ("llama", "3.1", "8b") as far as both say them; what a name does not
    say is no reason to refuse, and a fine-tune of the same base fits.
    """
    cure = "load an SAE that was trained on this model"
    if sae.site not in SITES:
        raise InputError(
            f"SAE {sae.name!r} reads {sae.site} of block {sae.layer}, which cannot be captured or changed here: "
            "give it activations of your own, or take an SAE of the block's output"
        )
    if sae.d_model != model.d_model:
        raise InputError(
            f"SAE {sae.name!r} reads width {sae.d_model}, but {model.name!r} has width {model.d_model}: {cure}"
        )
    if not 0 <= sae.layer < model.n_layers:
        raise InputError(
            f"SAE {sae.name!r} reads block {sae.layer}, but {model.name!r} has blocks 0 to {model.n_layers - 1}: {cure}"
        )
    for name in _names(model):
        if other_base(sae.model_name, name):
            raise InputError(f"SAE {sae.name!r} was trained on {sae.model_name!r}, but this model is {name!r}: {cure}")
    _check_site(sae, model)


def need_resid_post(sae: SparseAutoencoder, what: str) -> None:
    """Raise InputError unless `sae` reads the output of a block, which `what` is about."""
    if sae.site != "resid_post":
        raise InputError(
            f"SAE {sae.name!r} reads {sae.place}, but {what} is about the output of a block: take an SAE of resid_post"
        )


def _check_site(sae: SparseAutoencoder, model: Model) -> None:
    """Raise InputError where the block has no such site, or where the hook's module is not what is added there."""
    if sae.site in ("resid_pre", "resid_post"):
        return
    point = find_points(model, [(sae.layer, sae.site)])[sae.layer, sae.site]
    found = re.search(r"\.(self_attn|attn|attention|mlp)(?:\.output)?$", sae.hook)
    if found and not sae.hook.startswith("blocks.") and point.end == "output" and point.path != found[1]:
        raise InputError(
            f"SAE {sae.name!r} reads the module {sae.hook!r}, but what {model.name!r} adds to the stream comes from "
            f"{point.path!r} of the block (a norm stands between): load an SAE of the block's output"
        )


def _names(model: Model) -> list[str]:
    config: Any = getattr(model.hf, "config", None)
    return [name for name in (model.name, getattr(config, "_name_or_path", "")) if name]
