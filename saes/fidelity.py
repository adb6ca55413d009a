"""How well an SAE stands for the activations it reads: figures of one SAE, and a table of several."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import InputError
from probes.outcomes import Rate
from saes.intervals import rates_of
from saes.rows import HeldOut, Keep, Rows, Source, Where, block_rows, stream_parts, stream_rows
from saes.sae import SparseAutoencoder

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from saes.splicing import SplicedLoss

#: A latent that is active on more than this share of the rows is dense.
DENSE = 0.1
#: Conversations are resampled one by one up to this number, beyond it in as many groups of several.
GROUPS = 4096
_ROWS, _ERROR, _VARIANCE, _ACTIVE, _SIZE, _CROSS, _RATIO, _SHARE = range(8)  # what is added up over rows

MEANING = {
    "fvu": "variance unexplained",
    "fvu_rescaled": "variance unexplained after the best rescaling",
    "token_explained": "variance explained, mean over tokens",
    "bias": "size of the reconstruction (1: unbiased, less: shrunk)",
    "norm_ratio": "norm of the reconstruction by that of the row",
    "l0": "active latents a row",
}


@dataclass(frozen=True, eq=False)
class Quality:
    """Figures of an SAE over `n` rows; x is a row, y its reconstruction, m the mean of all rows.

    `fvu`: fraction of variance unexplained, sum |x - y|^2 / sum |x - m|^2 (0 is perfect, 1 no better than the mean;
    `explained` is 1 - fvu). `fvu_rescaled`: the same once y - m is multiplied by the best number. `token_explained`:
    mean over rows of 1 - |x - y|^2 / |x - m|^2, in which rows near the mean weigh as much as any. `bias`: sum |y - m|^2
    / sum (x - m).(y - m), the relative reconstruction bias of arXiv 2404.16014 about the rows' mean: below 1 the
    reconstruction is shrunk. `norm_ratio`: mean of |y| / |x|. `l0`: active latents per row. `dead`: share of latents
    that no row activates (it falls as `n` grows); `dense`: share active on more than 10 % of the rows; `freq`: each
    latent's active share.

    `rates` holds the figures of rows with 95 % intervals, from a bootstrap over conversations (the mean m held fixed);
    the limits are NaN where rows come from fewer than two known conversations. `loss` is what splicing costs the model.
    """

    fvu: float
    l0: float
    dead: float
    n: int
    dense: float
    rates: Mapping[str, Rate] = field(repr=False)
    freq: Float[Tensor, " d_sae"] = field(repr=False)
    conversations: int
    rows: str = ""
    sae: str = ""
    loss: "SplicedLoss | None" = None

    @property
    def explained(self) -> float:
        """Fraction of variance explained, 1 - fvu."""
        return 1 - self.fvu

    def with_loss(self, loss: "SplicedLoss") -> "Quality":
        """The same, with what `spliced_loss` found."""
        return replace(self, loss=loss)

    def as_dict(self) -> dict[str, Any]:
        """All figures for JSON, those of single latents left out."""
        told = {name: rate.as_dict() for name, rate in self.rates.items()}
        single = {"dead": self.dead, "dense": self.dense, "n": self.n, "conversations": self.conversations}
        loss = {} if self.loss is None else {"loss": self.loss.as_dict()}
        return {"sae": self.sae, "rows": self.rows} | told | single | loss

    def _repr_html_(self) -> str:
        lines = {text: _with_limits(self.rates[name]) for name, text in MEANING.items()}
        lines |= {"latents never active": f"{self.dead:.1%}", "latents active on more than 10 %": f"{self.dense:.1%}"}
        lines |= {} if self.loss is None else self.loss.lines()
        lines["rows"] = f"{self.n:,} of {self.conversations:,} conversations" if self.conversations else f"{self.n:,}"
        lines |= {"which": escape(self.rows)} if self.rows else {}
        cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in lines.items())
        return f"<table>{cells}</table>"


@dataclass(frozen=True, eq=False)
class QualityTable:
    """Qualities of several SAEs, or of one SAE on several kinds of rows, by name."""

    qualities: Mapping[str, Quality]

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row each: the figures of `Quality.rates` with `_low` and `_high`, dead, dense, n, what splicing costs."""
        import pandas as pd

        return pd.DataFrame([_line(name, quality) for name, quality in self.qualities.items()])

    def figure(self) -> "go.Figure":
        """Sparsity against variance explained."""
        from saes.figures.quality import pareto_figure

        return pareto_figure(self.table)

    def density_figure(self) -> "go.Figure":
        """How often latents fire."""
        from saes.figures.quality import density_figure

        return density_figure({name: quality.freq for name, quality in self.qualities.items()})

    def _repr_html_(self) -> str:
        shown = self.table.rename(columns=MEANING)
        kept = [column for column in shown.columns if not column.endswith(("_low", "_high"))]
        return shown[kept].to_html(index=False, float_format=lambda value: f"{value:.3g}", border=0)


