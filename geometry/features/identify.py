"""How a feature set is identified: the latents that one set of rows fires more than another."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from geometry.features.ranking import CENTRE, STATISTICS, contrast, rank_latents
from geometry.features.rows import Source, row_latents
from geometry.features.sets import FeatureSet, sae_digest, sae_name
from probes.activations import Activations
from probes.errors import InputError
from probes.store import ActivationStore
from saes.sae import SparseAutoencoder


def identify_features(
    positive: Float[Tensor, "positive d_model"] | Activations | ActivationStore,
    negative: Float[Tensor, "negative d_model"] | Activations | ActivationStore,
    sae: SparseAutoencoder,
    *,
    k: int = 100,
    statistic: str = "mean_diff",
    n_permutations: int = 1000,
    generator: torch.Generator | None = None,
    data: str = "",
) -> FeatureSet:
    """The k latents that respond most to the positive rows as against the negative ones.

    A row is one conversation: its latents are averaged over the response tokens (`rows.row_latents`), or are those of
    the last prompt token; each line of a bare tensor is a row. Statistics, all
    larger where the positive rows fire the latent more: `mean_diff` (difference of means), `freq_diff` (difference of
    the share of rows in which it fires), `auroc` (chance that a positive row exceeds a negative one, 0.5 = none) and
    `corr` (point-biserial correlation). The k = 100 default is that of arXiv 2605.00842; the statistic it used is not
    known to us, so these definitions are our own.

    With a `generator`, p-values come from `n_permutations` shuffles of the row labels: p = (1 + number of shuffles
    whose largest statistic over all latents reaches this one) / (1 + n), so they are corrected for the choice among
    d_sae latents. Without one, `p` is None. `q` is the false discovery rate by Benjamini and Hochberg over the tests of
    all latents that fire (`ranking.contrast`). The set remembers the SAE by name and digest, the number of rows, and
    `data`, the caller's words for where they come from.
    `InputError` on fewer than 2 rows a side, on NaN, and where fewer than k latents lean to the positive side.
    """
    if statistic not in STATISTICS:
        raise InputError(f"unknown statistic {statistic!r}; use one of {', '.join(STATISTICS)}")
    if not 1 <= k <= sae.d_sae:
        raise InputError(f"k={k} latents asked of an SAE that has {sae.d_sae}; use 1 to {sae.d_sae}")
    rows = _sides(positive, negative, sae)
    n = n_permutations if generator is not None else 0
    found = rank_latents(*rows, k=k, statistic=statistic, n=n, generator=generator)
    made = {"data": data, "positive": len(rows[0]), "negative": len(rows[1]), "shuffles": n}
    return FeatureSet(
        sae_name(sae),
        sae.layer,
        found.latents,
        statistic,
        found.effect,
        found.p if n else None,
        sae.d_sae,
        q=found.q,
        sae_digest=sae_digest(sae),
        made=made,
    )


def statistics_table(positive: Source, negative: Source, sae: SparseAutoencoder) -> pd.DataFrame:
    """Every statistic of every latent that fires: do they agree on which latents the data speaks to?

    Columns `latent`, and for each of `STATISTICS` its value, `p_` and `q_` of it (`ranking.contrast`); sorted by
    `mean_diff`, largest first. Rows and errors as in `identify_features`.
    """
    rows = _sides(positive, negative, sae)
    fires = (torch.cat(rows) != 0).any(dim=0).cpu()
    columns: dict[str, Tensor] = {"latent": fires.nonzero().squeeze(1)}
    for name in STATISTICS:
        found = contrast(*rows, statistic=name)
        values = {name: found.effect.cpu() + CENTRE.get(name, 0.0), f"p_{name}": found.p, f"q_{name}": found.q}
        columns |= {column: numbers[fires] for column, numbers in values.items()}
    table = pd.DataFrame({column: numbers.numpy() for column, numbers in columns.items()})
    return table.sort_values("mean_diff", ascending=False, kind="stable", ignore_index=True)


def _sides(positive: Source, negative: Source, sae: SparseAutoencoder) -> tuple[Tensor, Tensor]:
    sides = {"positive": row_latents(positive, sae), "negative": row_latents(negative, sae)}
    for side, values in sides.items():
        if len(values) < 2:
            raise InputError(f"{len(values)} {side} row(s): a contrast needs at least 2 rows a side")
    return sides["positive"], sides["negative"]
