"""Export: persona vectors as files that other programs load, one module per format, both ways."""

from pathlib import Path
from typing import Any

from geometry.steering.vectors import PersonaVector
from probes.errors import InputError


def export(vector: PersonaVector, path: str | Path, **settings: Any) -> Path:
    """Write a vector in the format that the path's suffix names: `.safetensors` or `.gguf` (llama.cpp).

    `settings` go to the writer: see `write_safetensors` and `write_gguf`.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from geometry.steering.export.safetensors import write_safetensors

        return write_safetensors(vector, path, **settings)
    if path.suffix == ".gguf":
        from geometry.steering.export.gguf import write_gguf

        return write_gguf(vector, path, **settings)
    raise InputError(f"{path}: no format for the suffix {path.suffix!r}; use .safetensors or .gguf")
