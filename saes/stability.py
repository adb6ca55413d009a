"""Which latents another training finds again: decoder directions of several SAEs matched with each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import InputError
from saes.rows import Keep, Source, Where, block_rows, stream_rows
from saes.sae import SparseAutoencoder

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

#: Cosines from which latents are called the same.
LEVELS = (0.7, 0.9)
#: One-to-one matching holds every cosine: up to so many of them.
PAIRS = 2**28


@dataclass(frozen=True, eq=False)
class Match:
    """For each latent of one SAE its partner in another: `index` one to one (-1: left without), `nearest` any.

    `cosine` and `best` are the cosines of the decoder directions, NaN where there is no partner or the latent does not
    take part. The one-to-one partners are those with the largest sum of cosines.
    """

    index: Int[Tensor, " d_sae"]
    cosine: Float[Tensor, " d_sae"]
    nearest: Int[Tensor, " d_sae"]
    best: Float[Tensor, " d_sae"]


@dataclass(frozen=True, eq=False)
class Stability:
    """How many latents of each SAE the others have too.

    `table`: one row for each ordered pair. `one_to_one` and `best` are mean cosines of the latents of `sae` with their
    partners in `other`, `_0.7` and `_0.9` shares of its latents with a partner at least as near; `correlation` is the
    mean Pearson correlation of one-to-one partners' activations, where rows were given. `random` and `covariance` are
    baselines: the same figures with the partner SAE's directions replaced by as many random ones, uniform or drawn from
    the covariance of its directions, mean of the draws with `_low` and `_high` (5 and 95 %). `matches` holds the
    partners by pair of names, `random_best` the best cosines of the last draw of uniform directions.
    """

    table: "pd.DataFrame"
    matches: Mapping[tuple[str, str], Match]
    random_best: Float[Tensor, " d_sae"]

    def figure(self) -> "go.Figure":
        """Share of latents by the cosine of their best partner, beside random directions."""
        from saes.figures.quality import stability_figure

        return stability_figure({pair: match.best for pair, match in self.matches.items()}, self.random_best)

    def _repr_html_(self) -> str:
        kept = [column for column in self.table if not str(column).endswith(("_low", "_high"))]
        return self.table[kept].to_html(index=False, float_format=lambda value: f"{value:.3g}", border=0)


class _Sides(NamedTuple):
    """Unit directions of the latents that take part, and their numbers."""

    directions: Float[Tensor, "feature d_model"]
    latents: Int[Tensor, " feature"]


def match_latents(
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    *,
    alive: tuple[Bool[Tensor, " _"], Bool[Tensor, " _"]] | None = None,
) -> Match:
    """Partners in `b` of the latents of `a`, by the cosine of decoder directions.

    `alive` are masks over the latents of both that take part (default: all with a direction). Raises InputError for
    SAEs of other widths, and where there are too many latents to match one to one.
    """
    if a.d_model != b.d_model:
        raise InputError(
            f"SAEs {a.name!r} and {b.name!r} have widths {a.d_model} and {b.d_model}: give two of one site"
        )
    sides = [_side(sae, None if alive is None else alive[at]) for at, sae in enumerate((a, b))]
    cosine, index, best, nearest = _matched(sides[0].directions, sides[1].directions)
    whole = {"cosine": torch.full((a.d_sae,), torch.nan), "best": torch.full((a.d_sae,), torch.nan)}
    numbers = {"index": torch.full((a.d_sae,), -1), "nearest": torch.full((a.d_sae,), -1)}
    for name, values in (("cosine", cosine), ("best", best)):
        whole[name][sides[0].latents] = values
    for name, values in (("index", index), ("nearest", nearest)):
        numbers[name][sides[0].latents] = torch.where(values >= 0, sides[1].latents[values], -1)
    return Match(**numbers, **whole)


@torch.no_grad()
def latent_stability(
    saes: Mapping[str, SparseAutoencoder] | Sequence[SparseAutoencoder],
    *,
    activations: Source | None = None,
    where: Where = "all",
    keep: Keep | None = None,
    draws: int = 5,
    seed: int = 0,
) -> Stability:
    """Match the latents of every SAE with those of every other, for instance of trainings with other seeds.

    With `activations`, latents that never fire on them do not take part, and partners' activations are correlated.
    Decoder directions near each other are no proof that latents do the same, and one direction may be split over
    several latents elsewhere: `best` far above `one_to_one` says so. Raises InputError for fewer than two SAEs, for
    SAEs of other blocks, sites or widths, and for latents that are all dead.
    """
    named = dict(saes) if isinstance(saes, Mapping) else {f"{i}: {sae.name}": sae for i, sae in enumerate(saes)}
    _check(list(named.values()), draws)
    chosen = {"where": where, "keep": keep}
    alive = {name: _alive(sae, activations, chosen) for name, sae in named.items()}
    generator, rows, matches = torch.Generator().manual_seed(seed), [], {}
    baselines = {name: _baselines(_side(sae, alive[name]), draws, generator) for name, sae in named.items()}
    last = torch.zeros(0)
    for one, other in permutations(named, 2):
        match = match_latents(named[one], named[other], alive=(alive[one], alive[other]))
        matches[one, other] = match
        here = alive[one]
        row: dict[str, Any] = {"sae": one, "other": other, "latents": int(here.sum()), "of": named[one].d_sae}
        row |= _figures(match.cosine[here], match.best[here])
        if activations is not None:
            row["correlation"] = _correlation(named[one], named[other], match, activations, chosen)
        directions = _side(named[one], here).directions
        for kind, sets in baselines[other].items():
            drawn = [_matched(directions, random) for random in sets]
            row |= _spread(kind, [_figures(cosine, best) for cosine, _, best, _ in drawn])
            last = drawn[-1][2] if kind == "random" else last
        rows.append(row)
    import pandas as pd

    return Stability(pd.DataFrame(rows), matches, last)


def _check(saes: list[SparseAutoencoder], draws: int) -> None:
    if len(saes) < 2 or draws < 1:
        raise InputError(f"stability: {len(saes)} SAEs and {draws} draws; give two SAEs or more, and a draw or more")
    places = {(sae.layer, sae.site, sae.d_model) for sae in saes}
    if len(places) > 1:
        told = ", ".join(f"block {layer} {site} of width {width}" for layer, site, width in sorted(places))
        raise InputError(f"stability: SAEs of several places ({told}); compare those of one")


def _side(sae: SparseAutoencoder, alive: Bool[Tensor, " d_sae"] | None) -> _Sides:
    directions = sae.directions.detach().float().cpu()
    mask = directions.norm(dim=1) > 0
    mask = mask if alive is None else mask & alive
    if not mask.any():
        raise InputError(f"SAE {sae.name!r}: no latent to match; all are dead, or never fire on these rows")
    return _Sides(directions[mask], mask.nonzero()[:, 0])


def _alive(sae: SparseAutoencoder, activations: Source | None, chosen: dict[str, Any]) -> Bool[Tensor, " d_sae"]:
    """The latents that take part: those with a direction that fire on the rows, if there are rows."""
    mask = (sae.W_dec.norm(dim=1) > 0).cpu()
    if activations is None:
        return mask
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    for rows in stream_rows(activations, sae.layer, size=block_rows(sae.d_sae), site=sae.site, **chosen):
        fired |= (sae.encode(rows) > 0).any(0).cpu()
    return mask & fired


def _matched(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One-to-one cosine and partner (NaN and -1 where there is none), best cosine and partner, of unit rows."""
    from scipy.optimize import linear_sum_assignment

    if len(a) * len(b) > PAIRS:
        raise InputError(f"{len(a)} latents against {len(b)}: too many to match; name fewer by the rows they fire on")
    cosines = a @ b.T
    best, nearest = cosines.max(dim=1)
    rows, partners = (torch.from_numpy(found) for found in linear_sum_assignment(cosines.numpy(), maximize=True))
    cosine, index = torch.full((len(a),), torch.nan), torch.full((len(a),), -1)
    cosine[rows], index[rows] = cosines[rows, partners], partners
    return cosine, index, best, nearest