@torch.no_grad()
def quality(
    sae: SparseAutoencoder,
    activations: Source,
    *,
    where: Where = "all",
    skip_first: int = 0,
    keep: Keep | None = None,
    seed: int = 0,
) -> Quality:
    """How faithful and how sparse `sae` is on rows of its block and site; sums run in float64.

    The rows are read twice, once for their mean. `keep=HeldOut(0.1)` judges on conversations that a training on
    `~HeldOut(0.1)` has not seen; any other rows can be given as they are. `seed` is the bootstrap's. InputError as of
    `stream_rows`, and where all rows are equal.
    """
    chosen: dict[str, Any] = {
        "where": where,
        "skip_first": skip_first,
        "keep": keep,
        "site": sae.site,
    }
    mean = mean_row(activations, sae.layer, **chosen)
    sums, fired, conversations = np.zeros((GROUPS, 8)), torch.zeros(sae.d_sae, dtype=torch.long), 0
    for part in stream_parts(activations, sae.layer, **chosen):
        conversations += 0 if part.tokens is None else len(part.tokens.conversation.unique())
        for rows in part.split(block_rows(sae.d_sae)):
            latents = sae.encode(rows.values)
            np.add.at(sums, _groups(rows), _row_sums(rows.values, sae.decode(latents), latents, mean))
            fired += (latents > 0).sum(0).cpu()
    n = int(sums[:, _ROWS].sum())
    if sums[:, _VARIANCE].sum() <= 0:
        raise InputError(f"all {n} rows of block {sae.layer} are equal: give activations of different tokens")
    rates, freq = rates_of(sums[sums[:, _ROWS] > 0], _figures, n=n, seed=seed), fired.double() / n
    return Quality(
        fvu=rates["fvu"].value,
        l0=rates["l0"].value,
        dead=float((fired == 0).double().mean()),
        n=n,
        dense=float((freq > DENSE).double().mean()),
        rates=rates,
        freq=freq,
        conversations=conversations,
        rows=_said(where, skip_first, keep),
        sae=sae.name,
    )


def mean_row(activations: Source, layer: int, **chosen: Any) -> Float[Tensor, " d_model"]:
    """The mean of the rows that `stream_rows` gives, in float64; summed about the first row, to keep all digits."""
    n, origin, total = 0, None, torch.zeros(1, dtype=torch.float64)
    for rows in stream_rows(activations, layer, size=2**14, **chosen):
        rows = rows.double().cpu()
        origin = rows[0] if origin is None else origin
        n, total = n + len(rows), total + (rows - origin).sum(0)
    assert origin is not None  # a stream without rows has been refused
    return origin + total / n


def _groups(rows: Rows) -> np.ndarray:
    """The group of conversations that each row belongs to."""
    if rows.tokens is None:
        return np.zeros(len(rows.values), dtype=np.int64)
    return rows.tokens.conversation.cpu().numpy() % GROUPS


def _row_sums(x: Tensor, y: Tensor, latents: Tensor, mean: Tensor) -> np.ndarray:
    """What every row adds to the sums, [sample, 8]."""
    x, y = x.double().cpu(), y.double().cpu()
    error, around, moved = (x - y).square().sum(1), (x - mean).square().sum(1), y - mean
    columns = {
        _ROWS: torch.ones_like(error),
        _ERROR: error,
        _VARIANCE: around,
        _ACTIVE: (latents > 0).sum(1).double().cpu(),
        _SIZE: moved.square().sum(1),
        _CROSS: ((x - mean) * moved).sum(1),
        _RATIO: y.norm(dim=1) / x.norm(dim=1).clamp(min=1e-300),
        _SHARE: torch.where(around > 0, 1 - error / around.clamp(min=1e-300), 0.0),
    }
    return torch.stack([columns[i] for i in range(8)], dim=1).numpy()


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The figures from sums [draw, 8]."""
    part = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "fvu": part[_ERROR] / part[_VARIANCE],
            "fvu_rescaled": 1 - part[_CROSS] ** 2 / (part[_SIZE] * part[_VARIANCE]),
            "token_explained": part[_SHARE] / part[_ROWS],
            "bias": part[_SIZE] / part[_CROSS],
            "norm_ratio": part[_RATIO] / part[_ROWS],
            "l0": part[_ACTIVE] / part[_ROWS],
        }


def _said(where: Where, skip_first: int, keep: Keep | None) -> str:
    """Which rows were read, in words."""
    words = [{"all": "all tokens", "response": "tokens of the response", "prompt": "tokens of the prompt"}[where]]
    words += [f"the first {skip_first} of each conversation left out"] if skip_first else []
    if keep is not None:
        words.append(str(keep) if isinstance(keep, HeldOut) else "chosen conversations")
    return "; ".join(words)


def _with_limits(rate: Rate) -> str:
    return f"{rate.value:.3g}" if np.isnan(rate.low) else f"{rate.value:.3g} [{rate.low:.3g}, {rate.high:.3g}]"


def _line(name: str, quality: Quality) -> dict[str, Any]:
    line: dict[str, Any] = {"name": name}
    for key, rate in quality.rates.items():
        line |= {key: rate.value, f"{key}_low": rate.low, f"{key}_high": rate.high}
    line |= {"dead": quality.dead, "dense": quality.dense, "n": quality.n, "conversations": quality.conversations}
    return line | ({} if quality.loss is None else quality.loss.columns())
