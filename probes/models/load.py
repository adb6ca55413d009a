"""Loading models from anywhere: a hub id, a folder, an adapter, a quantised one, a live module, TransformerLens's."""

import copy
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.activations import Site
from probes.errors import InputError
from probes.models.blocks import find_blocks, unwrap
from probes.models.lens import held_by
from probes.models.model import Model
from probes.sites import Point

Quantisation = Literal["8bit", "4bit"]


def load_model(
    source: str | Path | nn.Module,
    *,
    adapter: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    device: str | Mapping[str, Any] = "cpu",
    dtype: torch.dtype | None = None,
    quantisation: Quantisation | None = None,
    name: str | None = None,
    blocks: str | None = None,
    sites: Mapping[Site, Point] | None = None,
    merge: bool = False,
) -> Model:
    """Load a model: a hub id, a folder, a PEFT adapter over either (alone it names its base), or a live module.

    Args:
        source: A live module is used as and where it is, with its tokenizer (with `adapter`, a copy of it). It may be
            TransformerLens's: the hooks of a `TransformerBridge` or `HookedTransformer` stay in force, and edits act in
            the bridge's own calls too (in the other's they do not). A `HookedTransformer` made with folded norms has a
            centred residual stream where its norms subtract the mean (GPT-2, GPT-NeoX): vectors for it are not those
            for its source.
        adapter: Folder or hub id of an adapter for `source`.
        tokenizer: Taken from `source` unless given.
        device: A device, or "auto" or a device map of accelerate's to spread the model over several.
        dtype: Defaults to float32 on the CPU and to the stored dtype elsewhere.
        quantisation: Packs the weights with bitsandbytes: "8bit", or "4bit" (NF4).
        name: What results call the model.
        blocks: Name of the module list of the decoder blocks, where the architecture hides it.
        sites: Modules inside a block at which its sites are, where running a block does not tell.
        merge: Add the adapter's change to the weights: the model runs a good deal faster, but the adapter cannot be
            switched off any more. Quantised weights stay as they are.

    Returns:
        A model in evaluation mode; a live module keeps its own.

    Raises:
        InputError: A missing path or package, a live module without tokenizer, unknown blocks, an adapter that does
            not fit.
    """
    if adapter is None and not isinstance(source, nn.Module) and _is_adapter(source):
        source, adapter = _base_of(source), source
    held = held_by(source) if isinstance(source, nn.Module) else None
    if held and adapter is not None:
        raise InputError(f"adapter {adapter} over {held.name}: load it over the transformers model and take .bridge()")
    if held and tokenizer is None:
        tokenizer = held.tokenizer
    if isinstance(source, nn.Module):
        hf = _live(held.hf if held else source, device, dtype, copied=adapter is not None)
        if quantisation:
            raise InputError(f"live {type(source).__name__}: quantisation={quantisation!r} is for loading")
    else:
        hf = _load(source, device, dtype, quantisation)
    if adapter is not None:
        hf = attach(hf, adapter)
        if merge and not getattr(unwrap(hf), "is_quantized", False):
            hf = cast(Any, hf).merge_and_unload()
    tok = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else load_tokenizer(tokenizer or source)
    model = Model(hf, tok, name or (held.name if held else _name(source, adapter)), blocks, sites or {})
    find_blocks(model.hf, blocks)
    return model


def attach(hf: nn.Module, adapter: str | Path) -> nn.Module:
    """Put an adapter into the modules of `hf`, for evaluation. Raises InputError for one that does not fit."""
    from peft import PeftModel

    _check_path(adapter)
    if hasattr(hf, "get_base_model"):
        raise InputError(f"adapter {adapter}: the model has one already; give its base, or merge that one first")
    if any(getattr(getattr(w, "quant_state", None), "packing_format_for_cpu", False) for w in hf.parameters()):
        raise InputError(f"adapter {adapter}: bitsandbytes has packed the weights for this CPU; attach before any pass")
    if any(weight.is_meta for weight in hf.parameters()):
        raise InputError(f"adapter {adapter}: some weights are kept off the device; spread it without offloading")
    try:
        tuned = PeftModel.from_pretrained(cast(Any, hf), str(adapter)).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"adapter {adapter}: does not fit or cannot be loaded ({_first_line(error)})") from error
    if tuned.active_peft_config.is_prompt_learning:
        raise InputError(f"adapter {adapter}: prompt tuning adds tokens, not weights; give one such as LoRA")
    return tuned


def adapted_name(name: str, adapter: str | Path) -> str:
    """What a model called `name` is called with the adapter."""
    return f"{name}+{Path(adapter).name}"


def _load(
    source: str | Path, device: str | Mapping[str, Any], dtype: torch.dtype | None, quantisation: Quantisation | None
) -> nn.Module:
    on_cpu = isinstance(device, str) and device != "auto" and torch.device(device).type == "cpu"
    options: dict[str, Any] = {"dtype": dtype or (torch.float32 if on_cpu else "auto")}
    if quantisation:
        options["quantization_config"] = _packing(quantisation, dtype)
    if quantisation or not on_cpu:
        options["device_map"] = {"": device} if isinstance(device, str) and device != "auto" else device
    _check_path(source)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(source), **options)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"model {source}: cannot be loaded ({_first_line(error)}); give a hub id or a folder"
        ) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(f"model {source} is an adapter; give its base, and this as adapter=")
    return model.eval()


def _packing(quantisation: str, dtype: torch.dtype | None) -> BitsAndBytesConfig:
    if quantisation not in ("8bit", "4bit"):
        raise InputError(f'quantisation {quantisation!r}: give "8bit" or "4bit"')
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"quantisation {quantisation!r} needs another package: pip install bitsandbytes")
    if quantisation == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype or torch.bfloat16
    )


def _live(module: nn.Module, device: str | Mapping[str, Any], dtype: torch.dtype | None, *, copied: bool) -> nn.Module:
    own = next(module.parameters())
    if dtype not in (None, own.dtype) or device not in ("cpu", str(own.device), own.device.type):
        raise InputError(f"live module on {own.device} in {own.dtype}: move it yourself to {device}, {dtype}")
    return copy.deepcopy(module) if copied else module


def load_tokenizer(source: str | Path | nn.Module) -> PreTrainedTokenizerBase:
    """Load a tokenizer alone, by hub id or folder. Raises InputError where it cannot be loaded, and for a module."""
    if isinstance(source, nn.Module):
        raise InputError(f"live {type(source).__name__} without tokenizer: give it as tokenizer=")
    try:
        return AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer {source}: cannot be loaded ({_first_line(error)}); give tokenizer=") from error


def _check_path(source: str | Path) -> None:
    path = Path(source).expanduser()
    local = isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1
    if local and not path.is_dir():
        raise InputError(f"{source}: no such folder; give the folder of a saved model or a hub id")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _name(source: str | Path | nn.Module, adapter: str | Path | None) -> str:
    if isinstance(source, nn.Module):
        base = getattr(unwrap(source).config, "name_or_path", "") or type(unwrap(source)).__name__
    else:
        base = str(source)
    name = Path(base).expanduser().name if Path(base).expanduser().is_dir() else base
    return name if adapter is None else adapted_name(name, adapter)


def _is_adapter(source: str | Path) -> bool:
    folder = Path(source).expanduser()
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _base_of(adapter: str | Path) -> str:
    base = json.loads((Path(adapter).expanduser() / "adapter_config.json").read_text()).get("base_model_name_or_path")
    if not base:
        raise InputError(f"adapter {adapter}: it does not name its base; give the base, and this as adapter=")
    return str(base)
