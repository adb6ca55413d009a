"""Rows of a data set as SAE latents: tokens streamed in blocks, and sums and means over each conversation."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from probes.activations import Activations
from probes.errors import InputError
from probes.store import ActivationStore
from saes.sae import SparseAutoencoder

Source = Tensor | Activations | ActivationStore
BLOCK = 2**26  # latents held at a time: 256 MB in float32


def conversation_ids(source: Source) -> Tensor:
    """The conversations of a source, ascending `[sample]`: row i of every result belongs to the i-th of them.

    A bare tensor and activations of one vector a conversation have one row a vector, in their own order.
    """
    if isinstance(source, ActivationStore):
        ids = torch.tensor(sorted(source.conversations()), dtype=torch.long)
    elif isinstance(source, Activations) and source.pool == "tokens":
        ids = source.conversation_index.unique().cpu()
    else:
        ids = torch.arange(len(source))
    if len(ids) == 0:
        raise InputError("no rows: the activations are empty; pass at least one row")
    return ids


def row_vectors(source: Source, layer: int, *, means: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (row number of each vector `[vector]`, residual vectors of block `layer` `[vector d_model]`) in chunks.

    Of token activations only the response's tokens are kept. Activations that are means over tokens are refused unless
    `means`, because a latent of a mean is not the mean of the latents. `InputError` also on NaN.
    """
    if isinstance(source, Tensor) and source.ndim != 2:
        raise InputError(f"activations of shape {tuple(source.shape)}; give one vector a line, [vector d_model]")
    ids = conversation_ids(source)
    chunks = source.iter_shards(layers=(layer,)) if isinstance(source, ActivationStore) else [source]
    for chunk in chunks:
        if isinstance(chunk, Tensor):
            index, values = ids, chunk
        else:
            index, values = _chunk(chunk, layer, means)
            if not isinstance(source, ActivationStore) and chunk.pool != "tokens":
                index = ids
        row = torch.searchsorted(ids, index.cpu())
        _check_finite(values, row)
        yield row, values


def _chunk(chunk: Activations, layer: int, means: bool) -> tuple[Tensor, Tensor]:
    values, index = chunk.at(layer), chunk.conversation_index
    if chunk.pool == "tokens":
        if chunk.in_response is None:
            raise InputError("token activations without a response mask; capture them with pool='tokens'")
        return index[chunk.in_response], values[chunk.in_response.to(values.device)]
    if chunk.pool != "last_prompt" and not means:
        raise InputError(
            f"these activations are means (pool={chunk.pool!r}), and the latents of a mean are not the mean of the "
            "latents: capture with pool='tokens' or 'last_prompt'"
        )
    return index, values


def _check_finite(values: Tensor, row: Tensor) -> None:
    bad = ~torch.isfinite(values).all(dim=1).cpu()
    if bad.any():
        raise InputError(f"activations of row {int(row[bad][0])} hold NaN or infinity; capture it again or drop it")


def sum_latents(
    source: Source, sae: SparseAutoencoder, reduce: Callable[[Float[Tensor, "vector d_sae"]], Tensor]
) -> tuple[Tensor, Float[Tensor, " sample"]]:
    """`reduce(latents)` summed over the vectors of each row `[sample, ...]`, in float64, and each row's vector count.

    A latent's activation is multiplied by the norm of its decoder row, so that scaling a latent up and its decoder
    row down changes nothing; for unit decoder rows it is the activation itself. Units: residual-stream length.
    """
    norms = torch.linalg.vector_norm(sae.W_dec, dim=1)
    rows = len(conversation_ids(source))
    total, count = None, torch.zeros(rows, dtype=torch.float64)
    for row, values in row_vectors(source, sae.layer):
        step = max(1, BLOCK // sae.d_sae)
        for part_row, part in zip(row.split(step), values.split(step), strict=True):
            with torch.no_grad():
                out = reduce(sae.encode(part) * norms).double()
            if total is None:
                total = out.new_zeros(rows, *out.shape[1:])
            total.index_add_(0, part_row.to(out.device), out)
            count += torch.bincount(part_row, minlength=rows)
    check_counts(count)
    assert total is not None  # every row was counted
    return total, count.to(total.device)


def check_counts(count: Float[Tensor, " sample"]) -> None:
    """`InputError` names the first row that holds no vector."""
    empty = (count == 0).nonzero()
    if len(empty):
        raise InputError(f"row {int(empty[0, 0])} has no response tokens; give it an answer or drop it")


def row_latents(source: Source, sae: SparseAutoencoder) -> Float[Tensor, "sample d_sae"]:
    """Mean latent activation of each row over its vectors, in float64 (units: `sum_latents`); 8 sample d_sae bytes.

    Token activations are encoded first and averaged afterwards.
    """
    total, count = sum_latents(source, sae, lambda latents: latents)
    return total / count[:, None]
