"""Feature geometry beside its limit and its peers, doing the same: set comparison with random sets, exact neighbours.

`python benchmarks/bench_geometry.py [--quick] [--json FILE] [--threads N] [--rounds N] [--jobs compare neighbours]`

Job "compare": 100 harmful latents against a dictionary of 131,072 at width 2,304: mean and largest cosine of every
latent, the effects of 100 inducing against 100 benign ones, 1,000 draws of random latents in their place, without
and with the harmful latents among them, and 2,000 bootstrap resamples. All contenders do all of it; ours is
`compare_sets`. The limit is one matrix product of that shape plus the floor of the draws: as many random
numbers by one call, and the sums of the scores that they pick by one product with a line of weights.
Job "neighbours": the 15 nearest others of 16,384 directions. The limit is one product in blocks; pynndescent searches
approximately, and its recall is given.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import built, child, finish, interleaved, options, own_peak_mb, ratios, rounds_of  # noqa: E402

AGGREGATES = ("mean", "max")
N_SET, N_DRAWS, N_BOOTSTRAP, K = 100, 1000, 2000, 15
SIZES = {"compare": (131_072, 2304), "neighbours": (16_384, 2304)}
QUICK = {"compare": (16_384, 1024), "neighbours": (4096, 512)}
Job = dict[str, Callable[[], Any]]


def dictionary(rows: int, width: int) -> torch.Tensor:
    """Random directions with a common lean, of unequal length."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(rows, width, generator=generator)
    return directions.add_(0.5 * torch.randn(width, generator=generator))


def toy(weights: torch.Tensor) -> tuple[Any, list[Any]]:
    """An SAE of these directions and its sets: inducing 0-99, benign 100-199, harmful 200-299."""
    from geometry import FeatureSet
    from saes.sae import SparseAutoencoder

    rows, width = weights.shape
    zeros = (torch.zeros(rows), torch.zeros(width))
    sae = SparseAutoencoder(weights.T, weights, *zeros, kind="standard", layer=0, name="random")
    return sae, [FeatureSet.of(sae, range(start, start + N_SET)) for start in (0, N_SET, 2 * N_SET)]


def compare_ours(weights: torch.Tensor) -> Callable[[], Any]:
    """`compare_sets` of the three sets: effects `[aggregate]`, their standard deviation under the null, intervals."""
    from geometry import compare_sets

    sae, sets = toy(weights)

    def run() -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        found = compare_sets(
            sae, *sets, generator=generator, n_permutations=N_DRAWS, null="random_features", aggregates=AGGREGATES
        )
        table = found.table[~found.table["with_shared"]]
        return np.vstack([table["effect"], np.full(2, found.nulls["effect"].std()), table["high"] - table["low"]])

    return run


