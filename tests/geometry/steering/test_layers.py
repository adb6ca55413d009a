"""The choice of a layer: its criterion on planted behaviour, its cells on a model, its figure."""

import pytest
import torch

from geometry import Add, LayerChoice, ask_many, choose_layer
from geometry.steering import layers
from probes import InputError, Model
from tests.geometry.steering.planted import outcomes

#: Planted: (block, strength) -> rate of the trait, coherent share; the untreated model shows it in 10 %.
PLANTED = {
    (1, 0.5): (0.30, 0.95),
    (1, 1.0): (0.60, 0.93),
    (2, 0.5): (0.60, 0.92),
    (2, 1.0): (0.95, 0.50),  # the strongest, at the price of coherence
    (3, 0.5): (0.05, 1.00),
    (3, 1.0): (0.00, 0.98),
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Answers as planted; the list counts the calls."""
    calls = []

    def fake(model, arms, questions, judge, **_):
        calls.append(len(arms))
        done = [(0.1, 1.0) if arm == () else PLANTED[arm.layers[0], arm.strength] for arm in arms]
        return [outcomes(*rates, n=400) for rates in done]

    monkeypatch.setattr(layers, "ask_many", fake)
    return calls


def choose(model, vector, questions, judge, **changes) -> LayerChoice:
    settings = {"strengths": [0.5, 1.0], "unit": "resid_norm", "seed": 0}
    return choose_layer(model, vector, questions, judge, **(settings | changes))


def test_the_strongest_change_that_stays_coherent(planted, tiny_model, vector, questions, judge) -> None:
    found = choose(tiny_model, vector, questions, judge)
    assert planted == [1 + 6], "one call: the untreated model and all cells share their batches"
    assert (found.best.layer, found.best.strength) == (2, 0.5), "as strong as block 1 at 1.0, by the weaker edit"
    assert found.best.change == pytest.approx(0.5, abs=0.01) and found.untreated.trait == pytest.approx(0.1)
    assert found.table["kept"].tolist() == [True, True, True, False, True, True]
    assert choose(tiny_model, vector, questions, judge, coherence_budget=0.4).best[:2] == (2, 1.0)
    assert choose(tiny_model, vector, questions, judge, goal="repair").best[:2] == (3, 1.0)


def test_where_nothing_will_do(planted, tiny_model, vector, questions, judge) -> None:
    with pytest.raises(InputError, match="raises the trait"):
        choose(tiny_model, vector, questions, judge, layers=[3]).best  # noqa: B018
    with pytest.raises(InputError, match=r"keeps 60% of the coherence of 100% \(most: 50%\)"):
        lost = choose(tiny_model, vector, questions, judge, layers=[2], strengths=[1.0], coherence_budget=0.6)
        lost.best  # noqa: B018
    assert lost.figure().layout.title.text == "No block moves 10% misaligned"


@pytest.mark.parametrize("unit", ["raw", "resid_norm", "delta_norm"])
@pytest.mark.parametrize("strength", [0.5, -0.5])
def test_a_file_recommends_the_very_edit(planted, tiny_model, vector, questions, judge, unit, strength, monkeypatch):
    monkeypatch.setitem(PLANTED, (2, -0.5), (0.7, 1.0))
    found = choose(tiny_model, vector, questions, judge, layers=[2], strengths=[strength], unit=unit)
    ((layer, raw),) = found.coefficients(vector).items()
    wanted = Add(vector, strength=strength, unit=unit, layers=(2,)).steps[2]
    assert layer == 2 and torch.allclose(Add(vector, strength=raw, unit="raw").steps[2], wanted, rtol=1e-5)


def test_cells_of_a_model(tiny_model: Model, vector, questions, judge) -> None:
    settings = {"n_samples": 2, "max_new_tokens": 5}
    found = choose(tiny_model, vector, questions, judge, strengths=[0.5, 4.0], trait="vowels", **settings)
    assert found.table[["layer", "strength"]].values.tolist() == [[i, s] for i in (1, 2, 3) for s in (0.5, 4.0)]
    arms = [(), *(Add(vector, strength=s, unit="resid_norm", layers=(i,)) for i in (1, 2, 3) for s in (0.5, 4.0))]
    again = ask_many(tiny_model, arms, questions, judge, seed=0, **settings)
    for row, one in zip(found.table.to_dict("records"), again[1:], strict=True):
        assert row["trait"] == pytest.approx(one.rate("misaligned").value, nan_ok=True)
        assert row["coherent"] == one.rate("coherent").value
    assert found.untreated.trait == pytest.approx(again[0].rate("misaligned").value)
    assert "strength" in found._repr_html_()


def test_figure(planted, tiny_model, vector, questions, judge) -> None:
    figure = choose(tiny_model, vector, questions, judge, trait="<cheer>").figure()
    inside, beyond = figure.data
    assert list(inside.y) == ["1", "2", "3"] and list(inside.x) == ["0.5", "1"]
    assert list(inside.z[1]) == [pytest.approx(0.6, abs=0.01), None] and list(beyond.text[1]) == ["", "(95%)"]
    (frame,) = figure.layout.shapes
    assert inside.text[1][0] == "★ 60%" and (frame.x0, frame.y0) == (-0.5, 0.5), "second row, first column"
    assert figure.layout.title.text == "Block 2 at 0.5: 10% to 60% &lt;cheer&gt;"
    assert max(len(figure.layout.xaxis.title.text), len(figure.layout.yaxis.title.text)) <= 24


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strengths": []}, "each of them once, and not 0"),
        ({"strengths": [1.0, 1.0]}, "each of them once, and not 0"),
        ({"strengths": [0.0]}, "each of them once, and not 0"),
        ({"layers": [9]}, "blocks 0 to 3"),
        ({"layers": [1, 1]}, "each of them once"),
        ({"layers": [0]}, "directions for blocks"),
        ({"coherence_budget": 90}, "a share between 0 and 1"),
    ],
)
def test_refusals(tiny_model, vector, questions, judge, changes, said) -> None:
    with pytest.raises(InputError, match=said):
        choose(tiny_model, vector, questions, judge, **changes)
