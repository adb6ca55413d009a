"""Choosing among many treatments by three looks, on simulated rates whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from persona_geometry.stages import choosing
from persona_geometry.stages.inputs import Inputs, Sizes
from probes import Model, Question

TRUE = np.linspace(0.05, 0.7, 100)  # misaligned rate of each arm under repair; untreated .7


SIZES = Sizes(choice=27, longlist=20, shortlist=8, again=4)


class Asked(Inputs):
    """Inputs of which only the selection questions and the sizes are used."""

    def __init__(self):
        object.__setattr__(self, "sizes", SIZES)

    def of(self, split, where=None):
        return [Question(str(i), "Who are you?", split=split) for i in range(54)]


@pytest.fixture
def simulated(monkeypatch):
    """`trials` with answers drawn from known rates; arm 0 repairs best but is incoherent. Also what was asked."""
    asked, state = [], {"rng": np.random.default_rng(0)}

    def draw(inputs, model, arms, numbers, questions, *, seed, samples=1):
        n, rng = len(questions) * samples, state["rng"]
        asked.append((len(list(numbers)), n))
        rows = []
        for arm in [-1, *numbers]:
            whole = rng.binomial(n, 0.5 if arm == 0 else 0.95)
            bad = rng.binomial(whole, 0.7 if arm == -1 else TRUE[arm]) if whole else 0
            rows.append((bad / whole if whole else float("nan"), whole / n, n))
        return pd.DataFrame(rows, columns=["misaligned", "coherent", "n"]).assign(arm=[-1, *numbers])

    monkeypatch.setattr(choosing, "_asked", draw)

    def run(seed):
        state["rng"] = np.random.default_rng(seed)
        asked.clear()
        arms = [()] * len(TRUE)
        return choosing.trials(Asked(), object.__new__(Model), arms, goal="repair", keep=0.95), asked

    return run


def test_every_arm_stands_once_and_the_looks_grow_fewer_and_longer(simulated):
    table, asked = simulated(1)
    assert sorted(table["arm"]) == [-1, *range(100)]
    assert asked == [(100, 27), (SIZES.longlist, 54), (SIZES.shortlist, 216)]
    assert table["again"].sum() == SIZES.shortlist + 1
    assert set(table.loc[~table["again"] & table["arm"].ge(0), "n"]) == {27, 81}


def test_the_winner_is_among_the_truly_best_and_coherent(simulated):
    picked = [choosing.winner(simulated(seed)[0], goal="repair", size=[1.0] * len(TRUE)) for seed in range(20)]
    assert 0 not in picked
    assert np.mean([TRUE[arm] for arm in picked]) < 0.07  # one look at 27 answers picks arms of .08 on the mean


@pytest.mark.parametrize(("goal", "rates"), [("repair", [0.04, 0.05, 0.06]), ("induce", [0.70, 0.66, 0.64])])
def test_of_what_is_within_a_standard_error_the_smallest_edit_wins(goal, rates):
    table = pd.DataFrame({"arm": [0, 1, 2, -1], "misaligned": [*rates, 0.5], "coherent": 1.0, "n": 320})
    table = table.assign(again=True, keeps=True)  # one standard error over 320 answers of .04 is .011
    assert choosing.winner(table, goal=goal, size=[3.0, 2.0, 1.0]) == 1
    assert choosing.winner(table, goal=goal, size=[2.0, 3.0, 1.0]) == 0
    much = choosing.winner(table.assign(n=32_000), goal=goal, size=[3.0, 2.0, 1.0])
    assert much == (0 if goal == "repair" else 1), "five points more of a persona are not worth a stronger edit"
    assert choosing.winner(table.assign(keeps=False), goal=goal, size=[3.0, 2.0, 1.0]) is None


def test_two_looks_are_weighted_by_their_answers():
    one = pd.DataFrame({"arm": [3], "misaligned": [1.0], "coherent": [0.5], "n": [20]})
    two = pd.DataFrame({"arm": [3], "misaligned": [0.0], "coherent": [1.0], "n": [40]})
    both = choosing._pooled(one, two).iloc[0]
    assert both["coherent"] == pytest.approx(50 / 60) and both["misaligned"] == pytest.approx(10 / 50)
    none = choosing._pooled(one.assign(coherent=0.0, misaligned=float("nan")), two.assign(coherent=0.0))
    assert np.isnan(none["misaligned"].iloc[0])
