"""Subspaces that directions span: principal angles, what two share, and how much random ones would."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geometry.features.causal import CausalProduct, Side
from geometry.features.distances import check_widths, side_directions, unit_rows
from geometry.features.draws import Null, Strata, null_draws
from geometry.features.sets import FeatureSet, check_fits
from geometry.steering.vectors import Subspace
from probes.errors import InputError
from saes.sae import SparseAutoencoder


@dataclass(frozen=True, eq=False)
class SubspaceOverlap:
    """How much two subspaces share.

    `overlap` is ||U1^T U2||_F^2 / min(r, s), the mean squared cosine of the principal angles: 0 orthogonal, 1 one
    inside the other. `angles` are those angles in degrees, smallest first. `expected` is the mean overlap under the
    null, `low` and `high` its 5th and 95th percentile, `p` = (1 + draws that reach the overlap) / (1 + draws).
    """

    overlap: float
    angles: tuple[float, ...]
    ranks: tuple[int, int]
    null: str
    expected: float
    low: float
    high: float
    p: float

    def _repr_html_(self) -> str:
        chance = f"{self.null}: {self.expected:.4f} [{self.low:.4f}, {self.high:.4f}]"
        return f"<div>overlap <b>{self.overlap:.4f}</b> of ranks {self.ranks}; {chance}, p = {self.p:.4f}</div>"


def principal_angles(a: Float[Tensor, "a d_model"], b: Float[Tensor, "b width"]) -> Float[Tensor, " angle"]:
    """Principal angles in degrees between the spans of two sets of directions, smallest first, float64.

    By singular values of U1^T U2, and of its residual where the angle is small (Bjorck and Golub 1973): exact near 0
    too. Directions of equal sets may be dependent: each span has the rank of its directions.
    """
    check_widths(a, b)
    mine, other = (spanned(rows) for rows in (a, b))
    if len(mine) > len(other):
        mine, other = other, mine
    cross = mine @ other.T
    cosines = torch.linalg.svdvals(cross).clamp(0, 1)
    sines = torch.linalg.svdvals(mine - cross @ other).flip(0).clamp(0, 1)
    return torch.where(cosines > 0.7, sines.asin(), cosines.acos()).rad2deg()


def spanned(rows: Float[Tensor, "row d_model"], rank: int | None = None) -> Float[Tensor, "dimension d_model"]:
    """Orthonormal rows, float64, that span the unit directions, or their `rank` strongest singular directions.

    `InputError` on a zero or NaN direction and on a rank that the directions do not have.
    """
    _, strengths, basis = torch.linalg.svd(unit_rows(rows).double(), full_matrices=False)
    found = int((strengths > 1e-6 * strengths[0]).sum())
    if rank is not None and not 1 <= rank <= found:
        raise InputError(f"rank {rank} of {len(rows)} directions that span {found} dimensions; use 1 to {found}")
    return basis[: found if rank is None else rank]


def subspace_overlap(
    a: Subspace | Float[Tensor, "a d_model"],
    b: Subspace | Float[Tensor, "b width"],
    *,
    generator: torch.Generator,
    rank: int | None = None,
    n_draws: int = 1000,
) -> SubspaceOverlap:
    """What two subspaces share, against random subspaces of the same ranks, whose mean overlap is max(r, s) / d_model.

    The measure of the persona-subspace work as we read it (its null equals r / d); spans of directions are cut to their
    `rank` strongest singular directions. The null's draws are exact at any width: the overlap of random subspaces is
    the trace of a matrix Beta variable, made from two small Wishart matrices.
    """
    rows = [x.basis if isinstance(x, Subspace) else x for x in (a, b)]
    check_widths(*rows)
    mine, other = (spanned(x, rank) for x in rows)
    null = _random_overlaps(len(mine), len(other), mine.shape[1], n_draws, generator)
    return _judged(mine, other, null, "random subspaces")


def set_subspaces(
    sae: SparseAutoencoder,
    a: FeatureSet,
    b: FeatureSet,
    *,
    generator: torch.Generator,
    null: Null = "random_features",
    rank: int | None = None,
    n_draws: int = 200,
    side: Side = "decoder",
    product: CausalProduct | None = None,
) -> SubspaceOverlap:
    """What the spans of two feature sets share, against sets of random latents of the same sizes (or matched ones).

    Latents that both hold are left out of both: one alone would give an angle of 0. In a dictionary that is not
    isotropic random latents share more than random subspaces, so this null is the harder one. `InputError` as in
    `compare_sets`, and for the null `label_permutation`, which says nothing about a span.
    """
    for features, role in ((a, "first"), (b, "second")):
        check_fits(features, sae, role)
    if null == "label_permutation":
        raise InputError("null label_permutation: use random_features or FrequencyMatched(frequency)")
    alone = [one.without(other) for one, other in ((a, b), (b, a))]
    for features, role in zip(alone, ("first", "second"), strict=True):
        if not features.latents:
            raise InputError(f"the {role} set holds nothing that the other does not: no subspace is left to compare")
    directions = side_directions(sae, side)
    directions = directions if product is None else product.mapped(directions, side)
    strata = Strata(alone[0].index, alone[0].index[:0], alone[1].index)
    eligible = (torch.linalg.vector_norm(directions, dim=1) > 0).cpu()
    draws = null_draws(null, strata, eligible, n_draws, generator)

    def spans(latents: Tensor) -> tuple[Tensor, Tensor]:
        mine, other = latents.to(directions.device).split([len(alone[0]), len(alone[1])])
        return spanned(directions[mine], rank), spanned(directions[other], rank)

    under_null = torch.tensor([_overlap(*spans(draw)) for draw in draws], dtype=torch.float64)
    name = null if isinstance(null, str) else "frequency_matched"
    return _judged(*spans(strata.latents), under_null, name)


def _overlap(mine: Tensor, other: Tensor) -> float:
    return float((mine @ other.T).square().sum() / min(len(mine), len(other)))


def _judged(mine: Tensor, other: Tensor, null: Tensor, name: str) -> SubspaceOverlap:
    overlap = _overlap(mine, other)
    low, high = null.quantile(torch.tensor([0.05, 0.95]).to(null)).tolist()
    p = (1 + int((null >= overlap - 1e-9).sum())) / (1 + len(null))
    angles = tuple(principal_angles(mine, other).tolist())
    return SubspaceOverlap(overlap, angles, (len(mine), len(other)), name, float(null.mean()), low, high, p)


def _random_overlaps(r: int, s: int, d_model: int, n: int, generator: torch.Generator) -> Float[Tensor, " draw"]:
    """Overlaps of n pairs of uniformly random subspaces: tr((A + B)^-1 A) with A ~ Wishart(r), B ~ Wishart(d - r)."""
    r, s = max(r, s), min(r, s)
    gaussian = torch.randn(n, s, r, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    one = gaussian @ gaussian.mT
    two = _wishart(s, d_model - r, n, generator)
    shared = torch.linalg.solve(one + two, one).diagonal(dim1=1, dim2=2).sum(dim=1)
    return shared / s


def _wishart(s: int, freedom: int, n: int, generator: torch.Generator) -> Float[Tensor, "draw s s"]:
    """n Wishart matrices of identity scale, by a Gaussian matrix where that is small, else by Bartlett's triangle."""
    if freedom < 2 * s:
        rows = torch.randn(n, s, freedom, generator=generator, device=generator.device, dtype=torch.float64).cpu()
        return rows @ rows.mT
    lower = torch.randn(n, s, s, generator=generator, device=generator.device, dtype=torch.float64).cpu().tril(-1)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    squares = np.random.default_rng(seed).chisquare(freedom - np.arange(s), size=(n, s))
    lower += torch.diag_embed(torch.from_numpy(squares).sqrt())
    return lower @ lower.mT
