"""FeatureSet: latents of one SAE that belong together, with the statistic that chose them and where they come from."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from plotly.graph_objects import Figure
from torch import Tensor

from probes.errors import InputError
from probes.io import read_json, write_json
from saes.sae import SparseAutoencoder

FORMAT = "persona-geometry/features/2"
SAMPLED = 256  # latents that an SAE's digest reads


@dataclass(frozen=True)
class FeatureSet:
    """Distinct latents of one SAE, strongest first, with the effect and p-value that chose each.

    `p` is the family-wise p (of the largest of all latents), `q` the false discovery rate at which the latent is taken;
    None where no test was made. `statistic` is one of `ranking.STATISTICS`, or a word of the caller's own. `sae_digest`
    tells SAEs of one name apart; `made` says from what data, of how many rows.
    """

    sae_name: str
    layer: int
    latents: tuple[int, ...]
    statistic: str
    effect: tuple[float, ...]
    p: tuple[float, ...] | None
    d_sae: int
    q: tuple[float, ...] | None = None
    sae_digest: str = ""
    made: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_latents(self.latents, self.d_sae)
        for name, values in (("effect", self.effect), ("p", self.p), ("q", self.q)):
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

    def significant(self, rate: float = 0.05) -> "FeatureSet":
        """The latents whose q is at most `rate`: of these about that share is expected to be there by chance."""
        if self.q is None:
            raise InputError("this feature set was not tested: it has no q; identify it with identify_features")
        return self._only(i for i, q in enumerate(self.q) if q <= rate)

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
            p, q = (None if raw[name] is None else tuple(map(float, raw[name])) for name in ("p", "q"))
            latents, effect = tuple(map(int, raw["latents"])), tuple(map(float, raw["effect"]))
            named = {name: raw[name] for name in ("sae_name", "layer", "statistic", "d_sae", "sae_digest", "made")}
            return cls(**named, latents=latents, effect=effect, p=p, q=q)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is a damaged feature set ({error}); write it again") from error

    def figure(self) -> Figure:
        """Bars of the effects, strongest first."""
        from geometry.features.figures import features_figure

        return features_figure(self)

    def _only(self, keep: Iterable[int]) -> "FeatureSet":
        rows = list(keep)
        p, q = (None if x is None else tuple(x[i] for i in rows) for x in (self.p, self.q))
        latents, effect = tuple(self.latents[i] for i in rows), tuple(self.effect[i] for i in rows)
        return replace(self, latents=latents, effect=effect, p=p, q=q)

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


def sae_digest(sae: SparseAutoencoder) -> str:
    """Sixteen hex digits of an SAE's weights: of 256 evenly spaced latents, rounded so that number types agree."""
    rows = torch.linspace(0, sae.d_sae - 1, min(SAMPLED, sae.d_sae)).round().long().to(sae.device)
    digest = hashlib.sha256(f"{sae.kind} {sae.layer} {sae.d_model} {sae.d_sae}".encode())
    for part in (sae.W_enc[:, rows], sae.W_dec[rows], sae.b_enc[rows]):
        digest.update(part.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_same_sae(a: FeatureSet, b: FeatureSet) -> None:
    """`InputError` unless both sets index the latents of the same SAE."""
    if (a.sae_name, a.layer, a.d_sae) != (b.sae_name, b.layer, b.d_sae):
        raise InputError(
            f"feature sets of different SAEs: {a.sae_name} block {a.layer} ({a.d_sae} latents) and "
            f"{b.sae_name} block {b.layer} ({b.d_sae} latents); identify both with one SAE"
        )
    if a.sae_digest and b.sae_digest and a.sae_digest != b.sae_digest:
        raise InputError(
            f"two SAEs go by the name {a.sae_name}: weights {a.sae_digest} and {b.sae_digest}; identify both with one"
        )


def check_fits(features: FeatureSet, sae: SparseAutoencoder, role: str) -> None:
    """`InputError` unless `features` is a non-empty set of latents of `sae`; `role` names it in the message."""
    known = sae_digest(sae) if features.sae_digest else ""
    check_same_sae(features, replace(FeatureSet.of(sae, ()), sae_digest=known))
    if not features.latents:
        raise InputError(f"the {role} feature set is empty; identify at least one latent")


def _check_latents(latents: tuple[int, ...], d_sae: int) -> None:
    if len(set(latents)) != len(latents):
        twice = next(latent for latent in latents if latents.count(latent) > 1)
        raise InputError(f"latent {twice} is in the feature set twice; list each latent once")
    outside = [latent for latent in latents if not 0 <= latent < d_sae]
    if outside:
        raise InputError(f"latent {outside[0]} does not exist: the SAE has latents 0 to {d_sae - 1}")


def _check_values(name: str, values: tuple[float, ...] | None, n: int) -> None:
    if values is None and name != "effect":
        return
    if values is None or len(values) != n:
        raise InputError(f"{name} has {0 if values is None else len(values)} values for {n} latents; give one each")
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"{name} of a feature set holds NaN or infinity; it must be finite")
