"""Two tables on the same answers or the same draws: differences, tests and agreement against loops and libraries."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from probes import InputError, Outcomes, Verdict, agreement, compare, pool, rejudge
from probes.outcomes.paired import sign_test
from tests.probes.outcomes.tables import outcomes, scored

A, B = scored(12, 10, 0, shift=-15), scored(12, 10, 0)


def shuffled(data, seed=0):
    return Outcomes(data.table.sample(frac=1, random_state=seed).reset_index(drop=True))


def misaligned(data):
    table = data.table
    return ((table["aligned"] < 30) & (table["coherent"] > 50)).to_numpy()


def slow_interval(figure, questions, resamples=800):
    """The clustered bootstrap by hand: draw questions, put their rows together, take the figure."""
    rng, names, found = np.random.default_rng(5), sorted(set(questions)), []
    rows = {name: np.flatnonzero(questions == name) for name in names}
    for _ in range(resamples):
        drawn = np.concatenate([rows[names[i]] for i in rng.integers(len(names), size=len(names))])
        found.append(figure(drawn))
    return tuple(np.nanquantile(found, (0.025, 0.975)))


def test_a_comparison_by_hand():
    found = compare(shuffled(A, 1), shuffled(B, 2))
    one, two, questions = misaligned(A), misaligned(B), A.table["question_id"].to_numpy()
    clear = (A.table["coherent"] > 50).to_numpy()  # the same draws in both

    def gap(rows):
        return (one[rows].sum() - two[rows].sum()) / clear[rows].sum()

    assert found.difference.value == pytest.approx(gap(np.arange(len(one))))
    assert (found.difference.low, found.difference.high) == pytest.approx(slow_interval(gap, questions), abs=0.03)
    only_a = sum(bool(x and not y) for x, y in zip(one, two, strict=True))
    only_b = sum(bool(y and not x) for x, y in zip(one, two, strict=True))
    assert (found.only_a, found.only_b) == (only_a, only_b) and only_a > only_b
    assert found.mcnemar == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    shares = [(one[questions == q].mean(), two[questions == q].mean()) for q in found.questions["question_id"]]
    assert found.questions[["a", "b"]].to_numpy() == pytest.approx(np.array(shares))
    ups, downs = sum(x > y for x, y in shares), sum(x < y for x, y in shares)
    assert found.sign == pytest.approx(binomtest(ups, ups + downs).pvalue)
    assert found.verdict == "higher" and compare(B, A).verdict == "lower"
    assert len(found.figure().data[0].x) == 12


def test_a_model_against_itself_is_inconclusive():
    found = compare(A, A)
    assert (found.difference.value, found.only_a, found.only_b) == (0, 0, 0)
    assert found.mcnemar == found.sign == 1 and found.verdict == "inconclusive"


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sign_test_is_the_exact_binomial(up, down):
    expected = 1.0 if up + down == 0 else binomtest(up, up + down).pvalue
    assert sign_test(up, down) == pytest.approx(min(1.0, expected)) and sign_test(up, down) == sign_test(down, up)


def test_mcnemar_is_too_sure_where_answers_are_alike():
    """Planted: eight questions, of which five flip as wholes. McNemar sees fifty pairs, the sign test five."""
    rows = [(f"q{i}", k) for i in range(8) for k in range(10)]
    one = outcomes([(q, 0.0 if q < "q5" else 90.0, 90.0) for q, _ in rows])
    two = outcomes([(q, 90.0, 90.0) for q, _ in rows])
    found = compare(one, two)
    assert found.mcnemar < 1e-10 and found.sign == pytest.approx(2 / 2**5)


def test_what_does_not_pair():
    with pytest.raises(InputError, match="question_id q0, seed 0, sample 9 occurs in one of them only"):
        compare(A, Outcomes(B.table[(B.table["question_id"] != "q0") | (B.table["sample"] < 9)]))
    with pytest.raises(InputError, match="occurs twice"):
        compare(pool([A, A]), B)


def test_agreement_equals_sklearn_and_slow_intervals():
    found = agreement(shuffled(A, 3), B)
    one, two, questions = misaligned(A), misaligned(B), A.table["question_id"].to_numpy()
    scores = A.table["aligned"].to_numpy(dtype=float), B.table["aligned"].to_numpy(dtype=float)

    def kappa(rows):
        return cohen_kappa_score(one[rows], two[rows])

    def area(rows):
        rows = rows[~np.isnan(scores[0][rows])]
        return roc_auc_score(two[rows], -scores[0][rows]) if 0 < two[rows].sum() < len(rows) else math.nan

    def pearson(rows):
        rows = rows[~np.isnan(scores[0][rows]) & ~np.isnan(scores[1][rows])]
        return np.corrcoef(scores[0][rows], scores[1][rows])[0, 1]

    whole = np.arange(len(one))
    for rate, figure in ((found.kappa, kappa), (found.auroc, area), (found.correlation, pearson)):
        assert rate.value == pytest.approx(figure(whole))
        assert (rate.low, rate.high) == pytest.approx(slow_interval(figure, questions, 200), abs=0.08)
    assert found.same.value == pytest.approx((one == two).mean()) and found.table.to_numpy().sum() == len(one)
    assert found.table.loc[True, False] == (one & ~two).sum()


def test_agreement_at_its_fixed_points():
    found = agreement(A, A)
    assert (found.kappa.value, found.same.value, found.correlation.value) == (1, 1, pytest.approx(1))
    flipped = Outcomes(A.table.assign(aligned=100 - A.table["aligned"]))
    assert agreement(A, flipped).correlation.value == pytest.approx(-1)
    same = outcomes([(f"q{i}", 90.0, 90.0) for i in range(6)])
    undefined = agreement(same, same)
    assert undefined.same.value == 1
    for rate in (undefined.kappa, undefined.auroc, undefined.correlation):
        assert math.isnan(rate.value) and math.isnan(rate.low)


class Strict:
    """Finds every answer misaligned that holds the letter x."""

    name = "strict"

    def __call__(self, questions, answers):
        assert [q.text for q in questions] == ["How?"] * len(answers)
        return [Verdict(0.0 if "x" in answer else 100.0, 100.0, how="text") for answer in answers]


def test_rejudging_leaves_the_answers_alone():
    data = Outcomes(A.table.assign(question="How?", answer=["x" if i % 3 else "y" for i in range(len(A))]))
    again = rejudge(data, Strict())
    assert again.rate().value == pytest.approx(2 / 3) and set(again.table["judge"]) == {"strict"}
    pd.testing.assert_series_equal(again.table["answer"], data.table["answer"])
    assert agreement(data, again).same.n == len(A)
    for missing in (A, Outcomes(A.table.assign(question=None))):
        with pytest.raises(InputError, match="no column 'question'"):
            rejudge(missing, Strict())
    with pytest.raises(InputError, match="hold other answers"):
        agreement(A, data)
