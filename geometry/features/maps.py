"""A flat map of decoder directions: UMAP over exact nearest neighbours beside PCA, each with its trustworthiness."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from plotly.graph_objects import Figure
from torch import Tensor

from geometry.features.distances import unit_rows
from geometry.features.neighbours import nearest
from geometry.features.sets import FeatureSet
from probes.errors import InputError

TRUST_POINTS = 4096


@dataclass(frozen=True, eq=False)
class DecoderMap:
    """Coordinates of directions in the plane. Distances on the map are not distances in the model: see the trust.

    `umap` and `pca` are the coordinates, `explained` the share of variance of the two PCA axes. `trust_umap` and
    `trust_pca` are trustworthiness in [0, 1] (1: every neighbour on the map is a neighbour in the model), measured on
    `trust_points` of the directions. `latents` names the rows.
    """

    latents: tuple[int, ...]
    umap: Float[Tensor, "feature 2"]
    pca: Float[Tensor, "feature 2"]
    explained: tuple[float, float]
    trust_umap: float
    trust_pca: float
    n_neighbors: int
    trust_points: int

    def table(
        self, groups: Mapping[str, FeatureSet] | None = None, labels: Mapping[int, str] | None = None
    ) -> pd.DataFrame:
        """One row per direction: `latent`, `x`, `y` (UMAP), `pca_x`, `pca_y`, `group`, `label`.

        A latent's group is the set that holds it, "shared" if several do, "other" if none.
        """
        group = _groups(self.latents, groups or {})
        xy, pca = self.umap.numpy(), self.pca.numpy()
        columns = {"latent": list(self.latents), "x": xy[:, 0], "y": xy[:, 1], "pca_x": pca[:, 0], "pca_y": pca[:, 1]}
        names = [(labels or {}).get(latent, "") for latent in self.latents]
        return pd.DataFrame({**columns, "group": group, "label": names})

    def figure(self, groups: Mapping[str, FeatureSet] | None = None, labels: Mapping[int, str] | None = None) -> Figure:
        """The UMAP, coloured by feature set; `labels` are hover texts of latents."""
        from geometry.features.figures import map_figure

        return map_figure(self.table(groups, labels), trust=self.trust_umap)

    def _repr_html_(self) -> str:
        return (
            f"<div>Map of <b>{len(self.latents)}</b> directions; trustworthiness {self.trust_umap:.2f} (UMAP), "
            f"{self.trust_pca:.2f} (PCA, {sum(self.explained):.0%} of the variance)</div>"
        )


def decoder_map(
    directions: Float[Tensor, "feature d_model"],
    *,
    seed: int,
    n_neighbors: int = 15,
    min_dist: float = 0.1,
    latents: Sequence[int] | None = None,
) -> DecoderMap:
    """Map unit directions into the plane by UMAP (arXiv 1802.03426) over exact cosine neighbours, and by PCA.

    The neighbours are found by matrix products, not by UMAP's approximate search. `seed` fixes the layout: the same
    input on the same machine gives the same map. `latents` names the rows (0, 1, ... by default). Trustworthiness
    (scikit-learn's, with min(n_neighbors, (points - 1) // 2) neighbours) is taken on at most 4,096 rows, evenly spaced.
    `InputError` on a zero or NaN direction, on n_neighbors outside 2..feature - 1, and if all directions are one.
    """
    names = tuple(range(len(directions))) if latents is None else tuple(int(latent) for latent in latents)
    if len(names) != len(directions):
        raise InputError(f"{len(names)} latent names for {len(directions)} directions; give one each")
    if not 2 <= n_neighbors < len(directions):
        raise InputError(f"n_neighbors={n_neighbors} for {len(directions)} directions; use 2 to {len(directions) - 1}")
    unit = unit_rows(directions.detach())
    if float((unit - unit[0]).abs().max()) < 1e-6:
        raise InputError(f"all {len(unit)} directions are the same: there is nothing to map")
    umap = _umap(unit, n_neighbors, min_dist, seed)
    pca, explained = _pca(unit, seed)
    sample = np.linspace(0, len(unit) - 1, min(len(unit), TRUST_POINTS)).round().astype(int)
    return DecoderMap(
        latents=names,
        umap=torch.from_numpy(umap.astype(np.float32)),
        pca=torch.from_numpy(pca.astype(np.float32)),
        explained=explained,
        trust_umap=_trust(unit, umap, sample, n_neighbors),
        trust_pca=_trust(unit, pca, sample, n_neighbors),
        n_neighbors=n_neighbors,
        trust_points=len(sample),
    )


def neighbourhood(
    directions: Float[Tensor, "feature d_model"], latents: Sequence[int], *, n: int = 20
) -> Int[Tensor, " kept"]:
    """The given latents and the n nearest others of each, ascending: what to map when the dictionary is large."""
    ids = torch.as_tensor(list(latents), dtype=torch.long, device=directions.device)
    if len(ids) == 0:
        raise InputError("no latents to take the neighbourhood of; give at least one")
    found = nearest(directions, min(n + 1, len(directions)), queries=directions[ids])
    return torch.cat([ids, found.index.flatten()]).unique().cpu()


def neighbour_table(
    directions: Float[Tensor, "feature d_model"],
    groups: Mapping[str, FeatureSet],
    *,
    of: str = "harmful",
    n: int = 5,
    labels: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """What lies round a set in the model itself, to be read before the map: the n nearest others of each latent.

    Columns `latent`, `rank` (1 = nearest), `neighbour`, `cosine`, `group` of the neighbour (as in `DecoderMap.table`)
    and `label`. Row i of `directions` is latent i. `InputError` if there is no such group, or an empty one.
    """
    if of not in groups or not len(groups[of]):
        raise InputError(f"no feature set {of!r}, or an empty one; there are {', '.join(groups) or 'none'}")
    own = groups[of].index.to(directions.device)
    found = nearest(directions, min(n + 1, len(directions)), queries=directions[own])
    rows = []
    for latent, index, cosines in zip(groups[of], found.index.tolist(), found.similarity.tolist(), strict=True):
        others = [(i, c) for i, c in zip(index, cosines, strict=True) if i != latent][:n]
        rows += [(latent, rank, i, c) for rank, (i, c) in enumerate(others, start=1)]
    table = pd.DataFrame(rows, columns=["latent", "rank", "neighbour", "cosine"])
    near = table["neighbour"].tolist()
    return table.assign(group=_groups(near, groups), label=[(labels or {}).get(i, "") for i in near])


def _groups(latents: Sequence[int], groups: Mapping[str, FeatureSet]) -> list[str]:
    """The set that holds each latent, "shared" where several do, "other" where none."""
    held = [[name for name, features in groups.items() if latent in features] for latent in latents]
    return [sets[0] if len(sets) == 1 else "shared" if sets else "other" for sets in held]


def _neighbours(unit: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact k nearest rows of each row as UMAP wants them: the row itself first, then cosine distances ascending."""
    found = nearest(unit, k - 1)
    own = torch.arange(len(unit), device=unit.device)[:, None]
    distances = (1 - found.similarity).clamp(min=0)
    index = torch.cat([own, found.index], dim=1)
    return index.cpu().numpy(), torch.cat([torch.zeros_like(distances[:, :1]), distances], dim=1).float().cpu().numpy()


def _umap(unit: Tensor, n_neighbors: int, min_dist: float, seed: int) -> np.ndarray:
    from umap import UMAP

    layout = UMAP(
        n_neighbors=n_neighbors,
        min_dist=min_dist,
        metric="cosine",
        init="pca",
        random_state=seed,
        n_jobs=1,  # what a seed forces anyway, with a warning
        precomputed_knn=_neighbours(unit, n_neighbors),
    )
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            # we never call transform, which is all that the missing search index rules out
            warnings.filterwarnings("ignore", message="precomputed_knn.*transform")
            return np.asarray(layout.fit_transform(unit.float().cpu().numpy()))
    finally:
        torch.set_num_threads(threads)  # numba, which UMAP runs on, sets torch's threads to all cores


def _pca(unit: Tensor, seed: int) -> tuple[np.ndarray, tuple[float, float]]:
    from sklearn.decomposition import PCA

    fit = PCA(n_components=2, svd_solver="covariance_eigh", random_state=seed)
    plane = fit.fit_transform(unit.double().cpu().numpy())
    first, second = fit.explained_variance_ratio_
    return plane, (float(first), float(second))


def _trust(unit: Tensor, plane: np.ndarray, sample: np.ndarray, n_neighbors: int) -> float:
    from sklearn.manifold import trustworthiness

    neighbours = min(n_neighbors, (len(sample) - 1) // 2)
    return float(trustworthiness(unit.cpu().numpy()[sample], plane[sample], n_neighbors=neighbours))
