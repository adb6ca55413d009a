"""Model diffing: which latents a fine-tune raised and which it lowered."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from saes.latents import LatentStats, latent_stats
from saes.rows import Source, Where
from saes.sae import SparseAutoencoder

COLUMNS = (
    "latent",
    "delta_mean",
    "delta_freq",
    "base_mean",
    "tuned_mean",
    "base_freq",
    "tuned_freq",
    "control_delta",
    "rank",
)


@dataclass(frozen=True, eq=False)
class LatentTable:
    """One row per latent, in the latents' order.

    `delta_mean` and `delta_freq` are tuned minus base: positive means that the fine-tune raised the latent.
    `control_delta` is the same for the control model, NaN without one. `rank` is 1 for the latent that rose most.
    """

    table: pd.DataFrame
    sae_name: str
    layer: int
    n_base: int
    n_tuned: int

    def top(self, n: int) -> pd.DataFrame:
        """The `n` latents that rose most, the first one first."""
        return self.table.nsmallest(n, "rank").reset_index(drop=True)

    def bottom(self, n: int) -> pd.DataFrame:
        """The `n` latents that fell most, the one that fell most first."""
        return self.table.nlargest(n, "rank").reset_index(drop=True)

    def figure(self, n: int = 10):
        """Bars of the `n` latents that rose and the `n` that fell most."""
        from saes.figures import latent_diff_figure

        return latent_diff_figure(self.table, n=n)

    def __len__(self) -> int:
        return len(self.table)

    def _repr_html_(self) -> str:
        shown = self.table.sort_values("rank").query(f"rank <= 5 or rank > {len(self) - 5}")
        head = f"<p>{len(self):,} latents after block {self.layer}, {self.n_base:,} and {self.n_tuned:,} tokens</p>"
        return head + shown.to_html(index=False, float_format=lambda value: f"{value:.3g}", border=0)


def diff_latents(
    base_acts: Source,
    tuned_acts: Source,
    sae: SparseAutoencoder,
    *,
    control: Source | None = None,
    where: Where = "all",
) -> LatentTable:
    """Difference of each latent's mean and firing rate between two models on the same conversations.

    One SAE reads both. The activations come from the base and the fine-tuned model at the SAE's block, captured with
    `pool="tokens"` or `"last_prompt"`; those of `control` from a benign fine-tune. Tokens count equally. Ranking by the
    mean difference is the first step of arXiv 2506.19823 and 2602.00767, which go on to causal checks: what rises here
    is a candidate, no more.
    """
    base, tuned = (latent_stats(sae, acts, where=where) for acts in (base_acts, tuned_acts))
    columns = {
        "latent": np.arange(sae.d_sae),
        "delta_mean": _array(tuned.mean - base.mean),
        "delta_freq": _array(tuned.freq - base.freq),
        "base_mean": _array(base.mean),
        "tuned_mean": _array(tuned.mean),
        "base_freq": _array(base.freq),
        "tuned_freq": _array(tuned.freq),
        "control_delta": _control(sae, base, control, where),
    }
    rank = np.empty(sae.d_sae, dtype=np.int64)
    rank[np.argsort(-columns["delta_mean"], kind="stable")] = np.arange(1, sae.d_sae + 1)
    return LatentTable(pd.DataFrame({**columns, "rank": rank}), sae.name, sae.layer, base.n, tuned.n)


def _control(sae: SparseAutoencoder, base: LatentStats, control: Source | None, where: Where) -> np.ndarray:
    if control is None:
        return np.full(sae.d_sae, np.nan)
    return _array(latent_stats(sae, control, where=where).mean - base.mean)


def _array(values: Float[Tensor, " d_sae"]) -> np.ndarray:
    return values.numpy()
