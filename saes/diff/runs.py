"""RunTable: the same latents over several fine-tunes, and which rise or fall in all of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from probes.errors import InputError
from saes.diff.table import LatentTable, only


@dataclass(frozen=True, eq=False)
class RunTable:
    """Several fine-tunes, latent by latent.

    `matrix` holds the change of the mean: a row a latent, a column a run. `table` has, for each latent, `mean_delta`
    over the runs with `low` and `high` (95 % t interval over runs; NaN for a single one), `sd` over runs, `mean_rank`
    and `mean_fall_rank`, `n_rose` and `n_fell` (runs with q <= 0.05 and that sign), and `rank`, 1 for the largest mean
    change: the numbering of arXiv 2506.19823, which averages over its nine fine-tunes.
    """

    matrix: pd.DataFrame
    table: pd.DataFrame
    sae_name: str
    layer: int

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs."""
        return tuple(map(str, self.matrix.columns))

    def top(self, n: int) -> pd.DataFrame:
        """The `n` latents that rose most on average."""
        return self.table.nsmallest(n, "rank").reset_index(drop=True)

    def protective(self, n: int = 10) -> pd.DataFrame:
        """At most `n` latents that fell in every run, the one that fell most on average first."""
        fell = only(self.table, (self.matrix < 0).all(axis=1).to_numpy())
        return fell.nsmallest(n, "mean_delta").reset_index(drop=True)

    def shared(self) -> pd.DataFrame:
        """The latents that rose in every run, the largest mean change first."""
        rose = only(self.table, (self.matrix > 0).all(axis=1).to_numpy())
        return rose.sort_values(by="rank").reset_index(drop=True)

    def figure(self, n: int = 15):
        """Heat map of the `n` latents that rose and the `n` that fell most on average, by run."""
        from saes.figures import runs_figure

        return runs_figure(self.matrix, n=n)

    def __len__(self) -> int:
        return len(self.table)

    def _repr_html_(self) -> str:
        shown = self.table.sort_values("rank").query(f"rank <= 5 or rank > {len(self) - 5}")
        head = f"<p>{len(self):,} latents after block {self.layer} over {len(self.runs)} runs</p>"
        return head + shown.to_html(index=False, float_format=lambda value: f"{value:.3g}", border=0)


def aggregate(tables: Mapping[str, LatentTable], *, q: float = 0.05) -> RunTable:
    """Put model diffs of several fine-tunes of one base side by side, by the name of the run.

    Raises InputError for no table, and for tables of different SAEs, tokens or weights, whose changes do not compare.
    """
    if not tables:
        raise InputError("no latent tables to average: give at least one, by the name of its run")
    kinds = {name: (t.sae_name, t.layer, len(t), t.where, t.weight) for name, t in tables.items()}
    first = next(iter(kinds))
    for name, kind in kinds.items():
        if kind != kinds[first]:
            raise InputError(f"run {name!r} is of {kind}, run {first!r} of {kinds[first]}: diff all with the same")
    ordered = {name: t.table.sort_values("latent").reset_index(drop=True) for name, t in tables.items()}
    matrix = pd.DataFrame({name: t["delta_mean"] for name, t in ordered.items()})
    matrix.index = pd.Index(next(iter(ordered.values()))["latent"], name="latent")
    found = _averaged(matrix, ordered, q)
    some = tables[first]
    return RunTable(matrix, found, some.sae_name, some.layer)


def _averaged(matrix: pd.DataFrame, ordered: Mapping[str, pd.DataFrame], q: float) -> pd.DataFrame:
    deltas, n = matrix.to_numpy(), matrix.shape[1]
    mean = deltas.mean(1)
    sd = deltas.std(1, ddof=1) if n > 1 else np.full(len(mean), np.nan)
    reach = sd / np.sqrt(n) * (stdtrit(n - 1, 0.975) if n > 1 else np.nan)
    called = np.stack([t["q"].to_numpy() <= q for t in ordered.values()], axis=1)
    ranks = {key: np.stack([t[key] for t in ordered.values()], axis=1).mean(1) for key in ("rank", "fall_rank")}
    rank = np.empty(len(mean), dtype=np.int64)
    rank[np.argsort(-mean, kind="stable")] = np.arange(1, len(mean) + 1)
    return pd.DataFrame(
        {
            "latent": matrix.index.to_numpy(),
            "mean_delta": mean,
            "low": mean - reach,
            "high": mean + reach,
            "sd": sd,
            "mean_rank": ranks["rank"],
            "mean_fall_rank": ranks["fall_rank"],
            "n_rose": (called & (deltas > 0)).sum(1),
            "n_fell": (called & (deltas < 0)).sum(1),
            "rank": rank,
        }
    )
