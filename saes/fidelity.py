"""How well an SAE stands for the activations it reads."""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.errors import InputError
from saes.rows import Source, Where, block_rows, stream_rows
from saes.sae import SparseAutoencoder


@dataclass(frozen=True)
class Quality:
    """Figures over `n` rows.

    `fvu`: fraction of variance unexplained, sum |x - decode(encode(x))|^2 / sum |x - mean|^2 (0 is perfect, 1 is no
    better than the mean); `l0`: active latents per row; `dead`: share of latents that no row activates (it falls as
    `n` grows).
    """

    fvu: float
    l0: float
    dead: float
    n: int

    def _repr_html_(self) -> str:
        return (
            f"<table><tr><th>variance unexplained</th><td>{self.fvu:.2%}</td></tr>"
            f"<tr><th>active latents a row</th><td>{self.l0:.1f}</td></tr>"
            f"<tr><th>latents never active</th><td>{self.dead:.1%}</td></tr>"
            f"<tr><th>rows</th><td>{self.n:,}</td></tr></table>"
        )


@torch.no_grad()
def quality(sae: SparseAutoencoder, activations: Source, *, where: Where = "all") -> Quality:
    """Reconstruction error, sparsity and dead latents of `sae` on rows of its block; sums run in float64."""
    n, active, error, square = 0, 0.0, 0.0, 0.0
    total = torch.zeros(sae.d_model, dtype=torch.float64)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    origin: Tensor | None = None
    for rows in stream_rows(activations, sae.layer, where=where, size=block_rows(sae.d_sae)):
        latents = sae.encode(rows)
        rows = rows.double().cpu()
        error += (sae.decode(latents).double().cpu() - rows).square().sum().item()
        active += (latents > 0).sum().item()
        fired |= (latents > 0).any(0).cpu()
        origin = rows[0] if origin is None else origin  # sums about a point near the mean keep their digits
        n, total = n + len(rows), total + (rows - origin).sum(0)
        square += (rows - origin).square().sum().item()
    variance = square - total.square().sum().item() / n
    if variance <= 0:
        raise InputError(f"all {n} rows of block {sae.layer} are equal: give activations of different tokens")
    return Quality(error / variance, active / n, 1 - fired.double().mean().item(), n)
