"""Guardrail or culprit: every verdict on planted behaviour, and one on a model."""

import pytest
import torch

from geometry import Add, CausalSign, ask_many, causal_sign, random_controls
from geometry.steering import sign
from probes import InputError, Question
from tests.geometry.steering.planted import outcomes

QUESTIONS = [Question(f"q{i}", f"Question {i}?") for i in range(20)]
START = (0.40, 1.0)


@pytest.fixture
def judged(monkeypatch, tiny_model, judge, vector):
    """The verdict where less and more lead to these (rate, coherent), and controls to the start +- `spread`."""

    def run(less, more, *, spread=0.04) -> CausalSign:
        near = {2.0: (START[0] + spread, 1.0), -2.0: (START[0] - spread, 1.0)}
        planted = {-1.0: less, 1.0: more, **near}

        def fake(model, arms, questions, judge, **_):
            return [outcomes(*(planted[arm.strength] if arm else START), n=400) for arm in arms]

        monkeypatch.setattr(sign, "ask_many", fake)
        down, up, *controls = (Add(vector, strength=s, unit="raw", layers=(2,)) for s in (-1.0, 1.0, *[2.0, -2.0] * 5))
        return causal_sign(tiny_model, down, up, QUESTIONS, judge, controls=controls, seed=0, trait="harm")

    return run


@pytest.mark.parametrize(
    ("less", "more", "role"),
    [
        ((0.10, 1.0), (0.70, 1.0), "culprit"),
        ((0.10, 1.0), (0.41, 1.0), "culprit"),
        ((0.40, 1.0), (0.70, 1.0), "culprit"),
        ((0.70, 1.0), (0.10, 1.0), "guardrail"),
        ((0.70, 1.0), (0.39, 1.0), "guardrail"),
        ((0.41, 1.0), (0.10, 1.0), "guardrail"),
        ((0.41, 1.0), (0.39, 1.0), "bystander"),
        ((0.70, 1.0), (0.70, 1.0), "disturbance"),
        ((0.10, 1.0), (0.10, 1.0), "disturbance"),
        ((0.10, 0.5), (0.70, 1.0), "culprit"),
        ((0.10, 0.5), (0.40, 1.0), "bystander"),
        ((0.10, 0.5), (0.90, 0.8), "undecided"),
    ],
)
def test_roles(judged, less, more, role) -> None:
    found = judged(less, more)
    assert found.role == role and found.sentence.startswith(f"{role}: ") and "harm" in found.sentence
    assert found.table["arm"].tolist() == ["untreated", "less", "more", "random"]


def test_what_random_directions_do_too_is_no_sign(judged) -> None:
    assert judged((0.10, 1.0), (0.70, 1.0), spread=0.35).role == "bystander"
    assert judged((0.10, 1.0), (0.70, 1.0), spread=0.25).role == "culprit"


def test_figures(judged) -> None:
    rows = judged((0.10, 1.0), (0.70, 0.95)).table.set_index("arm")
    assert rows.loc["less", "change"] == pytest.approx(-0.30) and rows.loc["more", "change"] == pytest.approx(0.30)
    assert rows.loc["less", "low"] <= -0.30 <= rows.loc["less", "high"] < 0
    assert rows["counts"].tolist() == [False, True, True, False] and rows.loc["more", "coherent"] == 0.95
    assert rows.loc["random", ["low", "high"]].tolist() == pytest.approx([-0.04, 0.04])


def test_of_a_model(tiny_model, questions, judge, vector) -> None:
    less, more = (Add(vector, strength=s, unit="resid_norm", layers=(2,)) for s in (-1.0, 1.0))
    controls = random_controls(more, 5, torch.Generator().manual_seed(0))
    settings = {"n_samples": 2, "max_new_tokens": 5}
    run = {"controls": controls, "control_questions": questions[:2], "seed": 4, **settings}
    found = causal_sign(tiny_model, less, more, questions, judge, **run)
    again = ask_many(tiny_model, [(), less, more], questions, judge, seed=4, **settings)
    assert found.table["trait"].tolist()[:3] == pytest.approx([o.rate().value for o in again], nan_ok=True)
    assert found.table["n"].tolist()[3] == 5 * 2, "one answer to each of two questions under each control"
    assert set(found.outcomes) == {"untreated", "less", "more"} and "untreated" in found._repr_html_()


def test_refusals(tiny_model, questions, judge, vector) -> None:
    arm = Add(vector, strength=1.0, unit="raw", layers=(2,))
    run = {"seed": 0, "max_new_tokens": 3}
    with pytest.raises(InputError, match="4 random controls: give at least five"):
        causal_sign(tiny_model, arm, arm, questions, judge, controls=[arm] * 4, **run)
    with pytest.raises(InputError, match="'elsewhere' is not among the questions"):
        few = [Question("elsewhere", "What?")]
        causal_sign(tiny_model, arm, arm, questions, judge, controls=[arm] * 5, control_questions=few, **run)
    with pytest.raises(InputError, match="coherence_budget 90"):
        causal_sign(tiny_model, arm, arm, questions, judge, controls=[arm] * 5, coherence_budget=90, **run)
