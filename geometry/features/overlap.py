"""What feature sets share: how much more than chance, and the sets without it."""

import itertools
from collections.abc import Mapping

import pandas as pd

from geometry.features.sets import FeatureSet
from probes.errors import InputError


def overlap_table(sets: Mapping[str, FeatureSet]) -> pd.DataFrame:
    """One row per pair of sets: do they share more latents than two random sets of their sizes?

    Columns `a`, `b`, `n_a`, `n_b`, `shared`, `expected` (n_a n_b / d_sae), `jaccard`, `p` (hypergeometric, one-sided,
    the chance of as many shared latents), `latents` (the shared ones, ascending). Sets read off the same data share
    more than chance for that reason alone. `InputError` on fewer than two sets, on an empty one, on several SAEs.
    """
    from scipy.stats import hypergeom

    if len(sets) < 2:
        raise InputError(f"{len(sets)} feature set(s): an overlap needs two or more")
    empty = [name for name, features in sets.items() if not features.latents]
    if empty:
        raise InputError(f"the {empty[0]} feature set is empty; identify at least one latent")
    rows = []
    for (a, mine), (b, other) in itertools.combinations(sets.items(), 2):
        shared, n, m, d_sae = mine.overlap(other), len(mine), len(other), mine.d_sae
        p = float(hypergeom.sf(len(shared) - 1, d_sae, n, m))
        sizes = {"a": a, "b": b, "n_a": n, "n_b": m, "shared": len(shared), "expected": n * m / d_sae}
        rows.append({**sizes, "jaccard": mine.jaccard(other), "p": p, "latents": shared})
    return pd.DataFrame(rows)


def disjoint(sets: Mapping[str, FeatureSet]) -> dict[str, FeatureSet]:
    """Each set without the latents that any other holds too. `InputError` names a set of which nothing is left."""
    left = {}
    for name, features in sets.items():
        for other, held in sets.items():
            features = features if other == name else features.without(held)
        if not features.latents:
            raise InputError(f"the {name} set shares all its {len(sets[name])} latents with others: take a larger k")
        left[name] = features
    return left
