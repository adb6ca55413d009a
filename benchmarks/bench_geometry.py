"""Feature geometry beside its limit and its peers: set comparison with random sets, and exact nearest neighbours.

`python benchmarks/bench_geometry.py [--quick] [--json FILE] [--threads N] [--rounds N]`

Job "compare": 100 harmful latents against a dictionary of 131,072 at width 2,304, with 1,000 draws of random sets. Ours
is `compare_sets`, which also reports two more aggregates, the comparison with shared latents and a bootstrap; numpy and
scikit-learn take the mean cosine and the draws alone. The limit is the one matrix product of that shape. Job
"neighbours": the 15 nearest of 16,384 directions among themselves; the limit is one product in blocks.
"""

import argparse
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import finish, interleaved, options, rounds_of  # noqa: E402

N_SET, N_DRAWS = 100, 1000
Job = dict[str, Callable[[], Any]]


def dictionary(rows: int, width: int) -> torch.Tensor:
    """Random directions with a common lean, of unequal length."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(rows, width, generator=generator)
    return directions.add_(0.5 * torch.randn(width, generator=generator))


def compare_job(rows: int, width: int) -> Job:
    """The same comparison by all: inducing 0-99, benign 100-199, harmful 200-299."""
    from sklearn.metrics.pairwise import cosine_similarity

    from geometry.features.nulls import compare_sets
    from geometry.features.sets import FeatureSet
    from saes.sae import SparseAutoencoder

    weights = dictionary(rows, width)
    zeros = (torch.zeros(rows), torch.zeros(width))
    sae = SparseAutoencoder(weights.T, weights, *zeros, kind="standard", layer=0, name="random")
    sets = [FeatureSet.of(sae, range(start, start + N_SET)) for start in (0, N_SET, 2 * N_SET)]
    array, harm = weights.numpy(), slice(2 * N_SET, 3 * N_SET)

    def ours() -> tuple[float, float]:
        generator = torch.Generator().manual_seed(1)
        found = compare_sets(sae, *sets, generator=generator, n_permutations=N_DRAWS, null="random_features")
        return found.effect, float(found.nulls["effect"].std())

    def draws(near: np.ndarray) -> tuple[float, float]:
        pool, generator = np.delete(np.arange(rows), np.arange(rows)[harm]), np.random.default_rng(1)
        both = [generator.choice(pool, 2 * N_SET, replace=False, shuffle=False) for _ in range(N_DRAWS)]
        drawn = near[np.stack(both)]
        effects = drawn[:, ::2].mean(1) - drawn[:, 1::2].mean(1)
        return float(near[:N_SET].mean() - near[N_SET : 2 * N_SET].mean()), float(effects.std())

    def with_numpy() -> tuple[float, float]:
        unit = array / np.linalg.norm(array, axis=1, keepdims=True)
        return draws((unit @ unit[harm].T).mean(1))

    def with_sklearn() -> tuple[float, float]:
        return draws(cosine_similarity(array, array[harm]).mean(1))

    answers = [run() for run in (ours, with_numpy, with_sklearn)]
    assert np.ptp([effect for effect, _ in answers]) < 1e-5, answers
    assert np.ptp([spread for _, spread in answers]) < 0.2 * answers[0][1], answers  # other draws, same null
    return {"ours": ours, "limit": lambda: weights @ weights[harm].T, "numpy": with_numpy, "sklearn": with_sklearn}


def neighbours_job(rows: int, width: int, k: int = 15) -> Job:
    """Exact cosine neighbours of all directions."""
    from sklearn.neighbors import NearestNeighbors

    from geometry.features.distances import nearest

    weights = dictionary(rows, width)
    array = weights.numpy()
    search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute")

    def ours() -> np.ndarray:
        return nearest(weights, weights, k=k).index.numpy()

    def with_numpy() -> np.ndarray:
        unit = array / np.linalg.norm(array, axis=1, keepdims=True)
        best = []
        for part in np.array_split(unit, max(1, rows // 4096)):
            cosines = part @ unit.T
            top = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
            order = np.take_along_axis(cosines, top, 1).argsort(1)[:, ::-1]
            best.append(np.take_along_axis(top, order, 1))
        return np.concatenate(best)

    def with_sklearn() -> np.ndarray:
        return search.fit(array).kneighbors(array, return_distance=False)

    def limit() -> None:
        for part in weights.split(4096):
            part @ weights.T

    truth = with_sklearn()
    for run in (ours, with_numpy):
        recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(run()[::97], truth[::97], strict=True)])
        assert recall > 0.999, recall  # ties within rounding
    return {"ours": ours, "limit": limit, "numpy": with_numpy, "sklearn": with_sklearn}


JOBS = {"compare": compare_job, "neighbours": neighbours_job}


def timed(job: Job, rounds: int) -> dict[str, Any]:
    """Median seconds of each contender over interleaved rounds, and our speed over theirs: above 1 ours is faster."""
    seconds = interleaved(job, rounds)
    ratios = {
        f"ours_over_{name}": statistics.median(b / a for a, b in zip(seconds["ours"], values, strict=True))
        for name, values in seconds.items()
        if name != "ours"
    }
    return {"seconds": {name: statistics.median(values) for name, values in seconds.items()}, "ratios": ratios}


def peak_mb(rows: int, width: int) -> float:
    """Peak memory of a fresh process that makes the dictionary and runs our comparison, libraries included."""
    import subprocess

    command = [sys.executable, __file__, "--peak", str(rows), str(width)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(rows: int, width: int) -> None:
    from geometry.features.nulls import compare_sets
    from geometry.features.sets import FeatureSet
    from saes.sae import SparseAutoencoder

    weights = dictionary(rows, width)
    sae = SparseAutoencoder(
        weights.T, weights, torch.zeros(rows), torch.zeros(width), kind="standard", layer=0, name="random"
    )
    sets = [FeatureSet.of(sae, range(start, start + N_SET)) for start in (0, N_SET, 2 * N_SET)]
    generator = torch.Generator().manual_seed(1)
    compare_sets(sae, *sets, generator=generator, n_permutations=N_DRAWS, null="random_features")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Run both jobs, print the figures, write them as JSON if asked."""
    parser = options(__doc__)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        own_peak(*args.peak)
        return
    full = {"compare": (131_072, 2304), "neighbours": (16_384, 2304)}
    sizes = {"compare": (16_384, 512), "neighbours": (4096, 256)} if args.quick else full
    figures: dict[str, Any] = {"peak_mb": peak_mb(*sizes["compare"])}
    for name in args.jobs:
        job = JOBS[name](*sizes[name])
        figures[name] = timed(job, rounds_of(args)) | dict(zip(("rows", "width"), sizes[name], strict=True))
    figures |= {
        "ratios": figures[args.jobs[0]]["ratios"],
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    finish(figures, args)


if __name__ == "__main__":
    main()
