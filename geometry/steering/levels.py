"""Levels: where two models stand on a direction, block by block, the scale that projection edits are dosed on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geometry.steering.vectors import Number, PersonaVector
from probes.activations import Activations, Pool
from probes.capture import capture
from probes.conversations import Conversation
from probes.errors import InputError
from probes.models import Model, check_same_family


@dataclass(frozen=True)
class Levels:
    """Mean projections per block: `reference` of the base model, and `shift`, the tuned model's minus the base's."""

    reference: Mapping[int, Number]
    shift: Mapping[int, Number]

    def at(self, layer: int, dose: Number) -> float:
        """The level `reference + dose x shift` of one block: dose 0 is the base model, 1 the tuned one."""
        for name in ("reference", "shift"):
            if layer not in getattr(self, name):
                raise InputError(f"levels: no {name} for block {layer}; measure it with projection_levels(layers=...)")
        return float(self.reference[layer]) + dose * float(self.shift[layer])


def projection_levels(
    base: Model,
    tuned: Model,
    conversations: Sequence[Conversation],
    vector: PersonaVector,
    *,
    tuned_conversations: Sequence[Conversation] | None = None,
    pool: Pool = "response_mean",
    batch_size: int = 32,
) -> Levels:
    """Measure both models' mean projection on `vector`, at every block it has, in float64.

    The tuned model reads the same text unless `tuned_conversations` are given, for instance its own answers to the same
    prompts. Take the pool that matches the positions to be edited.
    """
    check_same_family(base, tuned)
    pairs = ((base, conversations), (tuned, conversations if tuned_conversations is None else tuned_conversations))
    means = [
        _means(capture(model, rows, layers=vector.layers, pool=pool, batch_size=batch_size), vector)
        for model, rows in pairs
    ]
    return Levels(means[0], {layer: means[1][layer] - means[0][layer] for layer in vector.layers})


def projection_quantile(activations: Activations, vector: PersonaVector, quantile: Number) -> dict[int, float]:
    """Quantile of the projections per block: the threshold of `Cap` and `Floor` (arXiv 2601.10387 takes .25)."""
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile {quantile}: give a number between 0 and 1")
    both = [layer for layer in vector.layers if layer in activations.layers]
    if not both or not len(activations):
        raise InputError(f"no activations at the vector's blocks {vector.layers}: capture those blocks")
    return {layer: float(torch.quantile(_lengths(activations, vector, layer), quantile)) for layer in both}


def _means(activations: Activations, vector: PersonaVector) -> dict[int, float]:
    return {layer: float(_lengths(activations, vector, layer).mean()) for layer in vector.layers}


def _lengths(activations: Activations, vector: PersonaVector, layer: int) -> Tensor:
    return vector.project(activations.at(layer).double(), layer)
