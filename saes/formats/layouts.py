"""The layouts that are read: by which files each is known, and how the folder of one SAE is found among many."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import normpath

from probes.errors import InputError
from saes.formats import dictionary_learning, gemma_scope, gemma_scope_2, llama_scope, saelens, sparsify
from saes.formats.places import place_of_hook
from saes.formats.published import Published

_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")


class SeveralSAEs(InputError):
    """A folder, release or repository holds several SAEs, and nothing says which is meant."""


@dataclass(frozen=True)
class Layout:
    """A layout: the files below an SAE's folder that make it one, those that may stand beside, and its reader.

    `read(folder, label)` gets the folder and the words that its place was asked for by, whose names may say more.
    """

    files: tuple[str, ...]
    extra: tuple[str, ...]
    read: Callable[[Path, str], Published]


LAYOUTS: dict[str, Layout] = {
    name: Layout(module.FILES, module.EXTRA, module.read)
    for name, module in (
        ("saelens", saelens),
        ("gemma-scope", gemma_scope),
        ("gemma-scope-2", gemma_scope_2),
        ("llama-scope", llama_scope),
        ("sparsify", sparsify),
        ("dictionary-learning", dictionary_learning),
    )
}


def check_format(name: str | None) -> None:
    """Raise InputError for a layout of no known name."""
    if name is not None and name not in LAYOUTS:
        raise InputError(f"format={name!r}: use one of {', '.join(LAYOUTS)}, or leave it out")


def patterns(folder: str, name: str | None) -> list[str]:
    """The files of an SAE in `folder` of a hub repository, in every layout or in the one named."""
    wanted = [file for layout in _among(name) for file in (*layout.files, *layout.extra)]
    return sorted(name for file in wanted if not (name := normpath(_joined(folder, file))).startswith(".."))


def files_below(root: Path) -> list[str]:
    """Paths of all files below a folder, from there."""
    return [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]


def folders(files: Iterable[str], name: str | None) -> list[str]:
    """The folders, "" for the root, that hold an SAE among these paths of files."""
    paths = set(files)
    parents = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    return sorted(
        "" if folder == "." else folder
        for folder in parents
        if any(all(_joined(folder, file) in paths for file in layout.files) for layout in _among(name))
    )


def detect(folder: Path, name: str | None) -> str:
    """The layout of the SAE in `folder`. Raises InputError where the files are of none or of several."""
    found = [key for key in _names(name) if all((folder / file).is_file() for file in LAYOUTS[key].files)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{folder} holds the files of {' and '.join(found)}: name one with format=")
    raise _nothing(folder, name)


def _nothing(folder: Path, name: str | None) -> InputError:
    """What to raise for a folder of no layout: the file that is missing from the one that it is nearest to."""
    files = {file.name for file in folder.iterdir()}
    partly = {key: [file for file in LAYOUTS[key].files if not (folder / file).is_file()] for key in _names(name)}
    pickles = sorted(file for file in files if Path(file).suffix in _PICKLES and file != dictionary_learning.WEIGHTS)
    cure = f"; {pickles[0]} is a pickle, which is not read: save it as safetensors" if pickles else ""
    for key, missing in partly.items():
        if name or len(missing) < len(LAYOUTS[key].files):
            return InputError(f"SAE folder {folder} has no {missing[0]}, which the layout {key} needs{cure}")
    known = "; ".join(f"{key}: {' and '.join(layout.files)}" for key, layout in LAYOUTS.items())
    return InputError(f"{folder} holds no SAE of a known layout ({known}){cure}")


def pick(source: str, choices: list[str], layer: int | None, sae_id: str | None) -> str:
    """The choice of that name, or the only one at `layer`, or the only one at all. Otherwise InputError lists them."""
    if sae_id is not None:
        if sae_id not in choices:
            raise InputError(f"{source!r} has no SAE {sae_id!r}; it has {listed(choices)}")
        return sae_id
    if layer is None and len(choices) == 1:
        return choices[0]
    if layer is None:
        raise SeveralSAEs(f"{source!r} holds {len(choices)} SAEs: pass layer= or sae_id=, one of {listed(choices)}")
    fitting = [choice for choice in choices if _layer_of_id(choice) == layer]
    if len(fitting) != 1:
        raise InputError(
            f"{source!r} has {len(fitting)} SAEs at block {layer}: pass sae_id=, one of {listed(fitting or choices)}"
        )
    return fitting[0]


def _layer_of_id(sae_id: str) -> int | None:
    for part in reversed(sae_id.split("/")):
        if place := place_of_hook(part):
            return place[0]
        if found := re.search(r"layer[_.]?(\d+)", part) or re.search(r"(?:^|-)[Ll](\d+)[RMArma](?:[-_]|$)", part):
            return int(found[1])
    return None


def listed(ids: list[str]) -> str:
    """The first few of them, quoted."""
    return ", ".join(repr(i) for i in ids[:5]) + (", ..." if len(ids) > 5 else "")


def _names(name: str | None) -> list[str]:
    return list(LAYOUTS) if name is None else [name]


def _among(name: str | None) -> list[Layout]:
    return [LAYOUTS[key] for key in _names(name)]


def _joined(folder: str, file: str) -> str:
    return file if folder in ("", ".") else f"{folder}/{file}"
