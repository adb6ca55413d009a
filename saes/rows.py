"""The rows that an SAE reads, streamed from a tensor, from captured activations or from a store on disk."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.activations import Activations
from probes.errors import InputError
from probes.store import ActivationStore

Source = Tensor | Activations | ActivationStore
Where = Literal["all", "response", "prompt"]


def block_rows(d_sae: int) -> int:
    """Rows to encode at a time: 16 MB of latents, which stays in a processor's cache, but never fewer than 256 rows."""
    return max(256, 2**22 // d_sae)


def stream_rows(
    source: Source, layer: int, *, where: Where = "all", size: int | None = None
) -> Iterator[Float[Tensor, "sample d_model"]]:
    """Yield the activations of block `layer` in their order, at most `size` rows at a time.

    A tensor is taken as the rows themselves. `where` keeps the tokens of the response or of the prompt, which only
    activations captured with `pool="tokens"` can tell apart. Means over tokens are refused: a latent of a mean is not
    the mean of a latent. InputError also for a layer that was not captured, for no rows at all, and for a value that
    is not finite.
    """
    seen = 0
    for chunk in _chunks(source, layer, where):
        seen += len(chunk)
        for rows in chunk.split(size or len(chunk)) if len(chunk) else ():
            if not torch.isfinite(rows).all():
                raise InputError(f"an activation of block {layer} is not finite: capture again in a wider dtype")
            yield rows
    if not seen:
        raise InputError(f"no rows of block {layer} to read (where={where!r}): give activations of at least one token")


def _chunks(source: Source, layer: int, where: Where) -> Iterator[Tensor]:
    if where not in ("all", "response", "prompt"):
        raise InputError(f"where={where!r}: use 'all', 'response' or 'prompt'")
    if isinstance(source, Tensor):
        yield _plain(source, where)
        return
    parts = [source] if isinstance(source, Activations) else source.iter_shards(layers=(layer,))
    for part in parts:
        values = part.at(layer)
        if part.pool not in ("tokens", "last_prompt"):
            raise InputError(
                f"these activations are means (pool={part.pool!r}), and a latent of a mean is no mean of a latent: "
                "capture with pool='tokens' or 'last_prompt'"
            )
        yield values if where == "all" else values[_mask(part, where)]


def _plain(values: Tensor, where: Where) -> Tensor:
    if values.ndim != 2:
        raise InputError(f"activations of shape {tuple(values.shape)}: give one row per token, [sample d_model]")
    if where != "all":
        raise InputError(
            f"where={where!r} needs captured activations; a plain tensor does not say which rows are which"
        )
    return values


def _mask(part: Activations, where: Where) -> Bool[Tensor, " sample"]:
    if part.in_response is None:
        raise InputError(f"where={where!r} needs every token: capture with pool='tokens'")
    return part.in_response if where == "response" else ~part.in_response
