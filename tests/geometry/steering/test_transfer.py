"""Transfer: edits x fine-tunes, their figures on planted behaviour, and the table of a model."""

import pytest
import torch

from geometry import Add, Transfer, ask_many, random_controls, transfer
from geometry.steering.transfer import COLUMNS
from probes import InputError, Question, ask
from tests.geometry.steering.planted import outcomes


@pytest.fixture
def made(tiny_model, questions, judge, vector) -> Transfer:
    one, two = (Add(vector, strength=s, unit="resid_norm", layers=(2,)) for s in (-1.0, -2.0))
    controls = random_controls(one, 3, torch.Generator().manual_seed(0))
    run = {"seed": 4, "n_samples": 2, "max_new_tokens": 5, "controls": controls, "control_questions": questions[:2]}
    targets = {"medicine": tiny_model, "money": tiny_model}
    return transfer(tiny_model, targets, {"medicine": one, "<money>": two}, questions, judge, **run)


def test_table_of_a_model(made, tiny_model, questions, judge, vector) -> None:
    rows = [(e, t) for t in ("medicine", "money") for e in ("medicine", "<money>", "random")]
    assert made.table[["edit", "target"]].apply(tuple, axis=1).tolist() == rows
    assert list(made.table.columns) == list(COLUMNS)
    arms = [(), *(Add(vector, strength=s, unit="resid_norm", layers=(2,)) for s in (-1.0, -2.0))]
    again = ask_many(tiny_model, arms, questions, judge, seed=5, n_samples=2, max_new_tokens=5)
    first = made.table.iloc[0]
    assert first["before"] == pytest.approx(again[0].rate().value, nan_ok=True)
    assert first["after"] == pytest.approx(again[1].rate().value, nan_ok=True)
    assert made.table["n"].tolist() == [2 * len(questions), 2 * len(questions), 3 * 2] * 2
    start = ask(tiny_model, questions, judge, seed=4, n_samples=2, max_new_tokens=5)
    assert made.base.table["answer"].tolist() == start.table["answer"].tolist()
    assert set(made.outcomes) == {(e, t) for e in ("", "medicine", "<money>") for t in ("medicine", "money")}


def test_figures_of_planted_answers(monkeypatch, tiny_model, judge, vector) -> None:
    """Tuned .60, base .10: an edit that leaves .20 cuts four fifths; controls at .56 and .60 a twenty-fifth."""
    left = {1.0: 0.20, 2.0: 0.35, 3.0: 0.56, 4.0: 0.60}

    def fake(model, arms, *_, **__):
        return [outcomes(left[arm.strength] if arm else 0.60) for arm in arms]

    monkeypatch.setattr("geometry.steering.transfer.ask", lambda *_, **__: outcomes(0.10))
    monkeypatch.setattr("geometry.steering.transfer.ask_many", fake)
    own, other, *controls = (Add(vector, strength=s, unit="raw", layers=(2,)) for s in left)
    asked = [Question(f"q{i}", "What?") for i in range(20)]
    edits = {"here": own, "there": other}
    table = transfer(tiny_model, {"here": tiny_model}, edits, asked, judge, seed=0, controls=controls).table
    assert table["cut"].tolist() == pytest.approx([0.8, 0.5, 0.04])
    assert (table["low"] <= table["cut"]).all() and (table["cut"] <= table["high"]).all()
    assert table.iloc[2][["low", "high"]].tolist() == pytest.approx([0.0, 0.08], abs=0.01)


def test_figure(made) -> None:
    figure = Transfer(made.table.assign(cut=[0.9, 0.7, 0.1, 0.8, 0.95, 0.0]), made.base).figure()
    (heat,) = figure.data
    assert list(heat.y) == ["medicine", "&lt;money&gt;", "random"] and list(heat.x) == ["medicine", "money"]
    assert [list(line) for line in heat.z] == [[0.9, 0.8], [0.7, 0.95], [0.1, 0.0]]
    assert figure.layout.title.text == "At least 70% of the excess goes (&lt;money&gt; on medicine)"
    assert "cut" in made._repr_html_()


def test_refusals(tiny_model, random_model, questions, judge, vector) -> None:
    arm = Add(vector, strength=1.0, unit="raw", layers=(2,))
    with pytest.raises(InputError, match="0 fine-tunes x 1 edits"):
        transfer(tiny_model, {}, {"a": arm}, questions, judge, seed=0)
    with pytest.raises(InputError, match="'random'"):
        transfer(tiny_model, {"a": tiny_model}, {"random": arm}, questions, judge, seed=0)
    with pytest.raises(InputError):
        transfer(tiny_model, {"a": random_model("gpt2")}, {"a": arm}, questions, judge, seed=0)
