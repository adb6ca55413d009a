"""Several fine-tunes side by side: means, ranks, intervals, what all of them share, and the heat map."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from probes import InputError
from saes import aggregate, diff_latents


@pytest.fixture
def tables(topk, made):
    """Three fine-tunes that all raise latent 7 and lower latent 40, each of which raises one of its own too."""

    def tuned(own: int):
        shift = 2.0 * topk.directions[7] - 2.0 * topk.directions[40] + 3.0 * topk.directions[own]
        return made(0, shift=shift)

    return {f"run {own}": diff_latents(made(0), tuned(own), topk) for own in (1, 2, 3)}


def test_means_ranks_and_intervals(tables):
    runs = aggregate(tables)
    deltas = np.stack([t.table["delta_mean"] for t in tables.values()], axis=1)
    np.testing.assert_array_equal(runs.matrix.to_numpy(), deltas)
    assert runs.runs == ("run 1", "run 2", "run 3") and len(runs) == 64
    np.testing.assert_allclose(runs.table["mean_delta"], deltas.mean(1))
    interval = stats.ttest_1samp(deltas, 0, axis=1).confidence_interval()
    moved = deltas.std(1) > 0
    np.testing.assert_allclose(runs.table["low"][moved], interval.low[moved])
    np.testing.assert_allclose(runs.table["mean_rank"], np.mean([t.table["rank"] for t in tables.values()], axis=0))
    assert runs.table.sort_values("rank")["mean_delta"].is_monotonic_decreasing


def test_what_all_share_comes_first(tables):
    runs = aggregate(tables)
    assert runs.top(1)["latent"].item() == 7 and runs.top(1)["n_rose"].item() == 3
    shared = runs.shared()["latent"].tolist()
    assert shared[0] == 7 and not {1, 2, 3} <= set(shared)
    fell = runs.protective()
    assert 40 in fell["latent"].tolist() and (runs.matrix.loc[fell["latent"]] < 0).all(axis=None)


def test_one_run_has_no_interval(tables):
    alone = aggregate({"run": tables["run 1"]}).table
    assert alone["low"].isna().all() and alone["mean_delta"].equals(tables["run 1"].table["delta_mean"])


def test_the_heat_map_shows_both_ends(tables):
    runs = aggregate(tables)
    (heat,) = runs.figure(n=4).data
    assert len(heat.y) == 8 and heat.y[0] == "7" and list(heat.x) == list(runs.runs)
    means = np.asarray(heat.z, dtype=float).mean(1)
    assert (np.diff(means) <= 0).all() and heat.zmin == -heat.zmax
    assert f"latent {runs.top(1)['latent'].item()} most" in runs.figure().layout.title.text
    assert "over 3 runs" in runs._repr_html_()


def test_runs_that_do_not_compare_are_refused(tables):
    with pytest.raises(InputError, match="give at least one"):
        aggregate({})
    odd = replace(tables["run 2"], where="response")
    with pytest.raises(InputError, match=r"run 'run 2' is of .*'response'"):
        aggregate({**tables, "run 2": odd})
