"""A second opinion on an SAE: sae-lens reads the same weights and must see the same latents."""

import tempfile
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saes.formats.saelens import save_sae
from saes.sae import SparseAutoencoder


@torch.no_grad()
def sae_lens_error(sae: SparseAutoencoder, rows: Float[Tensor, "sample d_model"]) -> float:
    """How far sae-lens's own encode and decode are from ours on these rows, relative to the norm of what is compared.

    The SAE is written in sae-lens's format and loaded with `sae_lens.SAE`; the larger of the two errors is given. It
    is rounding (1e-6 or so in float32) unless a formula, a scaling or a transposed matrix differs.
    """
    from sae_lens import SAE

    with tempfile.TemporaryDirectory() as folder:
        theirs = SAE.load_from_disk(save_sae(sae, Path(folder) / "sae"), device=str(sae.device))
    rows = rows.to(sae.device, sae.dtype)
    latents = sae.encode(rows)
    seen = theirs.encode(rows)
    return max(_relative(seen, latents), _relative(theirs.decode(seen), sae.decode(latents)))


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found.to(expected) - expected).norm() / expected.norm().clamp_min(1e-12)).item()
