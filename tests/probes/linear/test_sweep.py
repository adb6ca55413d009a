"""The sweep over blocks, its baselines, and transfer: planted signals are found, noise is not, leaks are refused."""

import numpy as np
import pytest
import torch

from probes import (
    Activations,
    Baselines,
    InputError,
    LdaProbe,
    MeanDifferenceProbe,
    selectivity,
    sweep_layers,
    transfer_matrix,
)
from probes.linear.baselines import random_scores, shuffled


def test_the_planted_block_is_found(planted):
    acts, labels, groups = planted()
    sweep = sweep_layers(acts, labels, groups=groups, estimator=MeanDifferenceProbe())
    table = sweep.table.set_index("layer")
    assert sweep.best == 5 and table.loc[5, "auroc"] > 0.99
    assert table.loc[3, "low"] < 0.5 < table.loc[3, "high"]
    for layer in (3, 5):
        assert table.loc[layer, "shuffled"] == pytest.approx(0.5, abs=0.1)
        assert table.loc[layer, "n"] == 120 and table.loc[layer, "groups"] == 20
    assert 0.5 < table.loc[5, "random"] < table.loc[5, "covariance"] < table.loc[5, "auroc"]
    assert sweep_layers(acts, labels, groups=groups, estimator=MeanDifferenceProbe()).table.equals(sweep.table)
    assert sweep_layers(acts, np.where(labels, "b", "a"), groups=groups, estimator=MeanDifferenceProbe()).table.equals(
        sweep.table
    )


def test_what_a_group_gives_away_does_not_count():
    """Each group has an axis of its own and one label: folds that split groups would know them all by heart."""
    groups = np.repeat(np.arange(20), 6)
    labels = groups % 2
    values = 5 * torch.eye(20)[groups] + 0.1 * torch.randn(120, 20, generator=torch.Generator().manual_seed(0))
    acts = Activations(values[None], (0,), "response_mean", "hash", torch.arange(120))
    settings = {"estimator": LdaProbe(), "baselines": Baselines(shuffles=20)}
    honest = sweep_layers(acts, labels, groups=groups, **settings).table.iloc[0]
    fooled = sweep_layers(acts, labels, **settings).table.iloc[0]
    assert honest["auroc"] < 0.8 and fooled["auroc"] == 1
    assert honest["control_accuracy"] > 0.95 and abs(honest["selectivity"]) < 0.05
    assert honest["shuffled_low"] < 0.5 < honest["shuffled_high"]


def test_a_general_signal_is_selective(planted):
    acts, labels, groups = planted(n=240, per_group=4)
    X = acts.at(5).double().numpy()
    found = selectivity(MeanDifferenceProbe(), X, labels == 1, groups, np.arange(240), draws=5)
    assert found.accuracy > 0.93 and found.control == pytest.approx(0.5, abs=0.12)
    assert found.value == found.accuracy - found.control > 0.35
    lonely = selectivity(MeanDifferenceProbe(), X, labels == 1, np.arange(240), np.arange(240))
    assert np.isnan(lonely.value)  # no type that was trained on could be tested


def test_baselines_can_be_left_out(planted):
    acts, labels, groups = planted()
    none = Baselines(shuffles=0, random=0, controls=0)
    sweep = sweep_layers(acts, labels, groups=groups, estimator=MeanDifferenceProbe(), baselines=none)
    assert sweep.table[["shuffled", "random", "covariance", "selectivity"]].isna().all(axis=None)
    assert sweep.table["auroc"].notna().all()
    with pytest.raises(InputError, match="0 or more"):
        Baselines(random=-1)


def test_shuffled_labels_keep_their_ties():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(30), 4)
    tied = shuffled(groups % 2 == 0, (groups, np.arange(120)), rng)
    assert all(len(set(tied[groups == g])) == 1 for g in range(30)) and tied.sum() == 60
    assert (tied != (groups % 2 == 0)).any()
    mixed = shuffled(np.arange(120) % 2 == 0, (groups, np.repeat(np.arange(60), 2)), rng)
    assert mixed.sum() == 60 and any(len(set(mixed[groups == g])) == 2 for g in range(30))


def test_random_directions_are_pointed_on_training_samples_alone():
    """Where the test fold is the other way round, a direction pointed by training must get it wrong."""
    labels = np.array([False, True] * 20)
    X = np.where(labels, 1.0, -1.0)[:, None] * np.ones((40, 3))
    X[30:] *= -1
    fold = (np.arange(30), np.arange(30, 40))
    for like_data in (False, True):
        scores = random_scores(X, labels, [fold, fold[::-1]], 7, np.random.default_rng(0), like_data=like_data)
        assert scores.shape == (7, 40) and ((scores[:, 30:] > scores.mean()) != labels[30:]).all()


