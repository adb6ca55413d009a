"""Copies of a network: modules of their own over the same tensors, without the hooks of the original."""

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def shared_modules(network: Network) -> Network:
    """The same network in modules of its own that hold the same tensors: replace those, write into none."""
    kept = {id(part): part for part in _weights(network)}
    return without_hooks(copy.deepcopy(network, kept))


def without_hooks(network: Network) -> Network:
    """The network itself, rid of every forward hook but those through which transformers returns hidden states."""
    for module in network.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not str(getattr(hook, "__module__", "")).startswith("transformers."):
                    del hooks[key]
    return network


def _weights(network: nn.Module) -> Iterator[Any]:
    """All that holds weights: tensors, the 8-bit state of bitsandbytes, what accelerate has put elsewhere."""
    yield from network.parameters()
    yield from network.buffers()
    for module in network.modules():
        state, hook = vars(module).get("state"), vars(module).get("_hf_hook")
        if type(state).__module__.startswith("bitsandbytes"):
            yield state
        for one in getattr(hook, "hooks", [hook]):
            yield from (part for part in (getattr(one, "weights_map", None),) if part is not None)
            yield from (part for part in (getattr(one, "tied_params_map", None),) if part is not None)
