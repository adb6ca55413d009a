"""Rates, their intervals, differences and cuts, against loops and known truths."""

import math
import time

import numpy as np
import pandas as pd
import pytest

from probes import Counts, InputError, Outcomes, cut, difference, minimum_detectable, pool
from tests.probes.outcomes.tables import outcomes, scored


def drawn(rates, n_samples, seed, model="m"):
    rng = np.random.default_rng(seed)
    return outcomes(
        [
            (f"q{i}", 0.0 if rng.random() < rate else 90.0, 90.0)
            for i, rate in enumerate(rates)
            for _ in range(n_samples)
        ],
        model,
    )


MIXED = outcomes([("a", 10, 90), ("a", 90, 90), ("b", 10, 20), ("b", None, 90), ("c", 29.9, 50.1), ("c", 30, 50)])


@pytest.mark.parametrize(
    ("kind", "over", "value", "n"),
    [
        ("misaligned", None, 2 / 4, 4),
        ("misaligned", "all", 2 / 6, 6),
        ("misaligned", "scored", 2 / 5, 5),
        ("aligned", None, 1 / 4, 4),
        ("coherent", None, 4 / 6, 6),
        ("refusal", None, 0.0, 6),
        ("label:", None, 1.0, 6),
        ("label:x", None, 0.0, 6),
    ],
)
def test_denominators(kind, over, value, n):
    rate = MIXED.rate(kind, over=over)
    assert (rate.value, rate.n) == (pytest.approx(value), n)


def test_thresholds_move_the_rate():
    assert MIXED.rate(align_below=31, coherent_above=40).value == pytest.approx(3 / 5)
    assert MIXED.rate(align_below=5).value == 0


def test_unknown_kinds():
    with pytest.raises(InputError, match="kind 'evil'"):
        MIXED.rate("evil")


def slow_interval(data, seed, resamples=4000):
    """The clustered bootstrap by hand: draw questions, pool their answers."""
    rng = np.random.default_rng(seed)
    groups = [part["aligned"].to_numpy() < 30 for _, part in data.table.groupby("question_id")]
    rates = []
    for _ in range(resamples):
        picked = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        rates.append(picked.mean())
    return np.quantile(rates, (0.025, 0.975))


def test_interval_equals_a_slow_bootstrap():
    data = drawn([0.1, 0.5, 0.9, 0.3, 0.7, 0.2], 5, seed=1)
    rate = data.rate()
    assert (rate.low, rate.high) == pytest.approx(tuple(slow_interval(data, 2, 1500)), abs=0.04)
    assert data.rate() == rate and data.rate(seed=1) != rate


def test_interval_is_clustered():
    """Eight questions asked a hundred times are eight clusters, not eight hundred answers."""
    clustered = drawn([0.0, 1.0] * 4, 100, seed=0).rate()
    independent = drawn([0.5] * 800, 1, seed=0).rate()
    assert clustered.high - clustered.low > 5 * (independent.high - independent.low)


def test_coverage_of_the_interval():
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rate = drawn(rng.beta(2, 3, size=40), 4, seed).rate()
        hits += rate.low <= 0.4 <= rate.high
    assert hits >= 53


def test_pooled_models_may_be_clusters_too():
    data = pool([drawn([0.5] * 50, 4, 0).of("m"), drawn([0.9] * 50, 4, 1, "n")])
    by_question, by_both = data.rate(), data.rate(clusters=("question_id", "model"))
    assert by_both.value == by_question.value
    assert by_both.high - by_both.low > 2 * (by_question.high - by_question.low)


def test_without_spread_the_interval_is_the_exact_binomial_limit():
    never, always = (outcomes([(f"q{i}", aligned, 90) for i in range(50)]) for aligned in (90, 0))
    limit = 1 - 0.025 ** (1 / 50)
    assert (never.rate().low, never.rate().high) == (0, pytest.approx(limit))
    assert (always.rate().low, always.rate().high) == (pytest.approx(1 - limit), 1)
    same = difference(never, never)
    assert (same.value, same.low, same.high) == (0, pytest.approx(-limit), pytest.approx(limit))


def test_no_coherent_answer_is_undefined():
    rate = outcomes([("a", 10, 0), ("b", 10, 0)]).rate()
    assert math.isnan(rate.value) and math.isnan(rate.low) and rate.n == 0
    assert rate.as_dict() == {"value": None, "low": None, "high": None, "n": 0}


def test_bootstrap_is_fast():
    data = drawn([0.3] * 150, 4, seed=0)
    data.rate()
    start = time.thread_time()
    data.rate()
    assert time.thread_time() - start < 0.05


def test_difference_is_paired():
    """A treatment that lowers every question's rate alike is seen, however much the questions differ."""
    rows = [(f"q{i}", k) for i in range(20) for k in range(10)]
    harmful = [(q, 0.0 if k < int(q[1:]) % 10 else 90.0, 90.0) for q, k in rows]
    milder = [(q, 0.0 if k < int(q[1:]) % 10 - 1 else 90.0, 90.0) for q, k in rows]
    gap = difference(outcomes(harmful), outcomes(milder))
    assert gap.value == pytest.approx(0.09) and 0.07 < gap.low < gap.high < 0.11
    back = difference(outcomes(milder), outcomes(harmful))
    assert (back.value, back.low, back.high) == pytest.approx((-gap.value, -gap.high, -gap.low))


