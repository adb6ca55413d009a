"""SAEs on the Hugging Face hub: finding one among sae-lens's releases or a repository's files, and its download."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.errors import InputError
from saes.formats import releases
from saes.formats.layouts import files_below, folders, patterns, pick


@dataclass(frozen=True)
class Entry:
    """One SAE on the hub: repository, folder and revision, and its place in sae-lens's directory where it has one.

    `foreign` says that only sae-lens knows how it is laid out; `centred_model` that it reads a residual stream without
    its mean.
    """

    repo: str
    folder: str
    revision: str | None = None
    release: str = ""
    sae_id: str = ""
    foreign: bool = False
    centred_model: bool = False

    @property
    def label(self) -> str:
        """Repository and folder as one path."""
        return f"{self.repo}/{self.folder}".rstrip("/")


def locate(source: str, layer: int | None, sae_id: str | None, layout: str | None) -> Entry:
    """Find the SAE that a release name or a hub id means.

    `source` is the name of a release in sae-lens's directory, or `owner/repository`, a folder of it behind, or a
    revision behind "@". Raises InputError where none or several fit, with what there is, and for what is no SAE.
    """
    name, _, revision = source.partition("@")
    if name in releases.releases():
        return _of_release(source, [name], layer, sae_id, revision or None)
    if not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)+", name):
        raise InputError(
            f"no SAE {source!r}: neither a folder nor a sae-lens release nor a hub id such as owner/repository"
        )
    owner, repo, *below = name.split("/")
    repo, folder = f"{owner}/{repo}", "/".join(below)
    mine = releases.of_repository(repo)
    if mine and not folder and layout is None and (sae_id is None or releases.holding(mine, sae_id)):
        return _of_release(source, mine, layer, sae_id, revision or None)
    folder = folder or sae_id or ""
    if not folder:
        folder = pick(source, folders(list_files(repo, revision or None), layout), layer, None)
    return Entry(repo, folder, revision or None, centred_model=releases.centred_model(repo, folder))


def _of_release(source: str, names: list[str], layer: int | None, sae_id: str | None, revision: str | None) -> Entry:
    release = (releases.holding(names, sae_id) if sae_id else None) or names[0]
    paths = releases.paths_of(release)
    chosen = pick(source, list(paths), layer, sae_id)
    releases.check_is_an_sae(release, chosen)
    repo, folder = releases.releases()[release]["repo_id"], paths[chosen]
    centred = releases.centred_model(repo, folder)
    foreign = releases.foreign_reader(release) is not None
    return Entry(repo, folder, revision, release, chosen, foreign, centred)


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
    """Names of a hub repository's files; without a connection, of those in the hub's cache."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        return list_repo_files(repo, revision=revision)
    except (OSError, ValueError) as error:
        try:
            root = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except (OSError, ValueError):
            raise _unreachable(repo, error) from error
        return files_below(root)


def through_sae_lens(entry: Entry, device: str) -> Any:
    """Let sae-lens load one SAE of its directory whose layout only it reads."""
    from sae_lens import SAE

    try:
        return SAE.from_pretrained(entry.release, entry.sae_id, device=device)
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable(entry.label, error) from error


def _unreachable(what: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else repr(error)
    return InputError(f"SAE {what} cannot be fetched ({reason}): check its name and the connection, or give a folder")
