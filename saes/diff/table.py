"""LatentTable: what changed between two models, one row a latent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from probes.errors import InputError
from probes.io import atomic_file, read_json, write_json
from saes.pooling import Weight, Where

Ranking = Literal["mean", "cosine"]
#: Above this ratio of the variance unexplained (tuned to base) a table warns that the SAE may not fit.
MISFIT = 1.25
FORMAT = "persona-geometry/latent-diff/1"


@dataclass(frozen=True, eq=False)
class LatentTable:
    """One row per latent, in the latents' order.

    `delta_mean` and `delta_freq` are tuned minus base: positive means that the fine-tune raised the latent. `effect` is
    that change in standard deviations over conversations (d_z if `test` is "paired", Hedges' g if "welch"), `p` its
    two-sided test, `q` the same after Benjamini and Hochberg over all latents that fired; NaN for those that did not.
    `rank` is 1 for the latent that rose most, `fall_rank` 1 for the one that fell most. `cosine` is that of the
    latent's decoder row with the difference of mean activations, of length `shift_norm`, and `cosine_rank` 1 for the
    largest: the ranking of Arditi and Chen's open-weight diffing (2025).

    For each control, `NAME_delta` is its change over the base, and `NAME_q` the q of tuned against it. `over_controls`
    is what remains of a change when the largest change of its sign in any control is taken off (`control_delta` and
    this are NaN without one). `fvu` is the variance that the SAE leaves unexplained in each model.
    """

    table: pd.DataFrame
    sae_name: str
    layer: int
    n_base: int
    n_tuned: int
    conversations: tuple[int, int] = (0, 0)
    test: Literal["paired", "welch"] = "welch"
    where: Where = "all"
    weight: Weight = "token"
    fvu: Mapping[str, float] = field(default_factory=dict)
    shift_norm: float = float("nan")

    def top(self, n: int, *, by: Ranking = "mean") -> pd.DataFrame:
        """The `n` latents that rose most, the first one first; `by="cosine"`: those nearest to the whole shift."""
        return self.table.nsmallest(n, _column(by)).reset_index(drop=True)

    def bottom(self, n: int, *, by: Ranking = "mean") -> pd.DataFrame:
        """The `n` latents that fell most, the one that fell most first."""
        return self.table.nlargest(n, _column(by)).reset_index(drop=True)

    def significant(self, q: float = 0.05) -> pd.DataFrame:
        """The latents whose change has a q of at most this, in the order of their ranks."""
        return only(self.table, self.table["q"] <= q).sort_values(by="rank").reset_index(drop=True)

    def protective(self, n: int = 10, *, q: float = 0.05) -> pd.DataFrame:
        """At most `n` latents that fell (by `q`, and further than in any control), the one that fell most first.

        Features of the assistant that a fine-tune loses stand here: the bottom end of OpenAI's follow-up to arXiv
        2506.19823 (December 2025). Candidates for being put back; that they protect is to be shown by steering.
        """
        beyond = self.table["over_controls"].fillna(-1.0) < 0
        fell = only(self.table, (self.table["delta_mean"] < 0) & (self.table["q"] <= q) & beyond)
        return fell.nsmallest(n, "fall_rank").reset_index(drop=True)

    @property
    def misfit(self) -> float:
        """Variance unexplained in the tuned model over that in the base: 1 where the SAE fits both alike."""
        base, tuned = (self.fvu.get(name, float("nan")) for name in ("base", "tuned"))
        return tuned / base if base > 0 else float("nan")

    @property
    def warning(self) -> str:
        """What to say where the SAE fits the tuned model much worse than the base (above `MISFIT`)."""
        if not self.misfit > MISFIT:
            return ""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.fvu.items())
        return (
            f"the SAE leaves {self.misfit:.2f} times as much variance of the tuned model unexplained as of the base "
            f"({shares}): part of what the fine-tune did is in no latent"
        )

    def figure(self, n: int = 10):
        """Bars of the `n` latents that rose and the `n` that fell most."""
        from saes.figures import latent_diff_figure

        return latent_diff_figure(self.table, n=n)

    def save(self, folder: str | Path) -> None:
        """Write latents.parquet and latents.csv, and latents.json with everything else."""
        folder = Path(folder)
        with atomic_file(folder / "latents.parquet") as file:
            self.table.to_parquet(file, index=False)
        with atomic_file(folder / "latents.csv") as file:
            self.table.to_csv(file, index=False)
        kept = {name: value for name, value in vars(self).items() if name != "table"}
        known = {name: None if value != value else value for name, value in kept["fvu"].items()}
        norm = self.shift_norm if self.shift_norm == self.shift_norm else None
        write_json(folder / "latents.json", {"format": FORMAT, **kept, "fvu": known, "shift_norm": norm})

    @classmethod
    def load(cls, folder: str | Path) -> "LatentTable":
        """Read what `save` wrote. Raises InputError where the folder holds something else."""
        kept = read_json(Path(folder) / "latents.json")
        if not isinstance(kept, dict) or kept.pop("format", None) != FORMAT:
            raise InputError(f"{folder}: no latent diff of format {FORMAT}; run `persona-geometry diff` again")
        known = {name: float("nan") if value is None else value for name, value in kept.pop("fvu").items()}
        norm, pair = kept.pop("shift_norm"), tuple(kept.pop("conversations"))
        table = pd.read_parquet(Path(folder) / "latents.parquet")
        return cls(table, **kept, fvu=known, conversations=pair, shift_norm=float("nan") if norm is None else norm)

    def __len__(self) -> int:
        return len(self.table)

    def _repr_html_(self) -> str:
        shown = self.table.sort_values("rank").query(f"rank <= 5 or rank > {len(self) - 5}")
        head = (
            f"<p>{len(self):,} latents after block {self.layer}, {self.n_base:,} and {self.n_tuned:,} tokens of "
            f"{self.conversations[0]:,} and {self.conversations[1]:,} conversations ({self.where}; {self.test} test "
            f"over conversations, each {self.weight} counting equally)</p>"
        )
        fit = ", ".join(f"{escape(name)} {share:.1%}" for name, share in self.fvu.items())
        foot = f"<p>variance unexplained: {fit}</p>" if fit else ""
        foot += f"<p><b>{escape(self.warning)}</b></p>" if self.warning else ""
        return head + shown.to_html(index=False, float_format=lambda value: f"{value:.3g}", border=0) + foot


def _column(by: Ranking) -> str:
    if by not in ("mean", "cosine"):
        raise InputError(f"by={by!r}: use 'mean' or 'cosine'")
    return "rank" if by == "mean" else "cosine_rank"


def only(table: pd.DataFrame, mask: Any) -> pd.DataFrame:
    """The rows that a mask picks."""
    return table.loc[mask]
