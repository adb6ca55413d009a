"""Figures of steering: they draw, say what they show, and escape what they are given."""

import dataclasses

import pandas as pd
import plotly.graph_objects as go
import pytest

from geometry.steering.doses import COLUMNS, DoseCurve
from geometry.steering.screen import CausalScreen
from geometry.steering.writers import Writers
from probes import InputError


def dose_table(on: str = "tuned") -> pd.DataFrame:
    rows = [
        (-1.0, "vector", on, 0.05, 0.02, 0.09, 0.94, 200, 0, True),
        (0.0, "vector", on, 0.3, 0.25, 0.36, 0.95, 200, 0, False),
        (1.0, "vector", on, 0.8, 0.75, 0.84, 0.93, 200, 0, False),
        (-1.0, "random_norm", on, 0.78, 0.7, 0.85, 0.9, 1200, 20, False),
        (1.0, "random_norm", on, 0.8, 0.74, 0.86, 0.92, 1200, 20, False),
        (-1.0, "random_covariance", on, 0.75, 0.6, 0.85, 0.9, 1200, 20, False),
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_dose_figure() -> None:
    both = DoseCurve(dose_table(), pd.DataFrame()).join(DoseCurve(dose_table("base"), pd.DataFrame()))
    figure = both.figure(coherence_budget=0.9)
    assert figure.layout.title.text == "Strength -1: 5% misaligned, 94% coherent"
    names = {trace.name for trace in figure.data}
    assert {"misaligned, tuned", "coherent, base", "random norm, tuned", "chosen"} <= names
    with pytest.raises(InputError, match="kind 'vector'"):
        DoseCurve(dose_table().query("kind != 'vector'"), pd.DataFrame()).figure()


def test_screen_figure() -> None:
    table = pd.DataFrame({"latent": [5, 6, 7], "induce": [0.5, 0.1, float("nan")], "repair": [0.9, 0.2, 0.1]})
    figure = CausalScreen(table, pd.DataFrame()).figure()
    assert figure.layout.title.text == "Latent 5 removes 90% of the excess and adds 50% to the base"
    assert list(figure.data[0].text) == ["5", "6"]
    empty = CausalScreen(table.assign(induce=float("nan")), pd.DataFrame()).figure()
    assert "None of 3" in empty.layout.title.text


def test_writers_figure() -> None:
    rows = [(-1, "embed", -1, 0.0, 0.0, 0.0), (0, "head", 0, 0.1, 0.2, 0.1), (0, "mlp", -1, 0.1, 0.0, -0.1)]
    rows += [(1, "head", 0, 0.0, 0.0, 0.0), (1, "head", 1, 0.5, 0.9, 0.4), (1, "mlp", -1, 0.0, 0.1, 0.1)]
    table = pd.DataFrame(rows, columns=["layer", "component", "head", "base", "tuned", "shift"])
    figure = Writers(table, {"base": 0.7, "tuned": 1.2}, 1).figure()
    assert figure.layout.title.text == "Head 1 of block 1 changed most: +0.4, 80% of the whole"
    assert list(figure.data[0].x) == ["head 0", "head 1", "MLP"] and list(figure.data[0].y) == ["block 0", "block 1"]
    assert figure.data[0].z[0][1] is None and figure.data[0].zmax == 0.4


def test_vector_figure(vector) -> None:
    figure = dataclasses.replace(vector, method="<script>").figure()
    assert isinstance(figure, go.Figure) and "<script>" not in figure.layout.title.text
    assert figure.data[0].y[0] == pytest.approx(vector.norm(1) / 8)
    bare = dataclasses.replace(vector, resid_norms={}, split_half={}).figure()
    assert len(bare.data) == 1 and bare.data[0].y[0] == pytest.approx(vector.norm(1))
