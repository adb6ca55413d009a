"""The value `Model`: a network with its tokenizer, its blocks, and what can be asked of both."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.activations import Site
from probes.conversations import Conversation
from probes.errors import InputError
from probes.models.blocks import find_blocks, text_config, unwrap
from probes.models.digest import fingerprint, weights_digest
from probes.sites import Point

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Model:
    """A causal language model with its tokenizer; `hf` may be a `PreTrainedModel` or a PEFT wrapper around one.

    `blocks_path` names the list of decoder blocks among `hf`'s modules where it cannot be found by itself; `sites` says
    where sites are inside a block where its structure does not tell, as `{"mlp_out": Point("feed_forward")}`.
    """

    hf: nn.Module
    tokenizer: PreTrainedTokenizerBase
    name: str
    blocks_path: str | None = None
    sites: Mapping[Site, Point] = field(default_factory=dict)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks in order; block i's output is what "layer i" means everywhere."""
        return find_blocks(self.hf, self.blocks_path)

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(text_config(self.hf).hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the input embeddings live, or run where they are kept elsewhere: inputs go there."""
        table = unwrap(self.hf).get_input_embeddings()
        return torch.device(table._hf_hook.execution_device) if table.weight.is_meta else table.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the input embeddings."""
        return unwrap(self.hf).get_input_embeddings().weight.dtype

    @property
    def fingerprint(self) -> str:
        """Hash of the configuration and the name; it does not depend on paths, device or dtype."""
        return fingerprint(self.name, unwrap(self.hf).config)

    @property
    def weights_digest(self) -> str:
        """Hash of a sample of every parameter: tells whether two models of one name hold the same weights."""
        return weights_digest(self.hf)

    def intervene(self, *operators: Any, mask: Bool[Tensor, "batch pos"] | None = None) -> AbstractContextManager[None]:
        """Apply operators to the blocks' outputs while the context lasts: see `probes.hooks.intervene`."""
        from probes.hooks import intervene

        return intervene(self, *operators, mask=mask)

    def chat(
        self,
        text: str,
        *,
        system: str | None = None,
        max_new_tokens: int = 200,
        temperature: float | int = 1.0,
        seed: int = 0,
    ) -> str:
        """Answer one user message, by pure sampling from the model; temperature 0 takes the likeliest token."""
        from probes.ask import sample

        conversation = Conversation.of(text, system=system)
        return sample(self, [conversation], seed=seed, temperature=temperature, max_new_tokens=max_new_tokens)[0]

    def bridge(self) -> "TransformerBridge":
        """Return a TransformerLens bridge over a deep copy of the weights, adapters merged: `hf` stays untouched."""
        from probes.models.lens import bridge_of

        return bridge_of(self)

    def __repr__(self) -> str:
        kind = type(unwrap(self.hf)).__name__
        return (
            f"Model({self.name!r}, {kind}, {self.n_layers} blocks, d_model {self.d_model}, {self.device}, {self.dtype})"
        )


def check_layer(model: Model, layer: int) -> None:
    """Raise InputError unless `layer` is the 0-based index of a decoder block of `model`."""
    if not 0 <= layer < model.n_layers:
        raise InputError(f"layer {layer}: {model.name} has blocks 0 to {model.n_layers - 1}; give one of those")


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Put the model in evaluation mode without gradients; every module gets its own mode back at the end."""
    training = [module for module in model.hf.modules() if module.training]  # to set a module's attribute is slow
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
