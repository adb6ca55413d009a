"""Where a published SAE's latents are shown on Neuronpedia, by sae-lens's directory of releases."""

import re

from probes.errors import InputError
from saes.formats.releases import releases

SITE = "https://www.neuronpedia.org"


def neuronpedia_id(release: str, sae_id: str) -> str | None:
    """The name `modelId/saeId` under which Neuronpedia shows an SAE, or None where sae-lens knows of none.

    `release` is a name of sae-lens's directory or a hub repository, `sae_id` an SAE's id or path in it. Nothing is
    fetched, and sae-lens is not imported.
    """
    for name, found in releases().items():
        if release in (name, found["repo_id"]):
            for entry in found["saes"]:
                if sae_id in (entry["id"], str(entry["path"])) and entry.get("neuronpedia"):
                    return str(entry["neuronpedia"])
    return None


def neuronpedia_link(name: str, latent: int) -> str:
    """The address of a latent's page: `name` is `modelId/saeId`, the index of the latent follows (their mapping).

    Raises InputError for a name of another form.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*", name):
        raise InputError(f"neuronpedia {name!r}: give modelId/saeId, such as gemma-2-2b/20-gemmascope-res-16k")
    return f"{SITE}/{name}/{int(latent)}"