def test_other_questions_do_not_pair():
    with pytest.raises(InputError, match="not paired"):
        difference(outcomes([("a", 1, 90)]), outcomes([("b", 1, 90)]))


def test_cut_at_its_fixed_points():
    base, tuned, half = (drawn([rate] * 100, 10, seed) for seed, rate in enumerate((0.02, 0.8, 0.41)))
    assert cut(tuned, base, base).value == 1 and cut(tuned, tuned, base).value == 0
    middle = cut(tuned, half, base)
    assert middle.low < 0.5 < middle.high and middle.high - middle.low < 0.15
    undefined = cut(base, half, tuned)
    assert math.isnan(undefined.value) and math.isnan(undefined.high)
    unsure = cut(drawn([0.5] * 10, 2, 0), drawn([0.5] * 10, 2, 1), drawn([0.45] * 10, 2, 5))
    assert math.isnan(unsure.low) and math.isnan(unsure.high)


def test_counts_are_passed_on():
    a, b = drawn([0.5] * 30, 4, 0), drawn([0.2] * 30, 4, 1)
    refusals = difference(a, b, kind="refusal")
    assert refusals.value == 0
    assert difference(a, b, counts=Counts("aligned")).value == pytest.approx(-difference(a, b).value)


def test_subsets():
    data = pool([drawn([0.5] * 4, 2, 0), drawn([0.5] * 4, 2, 0, "n")])
    assert len(data.of("n")) == 8 and len(data.of(group=["g"])) == 16
    assert data.question_ids == ("q0", "q1", "q2", "q3")
    with pytest.raises(InputError, match="no outcome of model 'x'"):
        data.of("x")


def test_save_and_load(tmp_path):
    MIXED.save(tmp_path / "outcomes.parquet")
    pd.testing.assert_frame_equal(Outcomes.load(tmp_path / "outcomes.parquet").table, MIXED.table)
    (tmp_path / "bad.parquet").write_text("no")
    for name, told in (("none.parquet", "no such file"), ("bad.parquet", "no readable Parquet")):
        with pytest.raises(InputError, match=told):
            Outcomes.load(tmp_path / name)


def test_bad_tables():
    with pytest.raises(InputError, match="lacks the column 'seed'"):
        Outcomes(MIXED.table.drop(columns="seed"))
    with pytest.raises(InputError, match="no row"):
        Outcomes(MIXED.table.iloc[:0]).rate()
    with pytest.raises(InputError, match="no outcomes given"):
        pool([])


def test_html_and_figure():
    data = pool([MIXED, outcomes([("a", 10, 90)], "<b>x</b>")])
    assert "<b>x</b>" not in data._repr_html_()
    figure = data.figure()
    assert len(figure.data) == 2 and "<b>" not in figure.layout.title.text


def test_minimum_detectable_matches_a_simulation():
    """With independent answers, a rise of the size told is seen about four times in five."""
    rise = minimum_detectable(300, 1, 0.1, icc=0.0)
    rng = np.random.default_rng(0)
    low, high = rng.binomial(300, 0.1, 4000) / 300, rng.binomial(300, 0.1 + rise, 4000) / 300
    spread = np.sqrt((low * (1 - low) + high * (1 - high)) / 300)
    assert 0.75 < ((high - low) / spread > 1.96).mean() < 0.87
    assert minimum_detectable(300, 4, 0.1) < rise
    assert minimum_detectable(30, 100, 0.1, icc=0.5) > minimum_detectable(3000, 1, 0.1, icc=0.5)
    assert math.isnan(minimum_detectable(2, 1, 0.5))
    with pytest.raises(InputError, match="2\\+ questions"):
        minimum_detectable(1, 1, 0.1)


def test_a_grid_holds_the_rate_under_every_pair_of_thresholds():
    data = scored(8, 12, 0)
    grid = data.grid((20, 30, 40), (50, 70, 101))
    table = data.table
    for row in grid.table.to_dict("records"):
        clear = [i for i, c in enumerate(table["coherent"]) if c > row["coherent_above"]]
        low = [i for i in clear if table["aligned"][i] < row["align_below"]]
        assert row["n"] == len(clear)
        assert row["value"] == pytest.approx(len(low) / len(clear)) if clear else math.isnan(row["value"])
    assert len(grid.table) == 9 and grid.spread[0] < grid.spread[1] < 1
    one = data.rate(align_below=40, coherent_above=70)
    assert grid.table.iloc[5][["value", "low", "high"]].tolist() == [one.value, one.low, one.high]
    assert grid.figure().data[0].z.shape == (3, 3) and "misaligned" in grid.figure().layout.title.text
    assert math.isnan(data.grid((30,), (101,)).spread[0])
    with pytest.raises(InputError, match="at least one of each"):
        data.grid(())


def test_the_three_denominators_by_hand():
    data = scored(6, 10, 3)
    rows = data.table.to_dict("records")
    bad = [r for r in rows if r["coherent"] > 50 and r["aligned"] == r["aligned"] and r["aligned"] < 30]
    clear, known = ([r for r in rows if r["coherent"] > 50], [r for r in rows if r["aligned"] == r["aligned"]])
    found = data.denominators()
    assert [found[over].n for over in ("all", "coherent", "scored")] == [60, len(clear), len(known)]
    assert [found[over].value * found[over].n for over in found] == pytest.approx([len(bad)] * 3)
