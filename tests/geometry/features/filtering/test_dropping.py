"""The rules that drop rows, the knee, equal lengths, and what a split and a score are worth."""

import numpy as np
import pytest
import torch
from scipy import stats

from geometry.features import drop_rows, knee, random_rows_like, row_auroc, scores_agree
from geometry.features.filtering import spearman
from geometry.features.filtering.dropping import length_bins
from probes import InputError


def normal(*parts, seed=0):
    """Normal numbers of unit variance: (how many, mean) for each part."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(mean, 1, n) for n, mean in parts])


def test_a_share_and_a_threshold(scores):
    made = scores([0.1, 0.9, 0.5, 0.9, 0.2])
    split = drop_rows(made, fraction=0.5)
    assert split.dropped.tolist() == [1, 3] and split.kept.tolist() == [0, 2, 4] and split.threshold == 0.9
    assert drop_rows(made, fraction=0).kept.tolist() == [0, 1, 2, 3, 4]
    cut = drop_rows(made, above=0.5)
    assert cut.dropped.tolist() == [1, 3, 2] and cut.threshold == 0.5 and "0.5" in cut.rule
    why = split.reasons(made)
    assert why[1] == "dropped: made 0.9 points, rank 1 of 5; highest 50%" and why[4].startswith(
        "kept: made 0.2 points, rank 4"
    )


def test_a_row_without_a_score_stays(scores):
    made = scores([0.1, torch.nan, 0.5, 0.9])
    assert drop_rows(made, fraction=0.5).kept.tolist() == [0, 1]
    assert drop_rows(made, above=-1).kept.tolist() == [1]
    assert drop_rows(made, fraction=0.5).reasons(made)[1] == "kept: no made score"
    with pytest.raises(InputError, match="asks for 2 rows, but only 1 of 3"):
        drop_rows(scores([torch.nan, 1.0, torch.nan]), fraction=0.9)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({}, "no rule given"),
        ({"fraction": 0.5, "above": 1.0}, "fraction and above given"),
        ({"above": 0.2, "match_length": True}, "match_length with above"),
        ({"fraction": 1.0}, "fraction=1.0"),
        ({"fraction": -0.1}, "fraction=-0.1"),
    ],
)
def test_bad_rules(rule, said, scores):
    with pytest.raises(InputError, match=said):
        drop_rows(scores([0.1, 0.2, 0.3]), **rule)


@pytest.mark.parametrize("bad", [40, 150, 300])
def test_the_knee_parts_two_groups(bad, scores):
    made = scores(normal((600 - bad, 0), (bad, 6)))
    assert 2 < knee(made) < 4
    split = drop_rows(made, at_knee=True)
    assert (split.dropped >= 600 - bad).float().mean() > 0.98 and len(split.dropped) == pytest.approx(bad, abs=6)


@pytest.mark.parametrize("draw", ["normal", "exponential", "uniform", "standard_t"])
def test_the_knee_sees_no_groups_in_one(draw, scores):
    refused = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        values = rng.standard_t(5, 400) if draw == "standard_t" else getattr(rng, draw)(size=400)
        try:
            knee(scores(values))
        except InputError as error:
            refused += "one group" in str(error)
    assert refused >= 38


def test_the_knee_needs_scores(scores):
    for values in ([0.0] * 30, [1.0, 2.0]):
        with pytest.raises(InputError, match="knee"):
            knee(scores(values))


def test_equal_lengths_take_length_out_of_a_filter(scores):
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 60, 800)
    bad = rng.random(800) < 0.5
    made = scores(0.2 * tokens + 2.0 * bad + rng.normal(0, 0.3, 800), tokens)
    plain, matched = drop_rows(made, fraction=0.5), drop_rows(made, fraction=0.5, match_length=True)
    lengths = [abs(tokens[s.dropped].mean() - tokens[s.kept].mean()) for s in (plain, matched)]
    assert lengths[0] > 15 and lengths[1] < 1.5 and len(matched.dropped) == 400
    assert bad[matched.dropped].mean() > bad[plain.dropped].mean() + 0.2
    assert "10 bins" in matched.rule and np.isnan(matched.threshold)
    assert made.with_length().value == pytest.approx(stats.spearmanr(made.values, tokens).statistic, abs=1e-9)


def test_the_random_twin_is_as_long(scores):
    rng = np.random.default_rng(2)
    tokens = torch.tensor(rng.integers(5, 60, 600))
    split = drop_rows(scores(tokens.double() + torch.tensor(rng.normal(0, 5, 600)), tokens), fraction=0.3)
    twin, again, other = (random_rows_like(split, tokens, seed=seed) for seed in (0, 0, 1))
    bins = length_bins(tokens)
    assert torch.equal(bins[twin.dropped].bincount(minlength=10), bins[split.dropped].bincount(minlength=10))
    assert torch.equal(twin.dropped, again.dropped) and set(twin.dropped.tolist()) != set(other.dropped.tolist())
    assert sorted([*twin.kept.tolist(), *twin.dropped.tolist()]) == list(range(600)) and len(twin.dropped) == 180
    with pytest.raises(InputError, match="5 token counts"):
        random_rows_like(split, tokens[:5], seed=0)


def test_bins_hold_equal_lengths_together():
    assert length_bins(torch.tensor([4] * 100 + [9] * 100)).unique().numel() == 2
    assert length_bins(torch.arange(30)).unique().numel() == 1
    assert length_bins(torch.arange(400)).bincount().tolist() == [40] * 10


def test_a_score_against_the_truth(scores):
    values, truth = normal((80, 0), (40, 1.5)), [False] * 80 + [True] * 40
    found = row_auroc(scores(values), truth)
    pairs = np.mean([values[i] > values[j] for i in range(80, 120) for j in range(80)])
    assert found.value == pytest.approx(pairs) and found.low < pairs < found.high
    unscored = values.copy()
    unscored[100] = np.nan
    assert scores(unscored).auroc(truth).value == pytest.approx(
        row_auroc(scores(np.where(np.isnan(unscored), -99, unscored)), truth).value
    )
    with pytest.raises(InputError, match="of both kinds"):
        row_auroc(scores(values), [True] * 120)


@pytest.mark.parametrize("n", [60, 6000])
def test_spearman_and_its_interval(n):
    rng = np.random.default_rng(3)
    x = torch.tensor(rng.normal(size=n)).round(decimals=1)
    y = torch.tensor(0.6 * x.numpy() + rng.normal(size=n))
    found, wanted = spearman(x, y), stats.spearmanr(x, y).statistic
    assert found.value == pytest.approx(wanted, abs=1e-9) and found.low < wanted < found.high
    assert found.high - found.low == pytest.approx(
        2 * 1.96 * np.sqrt((1 + wanted**2 / 2) / (n - 3)) * (1 - wanted**2), rel=0.25
    )


def test_scores_that_agree(scores):
    values = normal((200, 0))
    table = scores_agree(
        [scores(values, name="a"), scores(-values, name="b"), scores(values * 2, name="c")], fraction=0.25
    )
    assert table["spearman"].round(6).tolist() == [-1, 1, -1] and table["shared"].tolist() == [0, 1, 0]
    assert table["chance"].tolist() == [0.25] * 3 and table[["a", "b"]].values.tolist()[1] == ["a", "c"]
    with pytest.raises(InputError, match="1 scores"):
        scores_agree([scores(values)])


def test_bad_scores(scores):
    with pytest.raises(InputError, match="row 1 is infinite"):
        scores([0.0, torch.inf])
    with pytest.raises(InputError, match="three pairs"):
        spearman(torch.zeros(2), torch.zeros(2))
