"""A training half done, as one safetensors file: weights, Adam's moments, counters, and where the rows stand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probes.errors import InputError
from probes.io import atomic_file

CHECKPOINT = "checkpoint.safetensors"
FORMAT = "persona-geometry/sae-checkpoint/1"
_COUNTS = ("n_training_steps", "n_training_samples", "n_frac_active_samples")
_TENSORS = ("act_freq_scores", "n_forward_passes_since_fired")


def write_checkpoint(
    folder: Path, trainer: Any, about: Mapping[str, Any], *, rest: Float[Tensor, "sample d_model"] | None
) -> None:
    """Write everything that the next step depends on, and `about` as JSON, in the place of an older checkpoint.

    `rest` are rows that had been read, but not trained on, when the present pass began.

    Raises InputError where the disk takes no more; the older checkpoint is whole then.
    """
    tensors = {f"sae.{name}": value for name, value in trainer.sae.state_dict().items()}
    tensors |= {f"trainer.{name}": getattr(trainer, name) for name in _TENSORS}
    for index, moments in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    state = {
        "format": FORMAT,
        "about": dict(about),
        "counts": {name: getattr(trainer, name) for name in _COUNTS},
        "lr": [group["lr"] for group in trainer.optimizer.param_groups],
        "lr_scheduler": trainer.lr_scheduler.state_dict(),
        "coefficients": {name: one.state_dict() for name, one in trainer.coefficient_schedulers.items()},
    }
    if rest is not None:
        tensors["rows.rest"] = rest
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    try:
        with atomic_file(folder / CHECKPOINT) as temporary:
            save_file(plain, temporary, metadata={"persona-geometry": json.dumps(state, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{folder}: the checkpoint cannot be written ({error}); make room, and the same command goes on from the "
            "last one"
        ) from None


def read_about(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint was told about itself; None where there is none. InputError where it is damaged."""
    return _state(folder / CHECKPOINT)["about"] if (folder / CHECKPOINT).is_file() else None


def read_checkpoint(folder: Path, trainer: Any) -> Float[Tensor, "sample d_model"] | None:
    """Put a fresh trainer of the same recipe where the one was that wrote the checkpoint, to the last bit.

    Returns the rows that were left over when its pass began.
    """
    path = folder / CHECKPOINT
    state = _state(path)
    with safe_open(path, "pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in _COUNTS:
        setattr(trainer, name, state["counts"][name])
    with torch.no_grad():
        for name, value in trainer.sae.state_dict().items():
            value.copy_(tensors[f"sae.{name}"])
        for name in _TENSORS:
            getattr(trainer, name).copy_(tensors[f"trainer.{name}"])
    _restore_adam(trainer.optimizer, tensors, state["lr"])
    trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])
    for name, told in state["coefficients"].items():
        trainer.coefficient_schedulers[name].load_state_dict(told)
    return tensors.get("rows.rest")


def _restore_adam(optimizer: Any, tensors: Mapping[str, Tensor], rates: list[float]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, index, part = name.split(".")
            moments.setdefault(int(index), {})[part] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _state(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})["persona-geometry"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: no checkpoint of a training ({error}); remove it to start anew") from None
    if state.get("format") != FORMAT:
        raise InputError(f"{path}: of the format {state.get('format')}, not {FORMAT}; remove it to start anew")
    return state
