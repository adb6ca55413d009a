"""Set comparisons: planted geometry is found, the null holds its level, shared latents stay out, draws are exact."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from geometry.features import FeatureSet, FrequencyMatched, GeometryTable, compare_sets, pairwise_cosine
from geometry.features.draws import Strata, _choose, null_draws, resamples
from geometry.features.nulls import _means
from probes.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sets(sae, inducing, benign, harmful=range(10)):
    return [FeatureSet.of(sae, latents) for latents in (inducing, benign, harmful)]


RATES = torch.rand(64, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("null", ["label_permutation", "random_features", FrequencyMatched(RATES, bins=3)])
def test_a_planted_geometry_is_found(planted, null):
    table = compare_sets(planted, *sets(planted, range(10, 20), range(30, 45)), generator=generator(), null=null)
    assert table.effect > 0.2 and table.p < 0.01 and table.ci[0] > 0
    back = compare_sets(planted, *sets(planted, range(30, 45), range(10, 20)), generator=generator(), null=null)
    assert back.effect == pytest.approx(-table.effect) and back.p > 0.9 and back.ci[1] < 0


def test_figures_are_the_mean_cosines(planted):
    table = compare_sets(planted, *sets(planted, (10, 11, 12), (40, 41)), generator=generator(), n_permutations=10)
    near = [float(pairwise_cosine(planted.W_dec[list(x)], planted.W_dec[:10]).mean()) for x in ((10, 11, 12), (40, 41))]
    summary = table.summary()
    assert [summary["inducing_to_harmful"], summary["benign_to_harmful"]] == pytest.approx(near, abs=1e-6)
    assert table.effect == pytest.approx(near[0] - near[1], abs=1e-6) and summary["null"] == "label_permutation"
    assert table.distances.groupby("set", sort=False).similarity.mean().tolist() == pytest.approx(near, abs=1e-6)


def test_p_equals_the_full_enumeration(planted):
    """All splits of 3 + 3 latents, counted one by one."""
    latents = [10, 11, 12, 40, 41, 42]
    near = pairwise_cosine(planted.W_dec[latents], planted.W_dec[:10]).mean(1).double().numpy()
    splits = [list(split) for split in itertools.combinations(range(6), 3)]
    effects = [near[s].mean() - np.delete(near, s).mean() for s in splits]
    share = np.mean(np.array(effects) >= effects[0] - 1e-9)
    table = compare_sets(
        planted, *sets(planted, latents[:3], latents[3:]), generator=generator(), n_permutations=20_000
    )
    assert table.p == pytest.approx(share, abs=0.01)
    assert table.nulls.effect.mean() == pytest.approx(0, abs=0.01)
    assert sorted(set(table.nulls.effect.round(6))) == pytest.approx(sorted(set(np.round(effects, 6))), abs=2e-6)


@pytest.mark.parametrize("null", ["label_permutation", "random_features", FrequencyMatched(RATES, bins=3)])
def test_under_the_null_p_is_uniform(sae, null):
    """Comparisons of random sets: the share of p at or below each level is that level."""
    drawing, p, n = generator(1), [], 200
    near = pairwise_cosine(sae.W_dec, sae.W_dec[:6]).mean(1).double()[:, None]
    everything = torch.ones(sae.d_sae, dtype=torch.bool)
    for _ in range(n):
        order = torch.randperm(sae.d_sae, generator=drawing)
        strata = Strata(order[:8], order[8:9], order[9:14])
        draws = torch.cat([strata.latents[None], null_draws(null, strata, everything, 99, drawing)])
        means = _means(near, draws, strata)
        effects = means[:, 0, 0] - means[:, 1, 0]
        p.append(float((effects >= effects[0]).double().mean()))
    for level in (0.1, 0.25, 0.5, 0.75):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / n))


def test_the_interval_covers_a_difference_of_populations():
    """Sets drawn from two populations: the 95 % interval holds their difference about that often."""
    drawing, held, n = generator(2), [], 100
    near = torch.cat([torch.randn(500, generator=drawing), 0.3 + torch.randn(500, generator=drawing)]).double()[:, None]
    truth = float(near[:500].mean() - near[500:].mean())
    for _ in range(n):
        left, right = (low + torch.randperm(500, generator=drawing)[:25] for low in (0, 500))
        strata = Strata(left, left[:0], right)
        means = _means(near, resamples(strata, drawing), strata)
        low, high = np.quantile((means[:, 0] - means[:, 1])[:, 0], (0.025, 0.975))
        held.append(low <= truth <= high)
    assert 0.88 <= np.mean(held) <= 0.99


def test_shared_and_harmful_latents_stay_out_of_the_headline(planted):
    inducing, benign = (1, 2, 10, 11, 50), (2, 3, 40, 41, 50)
    table = compare_sets(planted, *sets(planted, inducing, benign), generator=generator(), n_permutations=200)
    alone = compare_sets(planted, *sets(planted, (10, 11), (40, 41)), generator=generator(1), n_permutations=200)
    assert table.effect == pytest.approx(alone.effect)
    assert table.distances.latent.tolist() == [10, 11, 40, 41]
    both = table.row(with_shared=True)
    near = pairwise_cosine(planted.W_dec, planted.W_dec[:10]).mean(1)
    assert both["inducing"] == pytest.approx(float(near[list(inducing)].mean()), abs=1e-6)
    assert (both["n_inducing"], table.row()["n_inducing"], both["n_harmful"]) == (5, 2, 10)
    assert table.summary()["with_shared"]["effect"] == both["effect"]


def test_every_aggregate_is_reported(planted):
    table = compare_sets(
        planted, *sets(planted, range(10, 20), range(30, 40)), generator=generator(), n_permutations=50
    )
    assert len(table.table) == 6 and set(table.table["aggregate"]) == {"mean", "max", "top_q"}
    expected = pairwise_cosine(planted.W_dec[10:20], planted.W_dec[:10]).amax(1).mean()
    assert table.row(aggregate="max")["inducing"] == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(InputError, match="no row"):
        table.row(aggregate="min")


def test_same_generator_same_table(planted):
    def run() -> GeometryTable:
        three = sets(planted, range(10, 20), range(30, 40))
        return compare_sets(planted, *three, generator=generator(4), n_permutations=50)

    assert run().table.equals(run().table) and run().nulls.equals(run().nulls)


def test_p_is_never_zero(planted):
    table = compare_sets(planted, *sets(planted, range(10, 20), range(30, 45)), generator=generator(), n_permutations=9)
    assert table.p == 1 / 10


def test_copies_of_one_direction_have_no_effect(sae):
    same = replace(sae, W_dec=sae.W_dec[:1].expand(64, -1).clone())
    table = compare_sets(same, *sets(same, range(10, 20), range(30, 40)), generator=generator(), n_permutations=20)
    assert table.effect == pytest.approx(0) and table.p == 1


def test_draws_keep_their_strata():
    strata = Strata(torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([4, 5, 6]))
    draws = null_draws("label_permutation", strata, torch.ones(9, dtype=torch.bool), 300, generator())
    assert (draws[:, 2] == 3).all()
    assert {tuple(sorted(row)) for row in draws.tolist()} == {(1, 2, 3, 4, 5, 6)}
    assert len({tuple(sorted(row[:2])) for row in draws.tolist()}) == 10  # all ways to choose 2 of 5


def test_frequency_matched_draws_stay_in_their_bin():
    frequency = torch.tensor([0.0, 0.01, 0.01, 0.02, 0.02, 0.5, 0.5, 0.6, 0.6, 0.0])
    strata = Strata(torch.tensor([1, 5]), torch.tensor([], dtype=torch.long), torch.tensor([6, 0]))
    eligible = torch.ones(10, dtype=torch.bool)
    eligible[2] = False
    draws = null_draws(FrequencyMatched(frequency, bins=2), strata, eligible, 500, generator())
    assert set(draws[:, [0, 3]].flatten().tolist()) == {1, 3, 4}
    assert set(draws[:, [1, 2]].flatten().tolist()) == {5, 6, 7, 8}
    assert all(len(set(row)) == 4 for row in draws.tolist())


def test_random_draws_are_uniform_and_distinct():
    pool = torch.arange(10, 16)
    for size in (1, 3):  # by redrawing repeats, and by sorting
        counts = np.unique(_choose(pool[:4], size, 2400, generator()).numpy(), axis=0, return_counts=True)[1]
        assert len(counts) == (4 if size == 1 else 24) and np.ptp(counts) < 0.6 * counts.mean()
    pairs = np.unique(_choose(torch.arange(9), 2, 7200, generator()).numpy(), axis=0, return_counts=True)
    assert len(pairs[0]) == 72 and pairs[1].min() > 60 and pairs[1].max() < 145  # 100 expected of each ordered pair
    assert all(len(set(row)) == 12 for row in _choose(torch.arange(60), 12, 500, generator()).tolist())
    assert sorted(_choose(pool, 6, 1, generator())[0].tolist()) == pool.tolist()


@pytest.mark.parametrize(
    ("inducing", "benign", "given", "message"),
    [
        ((), (1, 2), {}, "inducing feature set is empty"),
        ((20, 21), (20, 21), {}, "inducing set keeps 0 latent"),
        ((20,), (30, 31), {}, "inducing set keeps 1 latent"),
        ((20, 21), (30, 3), {}, "benign set keeps 1 latent"),
        ((20, 21), (30, 31), {"n_permutations": 0}, "n_permutations=0"),
        ((20, 21), (30, 31), {"null": FrequencyMatched(torch.ones(5))}, "5 entries"),
        ((20, 21), (30, 31), {"null": FrequencyMatched(torch.zeros(64))}, "0 live latents"),
        ((20, 21), (30, 31), {"null": FrequencyMatched(-torch.ones(64))}, "negative"),
        ((20, 21), (30, 31), {"null": FrequencyMatched(torch.eye(64)[20], bins=1)}, "only 1 latents to draw 4"),
    ],
)
def test_bad_comparisons_are_refused(sae, inducing, benign, given, message):
    with pytest.raises(InputError, match=message):
        compare_sets(sae, *sets(sae, inducing, benign), generator=generator(), **given)


def test_a_dead_dictionary_row_is_refused_where_used_and_never_drawn(sae):
    decoder = sae.W_dec.clone()
    decoder[60] = 0
    broken = replace(sae, W_dec=decoder)
    compare_sets(
        broken, *sets(broken, (20, 21), (30, 31)), generator=generator(), null="random_features", n_permutations=500
    )
    with pytest.raises(InputError, match="is zero"):
        compare_sets(broken, *sets(broken, (20, 60), (30, 31)), generator=generator())


@pytest.mark.parametrize("null", ["label_permutation", "random_features", FrequencyMatched(RATES, bins=3)])
def test_rotation_scale_and_order_do_not_matter(planted, null):
    """Turning the residual stream, lengthening decoder rows or listing latents in another order changes no figure."""
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator(8), dtype=torch.float64)).Q.float()
    stretch = torch.linspace(0.2, 7, 64)[:, None]
    inducing, benign = list(range(10, 20)), list(range(30, 45))

    def table(decoder, order: int = 1):
        sae = replace(planted, W_dec=decoder)
        three = sets(sae, inducing[::order], benign[::order], range(10)[::order])
        return compare_sets(sae, *three, generator=generator(), null=null, n_permutations=300)

    first = table(planted.W_dec)
    for other in (table(planted.W_dec @ rotation), table(planted.W_dec * stretch), table(planted.W_dec, -1)):
        assert other.effect == pytest.approx(first.effect, abs=1e-6)
        assert other.p == first.p and other.ci == pytest.approx(first.ci, abs=1e-6)
