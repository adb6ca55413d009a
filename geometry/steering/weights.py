"""Into weights: directional ablation and addition as edited weights, for programs that know no hooks."""

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geometry.steering.operators import Ablate, Add, coordinates, wide
from geometry.steering.residual import (
    check_plain_sum,
    columns,
    set_weights,
    some_tokens,
    stream_of,
)
from geometry.steering.vectors import Number, PersonaVector, Subspace
from probes.errors import InputError
from probes.hooks import Operator, capture_blocks
from probes.models import Model, check_layer, shared_copy, text_config, unwrap

#: Share of the norm of activations by which an edit may miss what it should do, by the model's dtype.
MISS = {torch.float64: 1e-6, torch.float32: 1e-5}


class Removal(NamedTuple):
    """What every write to the stream loses: `basis` [rank, d_model], orthonormal; `level` [rank] is what stays."""

    basis: Float[Tensor, "rank d_model"]
    level: Float[Tensor, " rank"]


def orthogonalised(
    model: Model, target: PersonaVector | Subspace | Ablate, *, layer: int | None = None, to: Number = 0.0
) -> Model:
    """A copy of the model, any adapter merged, that cannot write along a direction (arXiv 2406.11717, section 4.1).

    Every matrix that writes to the residual stream loses the direction, W' = W - U^T U W, its bias likewise: token and
    learned position embeddings, the last matrix of each attention and each MLP. `to` is the level that the projection
    keeps at every token: the token embeddings get it added. `layer` names the block whose direction is meant where a
    persona vector has several; an `Ablate` must cover all blocks with one direction and one level, at all positions.

    The logits equal those of the model with the direction ablated from the embedding and from what each attention and
    each MLP writes. That is more than `Ablate` at all blocks: within a block, an MLP behind attention no longer
    reads what attention wrote along the direction. Where attention and MLP read side by side (GPT-NeoX), and the
    embedding is ablated too, both are the same.

    Tied embeddings are untied: the unembedding keeps the weights it had, at the price of a second table. Raises
    InputError where a norm stands behind attention or MLP (Gemma 2 and 3, OLMo 2) or something else writes to the
    stream; tried on a few tokens before the copy is returned.
    """
    removal = removal_of(model, target, layer, to)
    edited = _merged_copy(model)
    check_plain_sum(edited)
    _untie(edited)
    remove(edited, removal)
    _check_removed(model, edited, removal)
    return replace(edited, name=f"{model.name}-orthogonalised")


def biased(model: Model, operator: Add) -> Model:
    """A copy of the model, any adapter merged, with a vector added to blocks' outputs by the bias of their last matrix.

    Equals `Add` with positions "all". GPT-2 has that bias; Llama gets it by the switch `mlp_bias` of its configuration,
    with zeros in all other places. Raises InputError where plain transformers would drop a saved bias (Qwen, Mistral:
    take `write_adapter`), where a norm or a factor stands behind the matrix, and for other positions.
    """
    edited = _merged_copy(model)
    check_add(edited, operator)
    if any(getattr(stream_of(edited).last(layer)[1], "bias", None) is None for layer in operator.layers):
        _switch_biases_on(edited)
    add_biases(edited, operator)
    check_added(model, edited, operator)
    return replace(edited, name=f"{model.name}-biased")


def removal_of(
    model: Model, target: PersonaVector | Subspace | Ablate, layer: int | None = None, to: Number = 0.0
) -> Removal:
    """The one direction or subspace, and level, that weights can hold; InputError where the target asks for more."""
    if isinstance(target, Ablate) and to != 0:
        raise InputError(f"to={to} beside an Ablate, which has a level of its own: give one of them")
    if not isinstance(target, PersonaVector) and layer is not None:
        raise InputError(f"layer={layer} beside a {type(target).__name__}, which has its own direction: leave it out")
    if isinstance(target, Ablate):
        removal = _one_of(model, target)
    elif isinstance(target, Subspace):
        removal = Removal(target.basis, torch.full((target.rank,), float(to)))
    else:
        if layer is None and len(target.layers) > 1:
            raise InputError(
                f"vector of blocks {target.layers}: one direction must do for all weights; name its block as layer="
            )
        unit = target.unit(next(iter(target.directions)) if layer is None else layer)
        removal = Removal(unit[None], torch.tensor([float(to)]))
    if removal.basis.shape[1] != model.d_model:
        raise InputError(f"direction of width {removal.basis.shape[1]}: {model.name} has {model.d_model}; give its own")
    return removal


def remove(edited: Model, removal: Removal) -> None:
    """Give all that writes to the stream new weights without the direction; the tensors before stay as they were."""
    stream = stream_of(edited)
    tokens = next(iter(stream.embeddings.values()))
    with torch.no_grad():
        for module in stream.modules.values():
            weights, bias = columns(module).double(), getattr(module, "bias", None)
            basis, level = (part.to(weights) for part in removal)
            kept = weights - basis.T @ (basis @ weights)
            if module is tokens:
                kept = kept + (basis.T @ level)[:, None]
            set_weights(module, kept, None if bias is None else bias.double() - basis.T @ (basis @ bias.double()))


