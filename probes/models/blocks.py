"""Where the decoder blocks are: one finder for every architecture, with a path by hand where it cannot tell."""

from typing import Any, cast

from torch import nn

from probes.errors import InputError


def unwrap(hf: nn.Module) -> Any:
    """Return the `PreTrainedModel` inside a PEFT wrapper, or `hf` itself."""
    return cast(Any, hf).get_base_model() if hasattr(hf, "get_base_model") else hf


def text_config(hf: nn.Module) -> Any:
    """Return the configuration of the language part of a model."""
    return unwrap(hf).config.get_text_config()


def find_blocks(hf: nn.Module, path: str | None = None) -> nn.ModuleList:
    """Find the decoder blocks: the one module list as long as the configuration's depth, or the one named `path`.

    Lists inside such a list (experts) do not count. Raises InputError where none or several are left.
    """
    base, depth = unwrap(hf), text_config(hf).num_hidden_layers
    lists = {name: module for name, module in base.named_modules() if isinstance(module, nn.ModuleList)}
    if path is not None:
        if path not in lists:
            raise InputError(f"blocks {path!r} is no module list of {type(base).__name__}; it has {sorted(lists)}")
        return lists[path]
    found = {name: module for name, module in lists.items() if len(module) == depth}
    found = {name: module for name, module in found.items() if not any(_inside(name, other) for other in found)}
    if len(found) != 1:
        raise InputError(
            f"{type(base).__name__}: {len(found)} module lists of {depth} blocks {sorted(found)}; name one as blocks="
        )
    return next(iter(found.values()))


def _inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")
