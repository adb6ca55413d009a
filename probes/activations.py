"""Activations: what the blocks wrote, one sample per conversation or per token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import InputError

Pool = Literal["response_mean", "prompt_mean", "last_prompt", "tokens"]
POOLS: tuple[Pool, ...] = ("response_mean", "prompt_mean", "last_prompt", "tokens")

#: Places in a decoder block, by TransformerLens's names. `attn_out` and `mlp_out` are what is added to the residual
#: stream (past a sandwich norm, where there is one); blocks that run both side by side have no `resid_mid`.
#: "attn_z" is what the heads hand to the output projection, side by side. Some SAEs read it; only activations of the
#: caller's own have it, for it is not among the SITES that can be captured and changed.
Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn_z"]
SITES: tuple[Site, ...] = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

#: What describes single tokens, each `[sample]`.
TOKEN_PARTS = ("token_ids", "positions", "in_response", "in_reasoning")


@dataclass(frozen=True)
class Activations:
    """Activations at one site of the blocks `layers`: one sample per conversation, or per token (pool "tokens").

    `conversation_index` says which conversation a sample comes from. `token_ids`, `positions` (without padding),
    `in_response` and `in_reasoning` describe single tokens and are None for means. `scope` names the tokens of a scope
    of the caller's own: their mean is the pool "mean", each of them the pool "tokens".
    """

    values: Float[Tensor, "layer sample d_model"]
    layers: tuple[int, ...]
    pool: Literal[Pool, "mean"]
    template_hash: str
    conversation_index: Int[Tensor, " sample"]
    token_ids: Int[Tensor, " sample"] | None = None
    positions: Int[Tensor, " sample"] | None = None
    in_response: Bool[Tensor, " sample"] | None = None
    site: Site = "resid_post"
    in_reasoning: Bool[Tensor, " sample"] | None = None
    scope: str = ""

    def at(self, layer: int) -> Float[Tensor, "sample d_model"]:
        """The activations of one block."""
        if layer not in self.layers:
            raise InputError(f"layer {layer} was not captured: these activations hold blocks {self.layers}")
        return self.values[self.layers.index(layer)]

    def __len__(self) -> int:
        return self.values.shape[1]

    def select(self, keep: Bool[Tensor, " sample"] | Int[Tensor, " kept"]) -> "Activations":
        """The samples that a mask or an index picks, as activations again."""
        return _mapped(self, lambda part: part[keep], self.values[:, keep])


def concatenated(parts: Sequence[Activations]) -> Activations:
    """Put activations of one kind behind each other, in the order given."""
    if not parts:
        raise InputError("no activations to join: the store or the list is empty")
    if len(parts) == 1:
        return parts[0]
    singles = {name: torch.cat([getattr(part, name) for part in parts]) for name in _singles(parts[0])}
    return replace(parts[0], values=torch.cat([part.values for part in parts], dim=1), **singles)


def joined(parts: Sequence[Activations]) -> Activations:
    """Put batches of activations together, ordered by conversation, tokens in their order within it."""
    whole = concatenated(parts)
    order = torch.argsort(whole.conversation_index, stable=True)
    return whole if bool((order.diff() == 1).all()) else whole.select(order)


def blank(like: Activations, samples: int) -> Activations:
    """Room for `samples` samples of the same kind, to be filled by `put`."""
    values = like.values.new_empty(len(like.layers), samples, like.values.shape[-1])
    return _mapped(like, lambda part: part.new_empty(samples), values)


def put(whole: Activations, part: Activations, places: Int[Tensor, " kept"]) -> None:
    """Write the samples of `part` to these places of `whole`."""
    whole.values[:, places] = part.values
    for name in _singles(whole):
        getattr(whole, name)[places] = getattr(part, name)


def _singles(activations: Activations) -> list[str]:
    """Names of the tensors that have one entry a sample."""
    present = [name for name in TOKEN_PARTS if getattr(activations, name) is not None]
    return ["conversation_index", *present]


def _mapped(activations: Activations, change: Any, values: Tensor) -> Activations:
    return replace(activations, values=values, **{n: change(getattr(activations, n)) for n in _singles(activations)})
