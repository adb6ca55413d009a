"""Gemma Scope: a folder such as `layer_20/width_16k/average_l0_71` with one `params.npz`.

From the authors' tutorial (colab 17dQFYUYnuKnP6OwQPH9v_GSYUW5aj-Rp, linked from the release's page) and arXiv
2408.05147, section 2: pre = x @ W_enc + b_enc, latents = relu(pre) where pre > threshold, no bias taken off the input.
The release's name says the model and the site: `-res` is the block's output, `-mlp` the MLP's output behind its norm,
`-att` what the heads hand to the output projection, side by side (the same paper, section 3).
"""

import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from probes.activations import Site
from probes.errors import InputError
from saes.formats.places import name_of_place
from saes.formats.published import Published, Weights, checked, damaged, taken

WEIGHTS = "params.npz"
FILES, EXTRA = (WEIGHTS,), ()
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_SITES: dict[str, Site] = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z"}


def read(folder: Path, label: str) -> Published:
    """Read one SAE of Gemma Scope; `label` is its path or hub id, whose names say layer, site and model."""
    file = folder / WEIGHTS
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)-(\w+)", label)
    layer = re.search(r"(?:^|/)layer_(\d+)(?:/|$)", label)
    if re.search(r"(?:^|/)embedding(?:/|$)", label):
        raise InputError(f"{file} is an SAE of token embeddings, which are no site of a block: take one of a layer")
    if release and release[3] not in _SITES:
        raise InputError(
            f"{file} is of the release {release[0]!r}, which holds no SAEs: take one of -res, -mlp or -att"
        )
    site = _SITES[release[3]] if release else None
    place = (int(layer[1]), site) if layer and site else None
    weights = taken(file, _arrays(file), {name: name for name in NAMES})
    return Published(
        checked(file, weights),
        "jumprelu",
        centred=False,
        hook=name_of_place(*place) if place else "",
        place=place,
        model_name=f"google/gemma-2-{release[1]}{'-it' if release[2] == 'it' else ''}" if release else "",
    )


def _arrays(file: Path) -> Weights:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            found = {re.sub("^w_", "W_", key): torch.from_numpy(arrays[key]) for key in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise damaged(file, error) from error
    return found