def test_covariance_directions_follow_the_data():
    X = np.random.default_rng(0).normal(size=(400, 2)) * [30, 1]
    labels = np.arange(400) % 2 == 0
    fold = [(np.arange(400), np.arange(400))]
    spread = {
        like: random_scores(X, labels, fold, 300, np.random.default_rng(1), like_data=like).std(axis=1).mean()
        for like in (False, True)
    }
    assert spread[True] > 20 * spread[False]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": np.zeros(120)}, "1 classes"),
        ({"labels": np.arange(119) % 2}, "for 120 samples"),
        ({"groups": np.zeros(120)}, "lie in 1 and 1 groups"),
        ({"groups": np.arange(3)}, "groups of shape"),
    ],
)
def test_refusals(planted, change, said):
    acts, labels, groups = planted()
    given = {"labels": labels, "groups": groups} | change
    with pytest.raises(InputError, match=said):
        sweep_layers(acts, given["labels"], groups=given["groups"])


def test_a_conversation_lies_in_one_group(planted):
    acts, labels, _ = planted()
    tokens = Activations(acts.values, acts.layers, "tokens", "hash", torch.arange(120) // 4)
    with pytest.raises(InputError, match="conversation 0 lies in two groups"):
        sweep_layers(tokens, labels, groups=np.arange(120) // 3)
    table = sweep_layers(tokens, labels, estimator=MeanDifferenceProbe(), baselines=Baselines(0, 0, 0)).table
    assert table["groups"].tolist() == [30, 30]


def test_transfer_follows_the_planted_geometry():
    """Two domains share a direction, the third has the opposite one."""
    rng = np.random.default_rng(0)
    domains, labels = np.repeat(["cars", "health", "<b>odd"], 60), np.arange(180) % 2
    values = rng.normal(size=(180, 8))
    values[:, 0] += 4 * labels * np.where(domains == "<b>odd", -1, 1)
    acts = Activations(torch.tensor(values)[None].float(), (2,), "response_mean", "hash", torch.arange(180))
    found = transfer_matrix(acts, labels, domains, layer=2, estimator=MeanDifferenceProbe())
    grid = found.table.pivot_table(index="train", columns="test", values="auroc")
    assert (np.diag(grid) > 0.97).all() and grid.loc["cars", "health"] > 0.97 and grid.loc["<b>odd", "cars"] < 0.03
    assert len(found.table) == 9 and found.table["n"].eq(60).all()
    assert "&lt;b&gt;odd" in found._repr_html_() and "<b>" not in found._repr_html_()
    figure = found.figure()
    assert (
        figure.data[0].z.tolist()
        == grid.loc[list(dict.fromkeys(found.table["train"])), :]
        .to_numpy()[:, [list(grid.columns).index(name) for name in dict.fromkeys(found.table["test"])]]
        .tolist()
    )
    assert "on other domains" in figure.layout.title.text and "<b>odd" not in str(figure.data[0].x)


@pytest.mark.parametrize(
    ("labels", "groups", "said"),
    [
        (np.arange(180) < 60, None, "'a' holds one class only"),
        (np.arange(180) % 2, np.arange(180) % 20, "'a' shares a group"),
    ],
)
def test_transfer_refuses(labels, groups, said):
    acts = Activations(torch.randn(1, 180, 4), (2,), "response_mean", "hash", torch.arange(180))
    with pytest.raises(InputError, match=said):
        transfer_matrix(acts, labels, np.repeat(["a", "b", "c"], 60), layer=2, groups=groups)


def test_the_figure_carries_the_table(planted):
    acts, labels, groups = planted()
    sweep = sweep_layers(acts, labels, groups=groups, estimator=MeanDifferenceProbe())
    figure = sweep.figure()
    assert [trace.name for trace in figure.data] == [
        "shuffled labels", "random directions", "covariance directions", "MeanDifferenceProbe"
    ]  # fmt: skip
    assert list(figure.data[-1].y) == sweep.table["auroc"].tolist()
    assert figure.layout.title.text.startswith("Best at block 5: AUROC 0.99") or "1.000" in figure.layout.title.text
    assert "<td>5</td>" in sweep._repr_html_()
