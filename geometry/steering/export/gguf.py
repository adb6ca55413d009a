"""Persona vectors as llama.cpp control vectors: GGUF tensors `direction.{block}`, F32, blocks 1 and up.

llama.cpp adds `direction.N` to the output of its 0-based block N, which is this project's own convention, at all
positions; it cannot steer block 0, and refuses a file that tries. Its loader reads no metadata, so the strength goes
into the tensors: scale 1 (`--control-vector FILE`) is the recommended dose, `--control-vector-scaled FILE S` a multiple
of it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from geometry.steering.export.safetensors import CONVENTION, HOOK
from geometry.steering.operators import Unit, added_step
from geometry.steering.vectors import Number, PersonaVector
from probes.errors import InputError
from probes.io import atomic_file

ARCHITECTURE = "controlvector"
_OURS = "persona_geometry"


def write_gguf(
    vector: PersonaVector,
    path: str | Path,
    *,
    strength: Number = 1.0,
    unit: Unit = "raw",
    model_hint: str | None = None,
) -> Path:
    """Write `vector` times `strength` (in the units of `Add`) as a control vector for llama.cpp.

    `model_hint` is the GGUF architecture name that some readers ask for (default: the vector's model). The metadata
    also names the layer convention. Raises InputError where block 0 is in the vector: leave it out with `.only(...)`.
    """
    gguf = _library()
    if 0 in vector.layers:
        rest = ", ".join(str(layer) for layer in vector.layers if layer)
        raise InputError(f"{path}: llama.cpp cannot steer block 0; write vector.only({rest or '1'}) instead")
    depth = int(vector.meta.get("n_layers", max(vector.layers) + 1))
    path = Path(path)
    with atomic_file(path) as temporary:
        writer = gguf.GGUFWriter(str(temporary), ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint or vector.model or "unknown")
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", depth - 1)
        for name, text in _notes(vector, strength, unit).items():
            writer.add_string(f"{_OURS}.{name}", text)
        for layer in vector.layers:
            step = added_step(vector, layer, strength, unit)
            writer.add_tensor(f"direction.{layer}", step.cpu().numpy().astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def read_gguf(path: str | Path) -> PersonaVector:
    """Read a control vector, ours or another program's; its directions hold the strength already.

    Raises InputError for a missing or damaged file, another architecture, a tensor that llama.cpp would refuse.
    """
    gguf = _library()
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give the path of a GGUF control vector")
    try:
        reader = gguf.GGUFReader(str(path))
    except (ValueError, IndexError, OSError) as error:
        raise InputError(f"{path}: no readable GGUF file ({str(error)[:80]}); write it again") from None
    if _text(reader, "general.architecture") != ARCHITECTURE:
        raise InputError(f"{path}: architecture {_text(reader, 'general.architecture')!r} is no control vector")
    directions = {_block(tensor.name, path): torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    names = ("template_hash", "scope", "method")
    known: dict[str, Any] = {name: _text(reader, f"{_OURS}.{name}") for name in names}
    model = _text(reader, f"{_OURS}.model") or _text(reader, f"{ARCHITECTURE}.model_hint")
    field = reader.get_field(f"{ARCHITECTURE}.layer_count")
    meta = {} if field is None else {"n_layers": int(field.contents()) + 1}
    return PersonaVector(directions, model=model, meta=meta, **known)


def _notes(vector: PersonaVector, strength: Number, unit: str) -> dict[str, str]:
    notes = {
        "index_convention": CONVENTION,
        "hook": HOOK,
        "model": vector.model,
        "template_hash": vector.template_hash,
        "scope": vector.scope,
        "method": vector.method,
        "strength": f"{strength:g} {unit}",
    }
    return {name: text for name, text in notes.items() if text}


def _block(name: str, path: str | Path) -> int:
    head, _, tail = name.partition(".")
    if head != "direction" or not tail.isdigit() or int(tail) < 1:
        raise InputError(f"{path}: tensor {name!r} in a control vector; llama.cpp knows direction.1 and up")
    return int(tail)


def _text(reader: Any, name: str) -> str:
    field = reader.get_field(name)
    return "" if field is None else str(field.contents())


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise InputError("the package gguf is missing: pip install 'persona-geometry[llama]'") from None
    return gguf
