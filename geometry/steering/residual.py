"""The residual stream of a network: which modules write to it, and whether they simply add up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from probes.conversations import Rendered
from probes.errors import InputError
from probes.hooks import capture_blocks
from probes.models import Model, shared_copy, unwrap

#: Names under which architectures keep the last matrix of attention or MLP.
OUTPUTS = {"attn_out", "c_proj", "dense", "dense_4h_to_h", "down_proj", "fc2", "fc_out", "o_proj", "out_proj", "w2"}
#: Factor that makes a component's write stand out against the rest of the stream.
LOUD = 16
#: How far doubling a component may miss doubling what it adds; behind a norm it misses by all of it.
MISS = 0.1


@dataclass(frozen=True)
class Stream:
    """The modules that write to the residual stream, by their names in the network.

    `embeddings` starts with that of the tokens; learned positions follow. `blocks` holds, for each block, the last
    matrices of its attention and of its MLP, in this order.
    """

    embeddings: Mapping[str, nn.Embedding]
    blocks: tuple[Mapping[str, nn.Module], ...]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All of them."""
        return dict(self.embeddings) | {name: module for block in self.blocks for name, module in block.items()}

    def last(self, layer: int) -> tuple[str, nn.Module]:
        """Name and module of what a block writes last: its MLP's matrix."""
        return list(self.blocks[layer].items())[-1]


def stream_of(model: Model) -> Stream:
    """Find what writes to a model's residual stream, by names and widths: `check_plain_sum` says whether that is all.

    Raises InputError where a block has no such matrix, or where it is not a plain floating-point one (quantised).
    """
    network = unwrap(model.hf)
    names: dict[nn.Module, str] = {module: name for name, module in network.named_modules()}
    home = next(module for module in network.modules() if any(part is model.blocks for part in module.children()))
    tables = [network.get_input_embeddings(), *home.children()]
    embeddings = [t for t in tables if isinstance(t, nn.Embedding) and t.embedding_dim == model.d_model]
    blocks = tuple(
        {names[module]: module for module in block.modules() if _is_output(module, names[module], model.d_model)}
        for block in model.blocks
    )
    for layer, block in enumerate(blocks):
        if not block:
            raise InputError(
                f"{model.name}: block {layer} ({type(model.blocks[layer]).__name__}) has no matrix named as one that "
                f"writes to the residual stream ({', '.join(sorted(OUTPUTS))}); keep the operator"
            )
    stream = Stream({names[table]: table for table in embeddings}, blocks)
    for name, module in stream.modules.items():
        if not module.weight.is_floating_point() or module.weight.ndim != 2:  # pyright: ignore
            raise InputError(f"{model.name}: the weights of {name} are packed (quantised?); load the model unquantised")
    return stream


def columns(module: nn.Module) -> Float[Tensor, "d_model inputs"]:
    """The module's weights with what they write in columns: one per input, or per row of an embedding."""
    weight: Any = module.weight
    return weight if isinstance(module, nn.Linear) else weight.T


def set_weights(module: Any, written: Float[Tensor, "d_model inputs"], bias: Float[Tensor, " d_model"] | None) -> None:
    """Give the module new weights, in its own orientation and dtype; the tensors it had stay as they were."""
    old = module.weight
    new = written if isinstance(module, nn.Linear) else written.T
    module.weight = nn.Parameter(new.to(old.dtype).contiguous(), requires_grad=old.requires_grad)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(old.device, old.dtype), requires_grad=old.requires_grad)


def some_tokens(model: Model) -> Rendered:
    """Eight tokens from all over the vocabulary, to try a network on."""
    size = unwrap(model.hf).get_input_embeddings().num_embeddings
    ids = torch.linspace(0, size - 1, 8).long()[None]
    every = torch.ones_like(ids)
    last = torch.arange(8)[None] == 7
    return Rendered(ids, every, every.bool(), torch.zeros_like(last), last, "")


def check_plain_sum(model: Model) -> None:
    """Raise InputError unless what attention and MLP write reaches the stream as a multiple of itself.

    Tried, not guessed: a component that writes twice as much, all others of its block silent, must add twice as much.
    Behind a norm (Gemma 2 and 3, OLMo 2) it adds the same. One block of each kind is tried.
    """
    trial = shared_copy(model)
    stream, tokens = stream_of(trial), some_tokens(model)
    kinds = {_kind(block): layer for layer, block in reversed(list(enumerate(trial.blocks)))}
    for layer in sorted(kinds.values()):
        block = stream.blocks[layer]
        full = {name: (columns(module).detach(), getattr(module, "bias", None)) for name, module in block.items()}
        for name in block:
            silent, once, twice = (_loud(trial, tokens, layer, block, full, (name, n)) for n in (0, LOUD, 2 * LOUD))
            added = once - silent
            if not (twice - once - added).norm() <= MISS * added.norm():
                raise InputError(
                    f"{model.name}: {type(model.blocks[layer]).__name__} has a norm between {name} and the residual "
                    "stream, so no edit of that matrix equals an edit of the stream; keep the operator"
                )


def _loud(
    trial: Model,
    tokens: Rendered,
    layer: int,
    block: Mapping[str, nn.Module],
    full: Mapping[str, tuple[Tensor, Tensor | None]],
    louder: tuple[str, int],
) -> Float[Tensor, "batch pos d_model"]:
    """The block's output when one of its components writes so many times as much, and the others nothing."""
    for name, module in block.items():
        factor = louder[1] if name == louder[0] else 0
        weights, bias = full[name]
        set_weights(module, weights * factor, None if bias is None else bias.detach() * factor)
    return capture_blocks(trial, tokens, [layer])[0].float()


def _is_output(module: nn.Module, name: str, d_model: int) -> bool:
    if name.rpartition(".")[2] not in OUTPUTS or not isinstance(module, nn.Linear | Conv1D):
        return False
    return (module.out_features if isinstance(module, nn.Linear) else module.nf) == d_model


def _kind(block: nn.Module) -> tuple[Any, ...]:
    parts = [(name, type(module)) for name, module in block.named_modules()]
    return (*parts, *[(name, tuple(value.shape)) for name, value in block.named_parameters()])
