"""sae-lens's directory of published SAEs: releases, their repositories and ids, and what must be known to use them."""

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import yaml

from probes.errors import InputError

#: What sae-lens's readers are called that our layouts stand for; of other releases sae-lens itself makes the SAE.
_OURS = (None, "gemma_2", "gemma_3", "llama_scope", "dictionary_learning_1")
_NO_SAE = r"transcoder|crosscoder|(?:^|[/_])clt(?:[/_]|$)|temporal"


@functools.cache
def releases() -> dict[str, dict[str, Any]]:
    """The directory by release, read from sae-lens's own file without importing it; empty where sae-lens has none."""
    spec = importlib.util.find_spec("sae_lens")
    homes = list(spec.submodule_search_locations or ()) if spec else []
    file = next((Path(home) / "pretrained_saes.yaml" for home in homes), None)
    if file is None or not file.is_file():
        return {}
    with file.open(encoding="utf-8") as stream:
        return getattr(yaml, "CSafeLoader", yaml.SafeLoader)(stream).get_single_data()


def of_repository(repo: str) -> list[str]:
    """The releases whose SAEs lie in a repository."""
    return [name for name, entry in releases().items() if entry["repo_id"] == repo]


def paths_of(release: str) -> dict[str, str]:
    """The folder of each id of a release."""
    return {entry["id"]: str(entry["path"]) for entry in releases()[release]["saes"]}


def holding(names: list[str], sae_id: str) -> str | None:
    """The first of these releases that has this id."""
    return next((name for name in names if sae_id in paths_of(name)), None)


def foreign_reader(release: str) -> str | None:
    """The name of sae-lens's reader where no layout of ours stands for it."""
    name = releases()[release].get("conversion_func")
    return None if name in _OURS else name


def check_is_an_sae(release: str, sae_id: str) -> None:
    """Raise InputError for transcoders and their like, before anything is fetched."""
    found = re.search(_NO_SAE, f"{releases()[release].get('conversion_func')}/{release}/{paths_of(release)[sae_id]}")
    if found:
        raise InputError(
            f"{release}/{sae_id} is no SAE of one place ({found[0].strip('/_')}): it maps places of the model to "
            "others, or its latents to later ones; take an SAE"
        )


def centred_model(repo: str, folder: str) -> bool:
    """Whether the SAE in a repository's folder reads a residual stream without its mean, as TransformerLens makes it.

    So it is for old SAEs of GPT-2. Raises InputError where the directory says that the SAE rescales its input token by
    token, which its own files do not say.
    """
    for name in of_repository(repo):
        if folder not in paths_of(name).values():
            continue
        told = releases()[name].get("config_overrides") or {}
        if told.get("normalize_activations", "none") != "none":
            raise InputError(
                f"SAE {repo}/{folder} rescales its input at run time (normalize_activations="
                f"{told['normalize_activations']!r}), which cannot be folded into its weights: take another SAE"
            )
        return bool((told.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"))
    return False
