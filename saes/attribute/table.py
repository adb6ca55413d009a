"""Attribution: what was found, one row a latent."""

from dataclasses import dataclass
from typing import Literal

import pandas as pd


@dataclass(frozen=True, eq=False)
class Attribution:
    """One row per latent, in the latents' order.

    `attribution` is in nats per answer token: positive where the latent makes the answers likelier (of a contrast: the
    undesired ones more than the desired ones). `low` and `high` are its 95 % t interval over the `n` conversations (of
    a contrast: prompts), `effect` its mean over their standard deviation, `p` the two-sided test that it is zero, `q`
    that after Benjamini and Hochberg; NaN where nothing was there to be attributed. `rank` is 1 for the largest. A
    contrast has `undesired` and `desired` too, and counts both sides' `completions`.

    `loss` is the mean loss (of a contrast: undesired less desired). `tokens` holds the values of the latents that were
    kept, each in a column of its number, a row a token.
    """

    table: pd.DataFrame
    sae_name: str
    layer: int
    form: Literal["latent", "direction"]
    reference: Literal["mean", "zero"]
    positions: str
    n: int
    loss: float
    completions: tuple[int, int] | None = None
    tokens: pd.DataFrame | None = None

    def top(self, n: int) -> pd.DataFrame:
        """The `n` latents that support the answers most (of a contrast: the undesired ones), the first one first."""
        return self.table.nsmallest(n, "rank").reset_index(drop=True)

    def bottom(self, n: int) -> pd.DataFrame:
        """The `n` latents that speak against them most, the strongest first."""
        return self.table.nlargest(n, "rank").reset_index(drop=True)

    def figure(self, n: int = 10):
        """Bars of the `n` largest and the `n` smallest attributions, with their intervals."""
        from saes.figures import attribution_figure

        return attribution_figure(self.table, n=n, contrast=self.completions is not None)

    def __len__(self) -> int:
        return len(self.table)

    def _repr_html_(self) -> str:
        shown = self.table.sort_values("rank").query(f"rank <= 5 or rank > {len(self) - 5}")
        units = f"{self.n:,} conversations"
        if self.completions:
            units = (
                f"{self.completions[0]:,} undesired and {self.completions[1]:,} desired answers to {self.n:,} prompts"
            )
        head = (
            f"<p>{len(self):,} latents after block {self.layer}, nats per answer token ({units}; the {self.form} form, "
            f"against {self.reference})</p>"
        )
        return head + shown.to_html(index=False, float_format=lambda value: f"{value:.3g}", border=0)