def add_biases(edited: Model, operator: Add) -> None:
    """Give the last matrix of each of the operator's blocks a bias that is larger by the operator's step."""
    stream = stream_of(edited)
    for layer in operator.layers:
        _, module = stream.last(layer)
        bias, weight = getattr(module, "bias", None), columns(module).detach()
        step = operator.steps[layer].to(weight.device).double()
        set_weights(module, weight, step if bias is None else bias.detach().double() + step)


def check_add(model: Model, operator: Operator) -> Add:
    """Give the operator back where it is an `Add` at all positions of blocks that the model has, else refuse it."""
    _check_expressible(operator)
    if not isinstance(operator, Add):
        raise InputError("Ablate does not become a bias: take orthogonalised(model, operator)")
    for layer in operator.layers:
        check_layer(model, layer)
    check_plain_sum(model)
    return operator


def check_removed(model: Model, removal: Removal) -> None:
    """Raise InputError unless removing the direction from what writes to the stream removes it from the stream."""
    check_plain_sum(model)
    edited = shared_copy(model)
    remove(edited, removal)
    _check_removed(model, edited, removal)


def check_added(model: Model, edited: Model, operator: Add) -> None:
    """Raise InputError unless the edited model's blocks put out what the operator makes of the model's."""
    tokens, layers = some_tokens(model), operator.layers
    with model.intervene(operator):
        wanted = capture_blocks(model, tokens, layers).double()
    missed = (capture_blocks(edited, tokens, layers).double() - wanted).norm(dim=-1)
    if not bool((missed <= _tolerance(model) * wanted.norm(dim=-1)).all()):
        raise InputError(
            f"{model.name}: a bias on the last matrix of {type(model.blocks[layers[0]]).__name__} does not reach the "
            "block's output as it is (a factor or a second path behind it?); keep the operator"
        )


def _check_removed(model: Model, edited: Model, removal: Removal) -> None:
    tokens, layers = some_tokens(model), list(range(model.n_layers))
    before, after = (wide(capture_blocks(one, tokens, layers)) for one in (model, edited))
    level = removal.level.to(after)
    off, was = (
        (coordinates(values.flatten(0, 1), removal.basis.to(values.device)) - level).norm(dim=-1)
        for values in (after, before)
    )
    limit = _tolerance(model) * after.flatten(0, 1).norm(dim=-1) + 1e-3 * was
    if not bool((off <= limit).all()):
        raise InputError(
            f"{model.name}: {type(model.blocks[0]).__name__} still writes along the direction (or its embedding is "
            "scaled, with a level other than 0), so more than the known matrices write to the stream; keep the operator"
        )


def _check_expressible(operator: Operator) -> None:
    name = type(operator).__name__
    if not isinstance(operator, Add | Ablate):
        raise InputError(
            f"{name}: what it does at a token depends on the token, which no edit of weights can do; give Add or "
            f"Ablate, or keep {name} as an operator"
        )
    if operator.positions != "all":
        raise InputError(
            f"{name} at positions {operator.positions!r}: weights act at every token; make it with positions='all'"
        )


def _tolerance(model: Model) -> float:
    return MISS.get(model.dtype, 8e-3)


def _one_of(model: Model, operator: Ablate) -> Removal:
    """The basis and level that an `Ablate` has at every block, where that is one and the same."""
    _check_expressible(operator)
    every = tuple(range(model.n_layers))
    if operator.layers != every:
        raise InputError(
            f"Ablate at blocks {operator.layers}: weights ablate at all {model.n_layers} blocks; make it of "
            f"vector.spread(layer, range({model.n_layers})), or of a Subspace with layers=range({model.n_layers})"
        )
    frames = [operator.frames[layer] for layer in every]
    if any(not torch.equal(a, b) for frame in frames for a, b in zip(frame, frames[0], strict=True)):
        raise InputError("Ablate with another direction or level at each block: weights hold one; use vector.spread")
    return Removal(frames[0].basis, frames[0].low)


def _merged_copy(model: Model) -> Model:
    hf: Any = copy.deepcopy(model.hf)
    return replace(model, hf=hf.merge_and_unload() if hasattr(hf, "merge_and_unload") else hf)


def _untie(edited: Model) -> None:
    """Let the unembedding go its own way: tables replaced from here on are the embedding's alone."""
    network = unwrap(edited.hf)
    for config in (network.config, text_config(network)):
        config.tie_word_embeddings = False
    network.all_tied_weights_keys = {}


def _switch_biases_on(edited: Model) -> None:
    """Turn on the biases that the configuration knows, all zero; InputError where there is no such switch."""
    network, config = unwrap(edited.hf), text_config(edited.hf)
    if hasattr(config, "mlp_bias"):
        config.mlp_bias = True
    with torch.device("meta"):
        fresh = type(network)(network.config)
    for name, empty in fresh.named_parameters():
        path, _, kind = name.rpartition(".")
        module = network.get_submodule(path)
        if kind == "bias" and getattr(module, "bias", None) is None:
            module.bias = nn.Parameter(module.weight.new_zeros(empty.shape))
    _, last = stream_of(edited).last(0)
    if getattr(last, "bias", None) is None:
        raise InputError(
            f"{edited.name}: {type(network).__name__} has no place for a bias on its last matrix, and a saved one "
            "would be dropped on loading; take write_adapter(model, operator, folder)"
        )
