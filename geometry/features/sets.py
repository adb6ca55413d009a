"""FeatureSet: latents of one SAE that belong together, with the statistic that chose them, and how they are chosen."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import torch
from jaxtyping import Float
from plotly.graph_objects import Figure
from torch import Tensor

from geometry.features.identify import STATISTICS, rank_latents
from geometry.features.rows import row_latents
from probes.activations import Activations
from probes.errors import InputError
from probes.io import read_json, write_json
from probes.store import ActivationStore
from saes.sae import SparseAutoencoder

FORMAT = "persona-geometry/features/1"


@dataclass(frozen=True)
class FeatureSet:
    """Distinct latents of one SAE, strongest first, with the effect and p-value that chose each.

    `p` is None where no test was made. `statistic` is one of `identify.STATISTICS`, or a word of the caller's own.
    """

    sae_name: str
    layer: int
    latents: tuple[int, ...]
    statistic: str
    effect: tuple[float, ...]
    p: tuple[float, ...] | None
    d_sae: int

    def __post_init__(self) -> None:
        _check_latents(self.latents, self.d_sae)
        for name, values in (("effect", self.effect), ("p", self.p)):
            _check_values(name, values, len(self.latents))

    @classmethod
    def of(
        cls,
        sae: SparseAutoencoder,
        latents: Iterable[int],
        *,
        statistic: str = "given",
        effect: Sequence[float] | None = None,
    ) -> "FeatureSet":
        """A set from latent ids chosen elsewhere (a model diff, a causal screen, by hand); effects default to 0."""
        ids = tuple(int(latent) for latent in latents)
        values = (0.0,) * len(ids) if effect is None else tuple(float(value) for value in effect)
        return cls(sae_name(sae), sae.layer, ids, statistic, values, None, sae.d_sae)

    def __len__(self) -> int:
        return len(self.latents)

    def __iter__(self) -> Iterator[int]:
        return iter(self.latents)

    def __contains__(self, latent: object) -> bool:
        return latent in self.latents

    @property
    def index(self) -> Tensor:
        """The latent ids as an int64 tensor `[feature]`."""
        return torch.tensor(self.latents, dtype=torch.long)

    def top(self, n: int) -> "FeatureSet":
        """The first (strongest) n latents."""
        return self._only(range(min(n, len(self))))

    def without(self, other: "FeatureSet") -> "FeatureSet":
        """This set less the latents that `other` holds too."""
        check_same_sae(self, other)
        gone = set(other.latents)
        return self._only(i for i, latent in enumerate(self.latents) if latent not in gone)

    def overlap(self, other: "FeatureSet") -> tuple[int, ...]:
        """Latent ids that both sets hold, ascending."""
        check_same_sae(self, other)
        return tuple(sorted(set(self.latents) & set(other.latents)))

    def jaccard(self, other: "FeatureSet") -> float:
        """Shared latents over all latents of the two: 0 (disjoint) to 1 (equal). `InputError` if both are empty."""
        union = set(self.latents) | set(other.latents)
        if not union:
            raise InputError("both feature sets are empty: their overlap is undefined")
        return len(self.overlap(other)) / len(union)

    def save(self, path: str | Path) -> None:
        """Write the set as JSON."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "FeatureSet":
        """Read a set that `save` wrote; `InputError` if the file is something else."""
        raw = read_json(path)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise InputError(f"{path} is no feature set: format {FORMAT!r} expected")
        try:
            p = None if raw["p"] is None else tuple(map(float, raw["p"]))
            latents, effect = tuple(map(int, raw["latents"])), tuple(map(float, raw["effect"]))
            return cls(raw["sae_name"], raw["layer"], latents, raw["statistic"], effect, p, raw["d_sae"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is a damaged feature set ({error}); write it again") from error

    def figure(self) -> Figure:
        """Bars of the effects, strongest first."""
        from geometry.features.figures import features_figure

        return features_figure(self)

    def _only(self, keep: Iterable[int]) -> "FeatureSet":
        rows = list(keep)
        p = None if self.p is None else tuple(self.p[i] for i in rows)
        latents, effect = tuple(self.latents[i] for i in rows), tuple(self.effect[i] for i in rows)
        return FeatureSet(self.sae_name, self.layer, latents, self.statistic, effect, p, self.d_sae)

    def _repr_html_(self) -> str:
        head = f"<b>{len(self)} latents</b> of {escape(self.sae_name)}, block {self.layer}, by {escape(self.statistic)}"
        cells = "".join(
            f"<tr><td>{latent}</td><td>{effect:.4g}</td></tr>"
            for latent, effect in zip(self.latents[:10], self.effect, strict=False)
        )
        return f"<div>{head}<table><tr><th>latent</th><th>effect</th></tr>{cells}</table></div>"


def sae_name(sae: SparseAutoencoder) -> str:
    """The name a feature set remembers its SAE by: its own, or else its model and hook point."""
    return sae.name or f"{sae.model_name}/{sae.hook}"


def check_same_sae(a: FeatureSet, b: FeatureSet) -> None:
    """`InputError` unless both sets index the latents of the same SAE."""
    if (a.sae_name, a.layer, a.d_sae) != (b.sae_name, b.layer, b.d_sae):
        raise InputError(
            f"feature sets of different SAEs: {a.sae_name} block {a.layer} ({a.d_sae} latents) and "
            f"{b.sae_name} block {b.layer} ({b.d_sae} latents); identify both with one SAE"
        )


def check_fits(features: FeatureSet, sae: SparseAutoencoder, role: str) -> None:
    """`InputError` unless `features` is a non-empty set of latents of `sae`; `role` names it in the message."""
    check_same_sae(features, FeatureSet.of(sae, ()))
    if not features.latents:
        raise InputError(f"the {role} feature set is empty; identify at least one latent")


def identify_features(
    positive: Float[Tensor, "positive d_model"] | Activations | ActivationStore,
    negative: Float[Tensor, "negative d_model"] | Activations | ActivationStore,
    sae: SparseAutoencoder,
    *,
    k: int = 100,
    statistic: str = "mean_diff",
    n_permutations: int = 1000,
    generator: torch.Generator | None = None,
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
    d_sae latents. Without one, `p` is None.
    `InputError` on fewer than 2 rows a side, on NaN, and where fewer than k latents lean to the positive side.
    """
    if statistic not in STATISTICS:
        raise InputError(f"unknown statistic {statistic!r}; use one of {', '.join(STATISTICS)}")
    if not 1 <= k <= sae.d_sae:
        raise InputError(f"k={k} latents asked of an SAE that has {sae.d_sae}; use 1 to {sae.d_sae}")
    sides = {"positive": row_latents(positive, sae), "negative": row_latents(negative, sae)}
    for side, values in sides.items():
        if len(values) < 2:
            raise InputError(f"{len(values)} {side} row(s): a contrast needs at least 2 rows a side")
    n = n_permutations if generator is not None else 0
    chosen = rank_latents(sides["positive"], sides["negative"], k=k, statistic=statistic, n=n, generator=generator)
    return FeatureSet(
        sae_name(sae), sae.layer, chosen.latents, statistic, chosen.effect, chosen.p if n else None, sae.d_sae
    )


def _check_latents(latents: tuple[int, ...], d_sae: int) -> None:
    if len(set(latents)) != len(latents):
        twice = next(latent for latent in latents if latents.count(latent) > 1)
        raise InputError(f"latent {twice} is in the feature set twice; list each latent once")
    outside = [latent for latent in latents if not 0 <= latent < d_sae]
    if outside:
        raise InputError(f"latent {outside[0]} does not exist: the SAE has latents 0 to {d_sae - 1}")


def _check_values(name: str, values: tuple[float, ...] | None, n: int) -> None:
    if values is None and name == "p":
        return
    if values is None or len(values) != n:
        raise InputError(f"{name} has {0 if values is None else len(values)} values for {n} latents; give one each")
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"{name} of a feature set holds NaN or infinity; it must be finite")
