"""Tensors out of a `.pt` file of torch's zip kind: the one place that calls `torch.load`, which there runs no code."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probes.errors import InputError
from saes.formats.published import Weights, damaged


def read_tensors(file: Path) -> Weights:
    """Read a dictionary of tensors. Raises InputError where the file is a plain pickle or holds anything else."""
    if not zipfile.is_zipfile(file):
        raise _refused(file, "it is no zip of torch's, or cut short")
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file can make of it
        if type(error).__name__ == "UnpicklingError":
            raise _refused(file, "it holds more than tensors") from error
        raise damaged(file, error) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise _refused(file, "it holds more than named tensors")
    return {str(name): value.detach() for name, value in found.items()}


def _refused(file: Path, why: str) -> InputError:
    return InputError(f"{file} is a pickle, which is not read ({why}): fetch it again, or save it as safetensors")
