"""A base model and its fine-tunes over one set of weights: what is added to it is all that a fine-tune costs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from probes.models.load import adapted_name, attach, load_model
from probes.models.model import Model
from probes.models.sharing import shared_modules


def shared_copy(model: Model) -> Model:
    """The same network in modules of its own that hold the same tensors: replace those, write into none."""
    return replace(model, hf=shared_modules(model.hf))


def with_adapter(base: Model, adapter: str | Path, *, name: str | None = None) -> Model:
    """The base's fine-tune: the adapter in modules of its own, over the weights that the base holds.

    Both can be used in any order, each with its own hooks, and there is no switch to forget. They stay one in what
    they share: training the base's weights, or merging the adapter into them, changes both. Raises InputError for an
    adapter that does not fit.
    """
    wanted = [(weight, weight.requires_grad) for weight in base.hf.parameters()]
    try:
        hf = attach(shared_modules(base.hf), adapter)
    finally:
        for weight, grad in wanted:  # peft freezes what it puts an adapter on
            weight.requires_grad_(grad)
    return replace(base, hf=hf, name=name or adapted_name(base.name, adapter))


def load_pair(
    source: str | Path | nn.Module, adapter: str | Path, *, tuned_name: str | None = None, **options: Any
) -> tuple[Model, Model]:
    """Load a base and its fine-tune with the weights held once: `load_model(source, **options)` and `with_adapter`."""
    base = load_model(source, **options)
    return base, with_adapter(base, adapter, name=tuned_name)
