"""The latents that are most active on some rows: which cards to make where nobody has asked for any."""

import torch

from probes.errors import InputError
from probes.models import Model
from saes.inspect.reading import TextSource, counted, token_parts
from saes.rows import Where, block_rows
from saes.sae import SparseAutoencoder


@torch.no_grad()
def strongest_latents(
    sae: SparseAutoencoder, model: Model, source: TextSource, *, n: int = 20, where: Where = "all", skip: int = 0
) -> list[int]:
    """The `n` latents with the highest mean activation over the tokens that count, zeros included, the highest first.

    Latents that never fire are left out. Sums are taken in float64 over a stream. Raises InputError where no token
    counts.
    """
    total, seen = torch.zeros(sae.d_sae, dtype=torch.float64), 0
    for part in token_parts(sae, model, source):
        rows = part.at(sae.layer)[counted(part, where, skip)]
        seen += len(rows)
        for block in rows.split(block_rows(sae.d_sae)):
            total += sae.encode(block).sum(0, dtype=torch.float64).cpu()
    if not seen:
        raise InputError(f"no token counts (where={where!r}, skip={skip}): give rows with such tokens")
    best = total.topk(min(n, sae.d_sae))
    return [i for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True) if value > 0]
