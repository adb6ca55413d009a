"""TransformerLens's names of places in a model: block and site, both ways."""

import re
from collections.abc import Sequence

from probes.activations import SITES, Site
from probes.errors import InputError

#: The bridge itself says `hook_in` and `hook_out`. Its `mlp.hook_out` is left out: with a norm behind attention and MLP
#: (Gemma 2 and 3) it is not what is added to the stream.
_PLACES: dict[str, Site] = dict(zip([f"hook_{site}" for site in SITES], SITES, strict=True))
_PLACES |= {"hook_in": "resid_pre", "hook_out": "resid_post"}


def hook_name(layer: int, site: Site = "resid_post") -> str:
    """Name of a site of block `layer` (0-based): `hook_name(3, "resid_post")` is "blocks.3.hook_resid_post"."""
    if layer < 0 or site not in SITES:
        raise InputError(f"layer {layer}, site {site!r}: give a 0-based block and one of {', '.join(SITES)}")
    return f"blocks.{layer}.hook_{site}"


def parse_hook_name(name: str) -> tuple[int, Site]:
    """Block and site that a name of TransformerLens means; "blocks.3.hook_out", the bridge's own, is resid_post.

    Raises InputError for a name of any other place, such as a head's or the inside of an MLP.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(hook_\w+)", name)
    if found and found[2] in _PLACES:
        return int(found[1]), _PLACES[found[2]]
    raise InputError(f"{name!r} names no site that can be read; use one such as blocks.3.{', '.join(_PLACES)}")


def resolve_layers(layers: Sequence[int | str], site: Site | None = None) -> tuple[tuple[int, ...], Site]:
    """Blocks and the one site that `layers` mean, each an index or a name; `site` is resid_post where none is named.

    Raises InputError where names mean another site than the others or than `site`.
    """
    default: Site = site or "resid_post"
    found: list[tuple[int, Site]]
    found = [parse_hook_name(layer) if isinstance(layer, str) else (layer, default) for layer in layers]
    wanted = found[0][1] if found and site is None else default
    if any(place != wanted for _, place in found):
        raise InputError(f"layers {list(layers)} at site {site!r}: they mean several sites; read one site at a time")
    return tuple(layer for layer, _ in found), wanted
