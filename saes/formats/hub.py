"""SAEs on the Hugging Face hub: finding one among sae-lens's releases or a repository's files, and its download."""

import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from probes.errors import InputError
from saes.formats.layouts import folders, listed, patterns, pick

#: Readers of sae-lens that our layouts stand for; of other releases sae-lens itself makes the SAE.
_OURS = (None, "gemma_2", "gemma_3", "llama_scope", "dictionary_learning_1")


@dataclass(frozen=True)
class Entry:
    """One SAE on the hub: repository, revision, folder; `loader` where only sae-lens knows how it is laid out."""

    repo: str
    folder: str
    revision: str | None = None
    release: str = ""
    sae_id: str = ""
    loader: str | None = None

    @property
    def label(self) -> str:
        """Repository and folder as one path."""
        return f"{self.repo}/{self.folder}".rstrip("/")


def locate(source: str, layer: int | None, sae_id: str | None, layout: str | None) -> Entry:
    """Find the SAE that a release name or a hub id means.

    `source` is the name of a release in sae-lens's directory, or `owner/repository`, a folder of it behind, or a
    revision behind "@". Raises InputError where none or several fit, with what there is.
    """
    name, _, revision = source.partition("@")
    known = releases()
    if name in known:
        return _of_release(source, [name], layer, sae_id)
    if not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)+", name):
        raise InputError(
            f"no SAE {source!r}: neither a folder nor a sae-lens release nor a hub id such as owner/repository"
        )
    owner, repo, *below = name.split("/")
    repo, folder = f"{owner}/{repo}", "/".join(below)
    mine = [release for release, entry in known.items() if entry["repo_id"] == repo]
    if mine and not folder and layout is None and (sae_id is None or _id_of(mine, sae_id)):
        return _of_release(source, mine, layer, sae_id)
    folder = folder or sae_id or ""
    if not folder:
        folder = pick(source, folders(list_files(repo, revision or None), layout), layer, None)
    return Entry(repo, folder, revision or None)


def fetch(entry: Entry, layout: str | None) -> Path:
    """Download the files of one SAE, or find them in the hub's cache: the folder that holds them."""
    root = download(entry.repo, entry.revision, patterns(entry.folder, layout))
    folder = root / entry.folder
    if not folder.is_dir():
        raise InputError(
            f"{entry.label}: the repository has no SAE of a known layout there; name its folder with sae_id="
        )
    return folder


def download(repo: str, revision: str | None, wanted: list[str]) -> Path:
    """The local copy of these files of a hub repository; those that it does not have are left out."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise _unreachable(repo, error) from error


def list_files(repo: str, revision: str | None) -> list[str]:
    """Names of a hub repository's files."""
    from huggingface_hub import list_repo_files

    try:
        return list_repo_files(repo, revision=revision)
    except (OSError, ValueError) as error:
        raise _unreachable(repo, error) from error


def through_sae_lens(entry: Entry, device: str) -> Any:
    """Let sae-lens load one SAE of its directory whose layout only it reads."""
    from sae_lens import SAE

    try:
        return SAE.from_pretrained(entry.release, entry.sae_id, device=device)
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable(entry.label, error) from error


@functools.cache
def releases() -> dict[str, dict[str, Any]]:
    """The directory of releases that comes with sae-lens: repository, ids and folders, without importing it."""
    spec = importlib.util.find_spec("sae_lens")
    homes = list(spec.submodule_search_locations or ()) if spec else []
    file = next((Path(home) / "pretrained_saes.yaml" for home in homes), None)
    if file is None or not file.is_file():
        return {}
    with file.open(encoding="utf-8") as stream:
        reader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(stream)
        return reader.get_single_data()


def _of_release(source: str, names: list[str], layer: int | None, sae_id: str | None) -> Entry:
    release = (_id_of(names, sae_id) or names[0]) if sae_id else names[0]
    found = releases()[release]
    paths = {entry["id"]: str(entry["path"]) for entry in found["saes"]}
    chosen = pick(source, list(paths), layer, sae_id)
    scaling = (found.get("config_overrides") or {}).get("normalize_activations", "none")
    if scaling != "none":
        raise InputError(
            f"SAE {release}/{chosen} rescales its input at run time (normalize_activations={scaling!r}), which cannot "
            f"be folded into its weights: take another release than {listed(names)}"
        )
    loader = found.get("conversion_func")
    revision = source.partition("@")[2] or None
    return Entry(found["repo_id"], paths[chosen], revision, release, chosen, loader=None if loader in _OURS else loader)


def _id_of(names: list[str], sae_id: str) -> str | None:
    """The release among these that has this id."""
    return next((name for name in names if any(entry["id"] == sae_id for entry in releases()[name]["saes"])), None)


def _unreachable(what: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else repr(error)
    return InputError(f"SAE {what} cannot be fetched ({reason}): check its name and the connection, or give a folder")
