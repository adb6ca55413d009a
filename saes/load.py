"""Loading sparse autoencoders from a folder, from sae-lens's releases or from the hub, whatever program wrote them."""

from pathlib import Path
from typing import Any

import torch

from probes.activations import Site
from probes.errors import InputError
from saes.formats import saelens
from saes.formats.hub import fetch, locate, through_sae_lens
from saes.formats.layouts import LAYOUTS, check_format, detect, files_below, folders, pick
from saes.formats.places import SAE_SITES, as_site, in_words, layer_of_hook, place_of_hook, settled
from saes.formats.published import Published, fold_centring
from saes.sae import SparseAutoencoder

__all__ = ["from_sae_lens", "layer_of_hook", "load_sae", "place_of_hook"]


def load_sae(
    source: str | Path,
    *,
    layer: int | None = None,
    sae_id: str | None = None,
    site: Site | None = None,
    format: str | None = None,
    device: str | torch.device = "cpu",
) -> SparseAutoencoder:
    """Load a published SAE, in float32.

    `source` is a folder, a release name of sae-lens's directory (`"qwen2.5-7b-instruct-andyrdt"`), or a hub id, with a
    folder behind it or not (`"andyrdt/saes-qwen2.5-7b-instruct"`), with `@revision` or not. Of many SAEs, `layer` (the
    block) or `sae_id` (the folder, or the id in the release) picks one. The layout is told by the files; `format`
    forces it: "saelens", "gemma-scope", "gemma-scope-2", "llama-scope", "sparsify", "dictionary-learning".

    Block and site come from the files; `layer` and `site` must agree with them, and stand in where the files say
    nothing (`site` is then the block's output unless it is given). Scalings of the input are folded into the weights.
    Raises InputError, naming file and cure, for what is missing, damaged, a pickle, no SAE (transcoders), rescaled at
    run time, or in contradiction to `layer` or `site`.
    """
    check_format(format)
    site = as_site(site)
    path = Path(source).expanduser()
    if path.exists() or isinstance(source, Path) or str(source).startswith(("/", ".", "~")):
        folder = _folder(path, layer, sae_id, format)
        name, label, centred_model = folder.resolve().name, str(folder.resolve()), False
    else:
        entry = locate(str(source), layer, sae_id, format)
        name = label = entry.label
        if entry.foreign and format is None:
            native = through_sae_lens(entry, str(device))
            return from_sae_lens(native, name=f"{entry.release}/{entry.sae_id}", layer=layer, site=site)
        folder, centred_model = fetch(entry, format), entry.centred_model
    found = LAYOUTS[detect(folder, format)].read(folder, label)
    if centred_model and found.normalisation == "none":
        found = fold_centring(found)
    return _assembled(found, found.name or name, layer, site).to(device)


def from_sae_lens(native: Any, *, name: str, layer: int | None = None, site: Site | None = None) -> SparseAutoencoder:
    """Turn a live sae-lens SAE (which is left as it is) into a `SparseAutoencoder`."""
    return _assembled(saelens.from_sae_lens(native, name=name), name, layer, site)


def _folder(path: Path, layer: int | None, sae_id: str | None, layout: str | None) -> Path:
    """The folder of one SAE: `path` itself, or the one below it that is asked for."""
    if not path.is_dir():
        raise InputError(
            f"no SAE folder at {path}: give the folder that holds its files, a sae-lens release or a hub id"
        )
    if sae_id is not None and (path / sae_id).is_dir():
        return path / sae_id
    if sae_id is None and folders((file.name for file in path.iterdir()), layout):
        return path
    below = folders(files_below(path), layout)
    if sae_id is None and ("" in below or not below):
        return path
    return path / pick(str(path), below, layer, sae_id)


def _assembled(found: Published, name: str, layer: int | None, site: Site | None) -> SparseAutoencoder:
    own = _agreed(found, name, layer, site)
    return SparseAutoencoder(
        **found.weights,
        kind=found.kind,
        layer=own[0],
        k=found.k,
        centred=found.centred,
        name=name,
        model_name=found.model_name,
        hook=found.hook,
        site=own[1],
        normalisation=found.normalisation,
    )


def _agreed(found: Published, name: str, layer: int | None, site: Site | None) -> tuple[int, Site]:
    """The one block and site that the SAE's own files and the caller agree on."""
    own = found.place
    if own is None:
        if found.hook:
            raise InputError(
                f"SAE {name!r} reads {found.hook!r}, which is no site that is known here ({', '.join(SAE_SITES)}): "
                "take an SAE of the output of a block"
            )
        if layer is None:
            raise InputError(
                f"SAE {name!r} does not say where it reads: pass layer=, the block, and site= unless it is the output"
            )
        return settled(layer, site or "resid_post")
    asked = settled(own[0] if layer is None else layer, site or own[1])
    if site == "resid_pre" and layer is None and own[1] == "resid_post":
        asked = own  # the input of the next block
    if asked != own:
        raise InputError(
            f"SAE {name!r} reads the {in_words(*own)} ({found.hook}), not the {in_words(*asked)}; "
            f"pass layer={own[0]} and site={own[1]!r}, or neither"
        )
    return own
