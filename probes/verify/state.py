"""Checks of what a model is, before it reads anything: its weights, the hooks on it, its adapter."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from probes.hooks import intervene
from probes.models import Model, unwrap
from probes.verify.bench import Bench, NotHere, activations_of, error
from probes.verify.steering import Push


def broken_weights(bench: Bench) -> float:
    """Parameters with a value that is not finite, and buffers with NaN (masks may well hold infinity)."""
    parameters, buffers = (_floats(values) for values in (bench.model.hf.parameters(), bench.model.hf.buffers()))
    broken = [*(~torch.isfinite(value).all() for value in parameters), *(value.isnan().any() for value in buffers)]
    return float(sum(map(bool, broken)))


def missing_embeddings(bench: Bench) -> float:
    """Tokens of the tokenizer that the embedding has no row for."""
    tokenizer, rows = bench.model.tokenizer, len(unwrap(bench.model.hf).get_input_embeddings().weight)
    return float(max(0, max(tokenizer.get_vocab().values()) + 1 - rows))


def hooks_of_others(bench: Bench) -> float:
    """Hooks that stand on the model already, but for those that transformers leaves behind, which only read."""
    return float(
        sum(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in _hooks(bench.model))
    )


def hooks_left(bench: Bench) -> float:
    """Hooks that are there after reading and editing, and were not before."""
    before = [id(hook) for hook in _hooks(bench.model)]
    with intervene(bench.model, Push.nowhere(bench)):
        activations_of(bench.model, bench.rows[:1])
    after = [id(hook) for hook in _hooks(bench.model)]
    return float(abs(len(after) - len(before)) + len(set(before) - set(after)))


def rows_without_adapter(bench: Bench) -> float:
    """Conversations on which switching the adapter off changes nothing at all."""
    off, lengths = _switched_off(bench), bench.rendered.attention_mask.sum(-1).tolist()
    parts = zip(bench.left.split(lengths, dim=1), off.split(lengths, dim=1), strict=True)
    return float(sum(torch.equal(on, without) for on, without in parts))


def adapter_left_over(bench: Bench) -> float:
    """Error of the model with its adapter switched off, against its base."""
    if bench.base is None:
        raise NotHere
    return error(_switched_off(bench), bench.base)


def _floats(values: Iterable[Tensor]) -> list[Tensor]:
    return [value for value in values if value.is_floating_point() and value.device.type != "meta"]


def _switched_off(bench: Bench) -> Tensor:
    disable = getattr(bench.model.hf, "disable_adapter", None)
    if disable is None:
        raise NotHere
    with disable():
        return activations_of(bench.model, bench.rows)


def _hooks(model: Model) -> Iterator[Any]:
    for module in model.hf.modules():
        yield from (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
