"""Activations: what the blocks wrote, one sample per conversation or per token."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import InputError

Pool = Literal["response_mean", "prompt_mean", "last_prompt", "tokens"]
POOLS: tuple[Pool, ...] = ("response_mean", "prompt_mean", "last_prompt", "tokens")

#: Places in a decoder block, by TransformerLens's names. `attn_out` and `mlp_out` are what is added to the residual
#: stream (past a sandwich norm, where there is one); blocks that run both side by side have no `resid_mid`.
Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
SITES: tuple[Site, ...] = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True)
class Activations:
    """Activations at one site of the blocks `layers`: one sample per conversation, or per token (pool "tokens").

    `conversation_index` says which conversation a sample comes from. `token_ids`, `positions` (counted without padding)
    and `in_response` describe single tokens and are None for means.
    """

    values: Float[Tensor, "layer sample d_model"]
    layers: tuple[int, ...]
    pool: Pool
    template_hash: str
    conversation_index: Int[Tensor, " sample"]
    token_ids: Int[Tensor, " sample"] | None = None
    positions: Int[Tensor, " sample"] | None = None
    in_response: Bool[Tensor, " sample"] | None = None
    site: Site = "resid_post"

    def at(self, layer: int) -> Float[Tensor, "sample d_model"]:
        """The activations of one block."""
        if layer not in self.layers:
            raise InputError(f"layer {layer} was not captured: these activations hold blocks {self.layers}")
        return self.values[self.layers.index(layer)]

    def __len__(self) -> int:
        return self.values.shape[1]

    def select(self, keep: Bool[Tensor, " sample"] | Int[Tensor, " kept"]) -> "Activations":
        """The samples that a mask or an index picks, as activations again."""
        parts = (self.token_ids, self.positions, self.in_response)
        kept = [None if part is None else part[keep] for part in parts]
        index = self.conversation_index[keep]
        return Activations(
            self.values[:, keep], self.layers, self.pool, self.template_hash, index, *kept, site=self.site
        )
