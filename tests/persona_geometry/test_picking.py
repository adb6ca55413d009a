"""The treatment that is taken: the first in order beside which random steps do little."""

import pandas as pd
import pytest
import torch

from geometry import Levels, PersonaVector
from persona_geometry.stages import picking
from persona_geometry.stages.cells import Cells
from persona_geometry.stages.inputs import Inputs, Sizes
from persona_geometry.stages.steering import Material
from probes import Model
from tests.geometry.steering.planted import outcomes

VECTOR = PersonaVector({1: torch.ones(4)}, model="made up")


class Asked(Inputs):
    """Inputs of which only what a choice reads is there."""

    def __init__(self):
        facts = {"sizes": Sizes(controls=4), "models": dict.fromkeys(("base", "tuned"), object.__new__(Model))}
        for name, value in {**facts, "seed": 0, "judge": None}.items():
            object.__setattr__(self, name, value)

    @property
    def blocks(self):
        return (1,)

    def of(self, split, where=None):
        return []


@pytest.fixture
def pick(monkeypatch, tmp_path):
    """The choice, and whose random steps were asked, where arms of the third look leave these rates of .60."""

    def run(rates, random):
        table = pd.DataFrame({"arm": [-1, *rates], "misaligned": [0.6, *rates.values()], "coherent": 1.0, "n": 400})
        asked = []

        def steps(inputs, choice, found, *, n, salt):
            asked.append(choice)
            return [()] * n

        monkeypatch.setattr(picking, "trials", lambda *_, **__: table.assign(again=True, keeps=True))
        monkeypatch.setattr(picking, "random_step_arms", steps)
        monkeypatch.setattr(picking, "ask_many", lambda model, arms, *_, **__: [outcomes(random[len(asked) - 1])] * 4)
        found = Material((), (), {"shift": VECTOR}, {"shift": Levels({1: 0.0}, {1: 1.0})})
        return picking.choose(Asked(), Cells.open(tmp_path, {}), found, "repair"), asked

    return run


def test_the_first_where_its_random_steps_do_little(pick):
    chosen, asked = pick({0: 0.05, 1: 0.07, 2: 0.20}, [0.58])
    assert len(asked) == 1 and chosen.misaligned == 0.05 and chosen.dose == asked[0].dose
    assert chosen.random == pytest.approx(0.02 / 0.55, abs=0.002)
    assert f"(here {chosen.random:.0%})" in chosen.as_dict()["why"]


def test_the_next_where_they_do_more(pick):
    chosen, asked = pick({0: 0.02, 1: 0.10, 2: 0.20}, [0.40, 0.56])
    assert len(asked) == 2 and chosen.misaligned == 0.10 and chosen.dose == asked[1].dose
    assert chosen.random == pytest.approx(0.04 / 0.50, abs=0.002)


def test_the_least_of_them_where_all_do_more(pick):
    chosen, asked = pick({0: 0.02, 1: 0.10, 2: 0.20}, [0.40, 0.52, 0.45])
    assert len(asked) == 3 and chosen.misaligned == 0.10
