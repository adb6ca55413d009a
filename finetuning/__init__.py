"""Changing a model: supervised stages, safeguards, re-alignment."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetuning.loop import Schedule, Trained, finetune
    from finetuning.lora import LoRA, save_adapter
    from finetuning.realign import DoseStep, realign
    from finetuning.safeguards import KLToBase, Safeguard

_HOME = {
    "DoseStep": "finetuning.realign",
    "KLToBase": "finetuning.safeguards.kl",
    "LoRA": "finetuning.lora",
    "Safeguard": "finetuning.safeguards",
    "Schedule": "finetuning.loop",
    "Trained": "finetuning.loop",
    "finetune": "finetuning.loop",
    "realign": "finetuning.realign",
    "save_adapter": "finetuning.lora",
}
__all__ = ["DoseStep", "KLToBase", "LoRA", "Safeguard", "Schedule", "Trained", "finetune", "realign", "save_adapter"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