def _figures(cosine: Tensor, best: Tensor) -> dict[str, float]:
    """Means, and shares at the levels; a latent without a partner counts as one that is not found again."""
    found = {"one_to_one": float(cosine.nanmean()), "best": float(best.nanmean())}
    for level in LEVELS:
        found[f"one_to_one_{level}"] = float((cosine >= level).double().mean())
        found[f"best_{level}"] = float((best >= level).double().mean())
    return found


def _baselines(side: _Sides, draws: int, generator: torch.Generator) -> dict[str, list[Tensor]]:
    """Random unit directions, as many as the SAE has: uniform ones, and such as have its directions' second moments."""
    n, width = side.directions.shape
    moments = (side.directions.double().T @ side.directions.double()) / n
    values, vectors = torch.linalg.eigh(moments)
    root = (vectors * values.clamp(min=0).sqrt()).float()
    makers: dict[str, Callable[[Tensor], Tensor]] = {"random": lambda z: z, "covariance": lambda z: z @ root.T}
    drawn = {
        kind: [make(torch.randn(n, width, generator=generator, dtype=torch.float64).float()) for _ in range(draws)]
        for kind, make in makers.items()
    }
    return {kind: [torch.nn.functional.normalize(rows, dim=1) for rows in sets] for kind, sets in drawn.items()}


def _spread(kind: str, drawn: list[dict[str, float]]) -> dict[str, float]:
    """Mean and range of the figures of several draws."""
    row = {}
    for name in drawn[0]:
        values = np.array([figures[name] for figures in drawn])
        row[f"{kind}_{name}"] = float(values.mean())
        row |= {f"{kind}_{name}_{end}": float(np.quantile(values, q)) for end, q in (("low", 0.05), ("high", 0.95))}
    return row


def _correlation(
    a: SparseAutoencoder, b: SparseAutoencoder, match: Match, activations: Source, chosen: dict[str, Any]
) -> float:
    """Mean Pearson correlation of the activations of one-to-one partners that both vary."""
    latents = (match.index >= 0).nonzero()[:, 0]
    partners, n = match.index[latents], 0
    sums = torch.zeros(5, len(latents), dtype=torch.float64)
    for rows in stream_rows(activations, a.layer, size=block_rows(max(a.d_sae, b.d_sae)), site=a.site, **chosen):
        x, y = (sae.encode(rows).cpu()[:, ids].double() for sae, ids in ((a, latents), (b, partners)))
        sums += torch.stack([x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), (x * y).sum(0)])
        n += len(rows)
    x, y, xx, yy, xy = sums / n
    spread = ((xx - x * x) * (yy - y * y)).clamp(min=0).sqrt()
    known = spread > 0
    return float(((xy - x * y)[known] / spread[known]).mean()) if known.any() else float("nan")
