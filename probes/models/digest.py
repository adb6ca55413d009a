"""What tells models apart in a file: a hash of the configuration, and one of a sample of the weights."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

SKIPPED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


def fingerprint(name: str, config: Any) -> str:
    """Hash of the name and the configuration without paths and dtype: 16 hexadecimal digits."""
    facts = {key: str(value) for key, value in config.to_dict().items() if key not in SKIPPED}
    return hashlib.sha256(json.dumps([name, facts], sort_keys=True).encode()).hexdigest()[:16]


def weights_digest(hf: nn.Module) -> str:
    """Hash of 64 or so numbers of every tensor, as float32: 16 hexadecimal digits.

    Packed weights (quantised) count as the numbers that they are packed in, weights that accelerate keeps on disk or
    beside the device as themselves.
    """
    digest = hashlib.sha256()
    for name, value in sorted(_tensors(hf), key=lambda pair: pair[0]):
        flat = value.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)].to("cpu", torch.float32).contiguous()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _tensors(hf: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What `state_dict` would hold, without asking for it: bitsandbytes answers by packing its weights anew."""
    for prefix, module in hf.named_modules(remove_duplicate=False):
        lasting = {name: value for name, value in module._buffers.items() if _lasts(module, name)}
        for name, value in {**module._parameters, **lasting}.items():
            if value is not None:
                yield f"{prefix}.{name}".lstrip("."), _fetched(module, name) if value.is_meta else value


def _lasts(module: nn.Module, name: str) -> bool:
    return name not in module._non_persistent_buffers_set


def _fetched(module: nn.Module, name: str) -> Tensor:
    """A tensor that accelerate loads only while its module runs."""
    hook: Any = module._hf_hook
    maps = (getattr(one, "weights_map", None) for one in getattr(hook, "hooks", [hook]))
    return next(found[name] for found in maps if found is not None)
