"""Which latents fire on the same tokens: counts of both, Jaccard, phi and correlation, added up over a stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import InputError
from saes.rows import Source, Where, block_rows, stream_rows
from saes.sae import SparseAutoencoder

if TYPE_CHECKING:
    import plotly.graph_objects as go

Measure = Literal["phi", "jaccard", "correlation"]
MEASURES: tuple[Measure, ...] = ("phi", "jaccard", "correlation")


@dataclass(frozen=True)
class Partner:
    """A latent that fires with another: `both` tokens, Jaccard, phi (0 where they are independent), correlation."""

    latent: int
    both: int
    jaccard: float
    phi: float
    correlation: float


@dataclass(frozen=True, eq=False)
class Coactivation:
    """How `latents` fire together with each latent of the SAE over `n` tokens.

    `jaccard` is tokens of both over tokens of either. `phi` is the correlation of firing or not, `correlation` that of
    the activations (Pearson, zeros included); both are 0 where two latents have nothing to do with each other, and 0
    for one that never or always fires.
    """

    latents: tuple[int, ...]
    n: int
    both: Float[Tensor, "feature d_sae"]
    jaccard: Float[Tensor, "feature d_sae"]
    phi: Float[Tensor, "feature d_sae"]
    correlation: Float[Tensor, "feature d_sae"]

    def partners(self, latent: int, k: int = 5, *, by: Measure = "phi") -> list[Partner]:
        """The `k` latents that fire most together with one of `latents`, itself left out; only those above 0."""
        if by not in MEASURES:
            raise InputError(f"by={by!r}: use one of {', '.join(MEASURES)}")
        if latent not in self.latents:
            raise InputError(f"latent {latent} was not asked for: this table holds {self.latents}")
        row = self.latents.index(latent)
        scores = getattr(self, by)[row].clone()
        scores[latent] = -torch.inf
        best = scores.topk(min(k, len(scores) - 1))
        return [
            self._pair(row, i)
            for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            if score > 0
        ]

    @property
    def table(self) -> pd.DataFrame:
        """One row for each pair of `latents`: latent, other, both, jaccard, phi, correlation."""
        rows = [
            {"latent": latent, "other": other, **{k: v for k, v in vars(self._pair(i, other)).items() if k != "latent"}}
            for i, latent in enumerate(self.latents)
            for other in self.latents
            if other != latent
        ]
        return pd.DataFrame(rows, columns=["latent", "other", "both", "jaccard", "phi", "correlation"])

    def figure(self, *, by: Measure = "phi") -> "go.Figure":
        """Heat map among `latents`."""
        from saes.figures.cards import coactivation_figure

        return coactivation_figure(self, by=by)

    def _pair(self, row: int, other: int) -> Partner:
        figures = (float(getattr(self, name)[row, other]) for name in ("jaccard", "phi", "correlation"))
        return Partner(other, int(self.both[row, other]), *figures)


def coactivation(
    sae: SparseAutoencoder, source: Source, latents: Sequence[int], *, where: Where = "all"
) -> Coactivation:
    """How `latents` fire together with every latent of the SAE on rows of its block (`stream_rows`).

    Memory: one block of rows, and 16 bytes for each of `latents` times `d_sae`. Sums are taken in float64.
    """
    sae.check_latents(latents)
    if not len(latents):
        raise InputError("coactivation: no latents given; give at least one")
    pairs = Pairs(sae.d_sae, latents)
    for rows in stream_rows(source, sae.layer, where=where, size=block_rows(sae.d_sae)):
        with torch.no_grad():
            pairs.add(sae.encode(rows))
    return pairs.done()


class Pairs:
    """Sums over tokens: how often two latents fire, each and both, and the moments of their activations."""

    def __init__(self, d_sae: int, latents: Sequence[int]) -> None:
        self.latents = tuple(int(i) for i in latents)
        self.n = 0
        self.fired, self.total, self.square = (torch.zeros(d_sae, dtype=torch.float64) for _ in range(3))
        self.both, self.product = (torch.zeros(len(self.latents), d_sae, dtype=torch.float64) for _ in range(2))

    def add(self, values: Float[Tensor, "sample d_sae"]) -> None:
        """Take note of the latents of a block of rows."""
        values = values.float()
        ids, fired = list(self.latents), (values > 0).float()
        self.n += len(values)
        self.fired += fired.sum(0, dtype=torch.float64).cpu()
        self.total += values.sum(0, dtype=torch.float64).cpu()
        self.square += values.pow(2).sum(0, dtype=torch.float64).cpu()
        self.both += (fired[:, ids].T @ fired).double().cpu()
        self.product += (values[:, ids].T @ values).double().cpu()

    def done(self) -> Coactivation:
        """The measures, from the sums."""
        ids, n = list(self.latents), max(1, self.n)
        own = self.fired[ids, None]
        either = own + self.fired - self.both
        jaccard = torch.where(either > 0, self.both / either.clamp(min=1), 0.0)
        phi = _correlation(n, self.both, self.fired, self.fired, ids)
        correlation = _correlation(n, self.product, self.total, self.square, ids)
        parts = (jaccard, phi, correlation)
        return Coactivation(self.latents, self.n, self.both.float(), *(part.float() for part in parts))


def _correlation(n: int, product: Tensor, total: Tensor, square: Tensor, ids: list[int]) -> Tensor:
    """Pearson's, from sums over `n` rows; 0 where one side does not vary."""
    varied = n * square - total.pow(2)
    varied = torch.where(varied > 1e-9 * n * square, varied, 0.0).sqrt()
    spread = varied[ids, None] * varied
    return torch.where(spread > 0, (n * product - total[ids, None] * total) / spread.clamp(min=1e-300), 0.0).clamp(
        -1, 1
    )
