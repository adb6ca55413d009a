"""The causal inner product: lengths and angles of directions as the unembedding sees them."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import InputError

Side = Literal["decoder", "encoder"]


@dataclass(frozen=True, eq=False)
class CausalProduct:
    """The inner product under which concepts that vary independently are orthogonal (arXiv 2311.03658, theorem 3.4).

    With Sigma the covariance of the unembedding rows over the vocabulary: `root` is Sigma^(1/2), which maps what is
    written into the residual stream (decoder rows, persona vectors) to l = Sigma^(1/2) lambda; `inverse_root` is
    Sigma^(-1/2), which maps what reads it (encoder columns, unembedding rows) to g = Sigma^(-1/2) gamma. Euclidean
    angles of l or of g are the causal ones, and g . l = gamma . lambda stays as it was.
    """

    root: Float[Tensor, "d_model d_model"]
    inverse_root: Float[Tensor, "d_model d_model"]

    def mapped(self, directions: Float[Tensor, "feature d_model"], side: Side) -> Float[Tensor, "feature d_model"]:
        """The directions in the space where Euclidean angles are causal ones; `side` says if they write or read."""
        if directions.shape[1] != len(self.root):
            raise InputError(
                f"directions of width {directions.shape[1]} and a causal product of width {len(self.root)}: "
                "take the unembedding of the model that the directions belong to"
            )
        matrix = self.root if side == "decoder" else self.inverse_root
        return directions @ matrix.to(directions)


@torch.no_grad()
def causal_product(unembedding: Float[Tensor, "vocabulary d_model"], *, ridge: float = 0.0) -> CausalProduct:
    """The causal inner product of an unembedding matrix, one row a token; the covariance is taken in float64.

    `ridge` times the mean eigenvalue is added to each eigenvalue. Without it a covariance of less than full rank is
    refused, since its inverse does not exist. For directions before the final norm, scale the columns by its weights.
    `InputError` also on NaN and on fewer than 2 rows.
    """
    rows = unembedding.detach().double()
    if len(rows) < 2 or not torch.isfinite(rows).all():
        raise InputError(f"unembedding of {len(rows)} rows: give 2 or more tokens, without NaN or infinity")
    if ridge < 0:
        raise InputError(f"ridge={ridge} is negative; use 0 or more")
    values, vectors = torch.linalg.eigh(torch.cov(rows.T).reshape(rows.shape[1], -1))
    values = values + ridge * values.mean()
    if float(values[0]) <= 1e-10 * float(values[-1]):
        rank = int((values > 1e-10 * values[-1]).sum())
        raise InputError(
            f"the unembedding's covariance has rank {rank} of {rows.shape[1]}: it has no inverse; give ridge=0.01, say"
        )
    root = (vectors * values.sqrt()) @ vectors.T
    return CausalProduct(root, (vectors / values.sqrt()) @ vectors.T)