def compare_numpy(weights: torch.Tensor, cosine: Callable[..., np.ndarray] | None = None) -> Callable[[], Any]:
    """The same by numpy, written as one would: normalise, multiply, aggregate, draw and gather."""
    array, harm = weights.numpy(), np.arange(2 * N_SET, 3 * N_SET)

    def cosines() -> np.ndarray:
        unit = array / np.linalg.norm(array, axis=1, keepdims=True)
        return unit @ unit[harm].T

    def effects(near: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        scores = near[drawn]
        return scores[:, :N_SET].mean(1) - scores[:, N_SET:].mean(1)

    def run() -> np.ndarray:
        generator = np.random.default_rng(1)
        found = cosines() if cosine is None else cosine(array, array[harm])
        near = np.stack([found.mean(1), found.max(1)], axis=1)
        own, spread = effects(near, np.arange(2 * N_SET)[None])[0], []
        for pool in (np.delete(np.arange(len(array)), harm), np.arange(len(array))):
            drawn = np.stack([generator.choice(pool, 2 * N_SET, replace=False) for _ in range(N_DRAWS)])
            spread.append(effects(near, drawn).std(0))
            sides = [generator.integers(s * N_SET, (s + 1) * N_SET, (N_BOOTSTRAP, N_SET)) for s in (0, 1)]
            interval = np.ptp(np.quantile(effects(near, np.hstack(sides)), (0.025, 0.975), axis=0), axis=0)
        return np.vstack([own, np.full(2, spread[0][0]), interval])

    return run


def compare_sklearn(weights: torch.Tensor) -> Callable[[], Any]:
    """The same with scikit-learn's cosines; it has no draws of its own, so they are numpy's."""
    from sklearn.metrics.pairwise import cosine_similarity

    return compare_numpy(weights, cosine_similarity)


def compare_limit(weights: torch.Tensor) -> Callable[[], Any]:
    """One product of the dictionary with the harmful latents, and the sums over as many random latents."""
    generator, drawn = torch.Generator().manual_seed(2), (2 * (N_DRAWS + N_BOOTSTRAP), 2 * N_SET)
    scores, line = torch.rand(len(weights), 2, dtype=torch.float64), torch.full((1, 2 * N_SET), 0.01).double()
    harmful = weights[2 * N_SET : 3 * N_SET]

    def run() -> None:
        harmful @ weights.T
        for part in torch.randint(0, len(weights), drawn, generator=generator).split(N_DRAWS):
            line @ scores[part]

    return run


def neighbours_ours(weights: torch.Tensor) -> Callable[[], Any]:
    """`nearest` among the directions."""
    from geometry import nearest

    return lambda: nearest(weights, K).index.numpy()


def neighbours_numpy(weights: torch.Tensor) -> Callable[[], Any]:
    """Blocks of cosines, each cut to its largest."""
    array = weights.numpy()

    def run() -> np.ndarray:
        unit, best = array / np.linalg.norm(array, axis=1, keepdims=True), []
        for rows in np.array_split(np.arange(len(array)), max(1, len(array) // 4096)):
            cosines = unit[rows] @ unit.T
            cosines[np.arange(len(rows)), rows] = -np.inf
            top = np.argpartition(-cosines, K - 1, axis=1)[:, :K]
            order = np.take_along_axis(cosines, top, 1).argsort(1)[:, ::-1]
            best.append(np.take_along_axis(top, order, 1))
        return np.concatenate(best)

    return run


def neighbours_sklearn(weights: torch.Tensor) -> Callable[[], Any]:
    """Its brute-force search by cosine."""
    from sklearn.neighbors import NearestNeighbors

    array, search = weights.numpy(), NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute")
    return lambda: search.fit(array).kneighbors(return_distance=False)


def neighbours_faiss(weights: torch.Tensor) -> Callable[[], Any]:
    """Its flat index of unit vectors by inner product; the nearest of all is the query itself."""
    import faiss

    unit = torch.nn.functional.normalize(weights, dim=1).numpy()

    def run() -> np.ndarray:
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit)
        return index.search(unit, K + 1)[1][:, 1:]

    return run


def neighbours_pynndescent(weights: torch.Tensor) -> Callable[[], Any]:
    """The approximate search that UMAP makes by itself."""
    from pynndescent import NNDescent

    array = weights.numpy()
    return lambda: NNDescent(array, metric="cosine", n_neighbors=K + 1, random_state=0, n_jobs=1).neighbor_graph[0]


def neighbours_limit(weights: torch.Tensor) -> Callable[[], Any]:
    """Every direction times every other, in blocks, and nothing else."""

    def run() -> None:
        for part in weights.split(4096):
            part @ weights.T

    return run


CONTENDERS = {
    "compare": {"ours": compare_ours, "limit": compare_limit, "numpy": compare_numpy, "sklearn": compare_sklearn},
    "neighbours": {
        "ours": neighbours_ours,
        "limit": neighbours_limit,
        "numpy": neighbours_numpy,
        "sklearn": neighbours_sklearn,
        "faiss": neighbours_faiss,
        "pynndescent": neighbours_pynndescent,
    },
}


def agree_compare(answers: dict[str, np.ndarray]) -> dict[str, Any]:
    """The effects are equal; spread under the null and width of the interval, drawn by each its own way, are close."""
    for name, answer in answers.items():
        assert np.abs(answer[0] - answers["numpy"][0]).max() < 1e-5, (name, answers)
        assert np.abs(answer[1:] / answers["numpy"][1:] - 1).max() < 0.2, (name, answers)
    return {}


def agree_neighbours(answers: dict[str, np.ndarray]) -> dict[str, Any]:
    """Recall of each against scikit-learn; the exact ones reach 1 but for ties within rounding."""
    truth = [set(row) for row in answers["sklearn"]]
    recall = {
        name: float(np.mean([len(one & set(row)) / K for one, row in zip(truth, answer, strict=True)]))
        for name, answer in answers.items()
    }
    assert all(value > 0.9995 for name, value in recall.items() if name != "pynndescent"), recall
    return {"recall": recall}


AGREE = {"compare": agree_compare, "neighbours": agree_neighbours}


def measured(name: str, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Seconds and ratios of one job, after its contenders have agreed; a ratio above 1 says that ours is faster."""
    runs, absent = built(CONTENDERS[name], dictionary(*size))
    agreed = AGREE[name]({who: run() for who, run in runs.items() if who != "limit"})
    slow = {who: runs.pop(who) for who in ("pynndescent",) if who in runs}  # timed once: it is no exact search
    seconds, once = interleaved(runs, rounds), interleaved(slow, 1)
    found = ratios(seconds, {f"ours_over_{who}": ("ours", who) for who in runs if who != "ours"})
    one_round = {f"ours_over_{who}": values[0] / float(np.median(seconds["ours"])) for who, values in once.items()}
    found["ratios"] |= one_round
    return found | agreed | {"absent": absent, "rows": size[0], "width": size[1]}


def own_peak(rows: int, width: int) -> None:
    """Make the dictionary, compare once, and print this process's peak memory in MB."""
    compare_ours(dictionary(rows, width))()
    print(own_peak_mb())


def main() -> None:
    """Run the jobs, print the figures, write them as JSON if asked."""
    parser = options(__doc__)
    parser.add_argument("--jobs", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        own_peak(*args.peak)
        return
    sizes = QUICK if args.quick else SIZES
    figures: dict[str, Any] = {"peak_mb": child(__file__, "--peak", *map(str, sizes["compare"]))}
    figures |= {name: measured(name, sizes[name], rounds_of(args)) for name in args.jobs}
    figures["ratios"] = {f"{name}_{key}": r for name in args.jobs for key, r in figures[name]["ratios"].items()}
    figures["versions"] = {"torch": torch.__version__, "numpy": np.__version__}
    finish(figures, args)


if __name__ == "__main__":
    main()
