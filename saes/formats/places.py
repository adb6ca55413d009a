"""Where an SAE reads: block and site, as TransformerLens and Hugging Face name the places of a model."""

import re

from probes.activations import SITES, Site
from probes.errors import InputError
from probes.names import hook_name, parse_hook_name

#: What SAEs are trained on: the sites that can be captured, and "attn_z", which cannot.
SAE_SITES: tuple[Site, ...] = (*SITES, "attn_z")

#: Modules inside a block, by what leaves them. With a norm behind attention and MLP (Gemma 2 and 3) it is that norm.
_MODULES: dict[str, Site] = {
    "": "resid_post",
    "self_attn": "attn_out",
    "attn": "attn_out",
    "attention": "attn_out",
    "mlp": "mlp_out",
    "post_feedforward_layernorm": "mlp_out",
}
_BLOCK = r"(?:^|\.)(?:layers|h|blocks)\.(\d+)"
Place = tuple[int, Site]


def as_site(name: str | None) -> Site | None:
    """The site of this name, None for none. Raises InputError for an unknown one."""
    if name is None:
        return None
    if name not in SAE_SITES:
        raise InputError(f"site {name!r}: use one of {', '.join(SAE_SITES)}")
    return SAE_SITES[SAE_SITES.index(name)]


def place_of_hook(hook: str) -> Place | None:
    """Block and site that a hook name means, in TransformerLens's or Hugging Face's spelling; None where it is no site.

    `blocks.3.hook_resid_post`, `blocks.4.hook_resid_pre`, `model.layers.3` and `layers.3` are all (3, "resid_post"):
    what enters a block is what left the one before. `blocks.3.attn.hook_z` is (3, "attn_z").
    """
    if found := re.search(r"(?:^|\.)(blocks\.\d+\.hook_\w+)$", hook):
        try:
            return settled(*parse_hook_name(found[1]))
        except InputError:
            return None
    if found := re.search(_BLOCK + r"\.(?:attn\.hook_z|self_attn\.o_proj\.input)$", hook):
        return int(found[1]), "attn_z"
    if found := re.search(_BLOCK + r"\.input$", hook):
        return settled(int(found[1]), "resid_pre")
    found = re.search(_BLOCK + r"(?:\.(\w+?))??(?:\.output)?$", hook)
    if found is None or (found[2] or "") not in _MODULES:
        return None
    return int(found[1]), _MODULES[found[2] or ""]


def settled(layer: int, site: Site) -> Place:
    """The same place by the name used here: what enters a block is the output of the one before, if there is one."""
    return (layer - 1, "resid_post") if site == "resid_pre" and layer > 0 else (layer, site)


def layer_of_hook(hook: str) -> int | None:
    """The block whose output a hook name means; None for another site (see `place_of_hook`)."""
    place = place_of_hook(hook)
    return place[0] if place and place[1] == "resid_post" else None


def name_of_place(layer: int, site: Site) -> str:
    """TransformerLens's name of a place; of "attn_z", `blocks.3.attn.hook_z`."""
    return f"blocks.{layer}.attn.hook_z" if site == "attn_z" else hook_name(layer, site)


def in_words(layer: int, site: Site) -> str:
    """A place for a reader: "output of block 3", "mlp_out of block 3"."""
    return f"output of block {layer}" if site == "resid_post" else f"{site} of block {layer}"
