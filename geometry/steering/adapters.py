"""Interventions as LoRA adapters: files that plain transformers and peft load, written without touching the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geometry.steering.operators import Ablate, Add
from geometry.steering.residual import columns, stream_of
from geometry.steering.vectors import PersonaVector, Subspace
from geometry.steering.weights import Removal, add_biases, check_add, check_added, check_removed, removal_of
from probes.errors import InputError
from probes.hooks import Operator
from probes.io import atomic_folder, write_json
from probes.models import Model, shared_copy, text_config, unwrap

#: What peft puts before the names of a network's modules.
PREFIX = "base_model.model"
Written = tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]  # tensors, settings of LoRA, notes


def write_adapter(
    model: Model,
    operator: Operator | PersonaVector | Subspace,
    folder: str | Path,
    *,
    layer: int | None = None,
    base: str | None = None,
) -> Path:
    """Write `Add` or an ablation as a LoRA adapter that `peft.PeftModel.from_pretrained(model, folder)` loads.

    An ablation (an `Ablate` over all blocks, or the direction itself, `layer` as in `orthogonalised`) gives every
    matrix W that writes to the residual stream the update B A with A = U W and B = -U^T: rank 1 for one direction. It
    equals `orthogonalised`. `Add` gives the last matrix of each of its blocks a LoRA of zeros with a bias
    (`lora_bias`), which equals the operator; it cannot be merged where the matrix has no bias of its own.

    `base` is what the file names as its base model (default: where the model was loaded from). With tied embeddings the
    adapter must not be merged, which would change the unembedding too: `intervention.json` beside it says so. Raises
    InputError as `orthogonalised` and `biased` do, and for a model that already carries an adapter.
    """
    if hasattr(model.hf, "peft_config"):
        raise InputError(
            f"{model.name} carries an adapter: merge it, save the model, and write this one for the result"
        )
    if isinstance(operator, PersonaVector | Subspace | Ablate):
        tensors, settings, notes = _ablation(model, removal_of(model, operator, layer))
    else:
        tensors, settings, notes = _addition(model, check_add(model, operator))
    source = base or getattr(unwrap(model.hf).config, "name_or_path", "") or model.name
    return _save(tensors, {**settings, "base_model_name_or_path": source}, {**notes, "model": model.name}, Path(folder))


def _ablation(model: Model, removal: Removal) -> Written:
    """The update -U^T (U W), for the token embeddings -U^T (U W - t) with the level t that stays; biases replaced."""
    check_removed(model, removal)
    stream, tensors = stream_of(model), {}
    _check_tables(model, stream.embeddings)
    for name, module in stream.modules.items():
        weights, bias = columns(module).detach().double(), getattr(module, "bias", None)
        basis, level = (part.to(weights) for part in removal)
        reading = basis @ weights
        if name == next(iter(stream.embeddings)):
            reading = reading - level[:, None]
        names = ("embedding_A", "embedding_B") if isinstance(module, nn.Embedding) else ("A.weight", "B.weight")
        tensors |= {f"{name}.lora_{end}": part for end, part in zip(names, (reading, -basis.T), strict=True)}
        if bias is not None:
            tensors[f"{name}.base_layer.bias"] = bias.detach().double() - basis.T @ (basis @ bias.detach().double())
    biased = any(name.endswith("bias") for name in tensors)
    rank = len(removal.basis)
    settings = _settings(stream.modules, rank) | ({"bias": "lora_only"} if biased else {})
    notes = {
        "operation": "ablate",
        "level": removal.level,
        "equals": "the direction ablated from the embedding and from what each attention and each MLP writes",
        "may_be_merged": not text_config(model.hf).tie_word_embeddings,
    }
    return _in_dtype(tensors, model), settings, notes


def _addition(model: Model, operator: Add) -> Written:
    """A LoRA of zeros whose second matrix has the step as its bias."""
    edited = shared_copy(model)
    add_biases(edited, operator)
    check_added(model, edited, operator)
    stream, tensors = stream_of(model), {}
    targets = {layer: stream.last(layer) for layer in operator.layers}
    for layer, (name, module) in targets.items():
        width, inputs = columns(module).shape
        tensors[f"{name}.lora_A.weight"] = torch.zeros(1, inputs)
        tensors[f"{name}.lora_B.weight"] = torch.zeros(width, 1)
        tensors[f"{name}.lora_B.bias"] = operator.steps[layer]
    notes = {
        "operation": "add",
        "layers": operator.layers,
        "equals": "the vector added to the outputs of these 0-based blocks at every token",
        "may_be_merged": all(getattr(module, "bias", None) is not None for _, module in targets.values()),
    }
    return _in_dtype(tensors, model), _settings(dict(targets.values()), 1) | {"lora_bias": True}, notes


def _check_tables(model: Model, embeddings: Mapping[str, nn.Embedding]) -> None:
    for name, table in embeddings.items():
        if type(table).forward is not nn.Embedding.forward and not hasattr(table, "embed_scale"):  # peft knows scales
            raise InputError(
                f"{model.name}: {name} is a {type(table).__name__}, which looks tokens up in its own way, and a LoRA "
                "would look them up in the plain one; take orthogonalised(model, ...)"
            )


def _settings(modules: dict[str, nn.Module], rank: int) -> dict[str, Any]:
    transposed = any(not isinstance(module, nn.Linear | nn.Embedding) for module in modules.values())
    return {"r": rank, "lora_alpha": rank, "target_modules": list(modules), "fan_in_fan_out": transposed}


def _in_dtype(tensors: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """In float32, or wider where the model is: half precision would lose what is to be removed."""
    dtype = torch.promote_types(model.dtype, torch.float32)
    return {f"{PREFIX}.{name}": value.detach().to("cpu", dtype).contiguous() for name, value in tensors.items()}


def _save(tensors: dict[str, Tensor], settings: dict[str, Any], notes: dict[str, Any], folder: Path) -> Path:
    from peft import LoraConfig
    from safetensors.torch import save_file

    config = LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **settings)
    with atomic_folder(folder) as temporary:
        config.save_pretrained(str(temporary))
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "intervention.json", notes)
    return folder
