"""Figures of feature geometry: titles follow the data, hostile labels are inert, odd tables are refused."""

import pandas as pd
import pytest
import torch

from geometry.features import DecoderMap, FeatureSet, compare_sets, features_figure, geometry_figure, map_figure
from probes.errors import InputError


@pytest.fixture
def compared(sae):
    sets = [FeatureSet.of(sae, x) for x in (range(10, 20), range(30, 40), range(5))]
    return compare_sets(sae, *sets, generator=torch.Generator().manual_seed(0), n_permutations=100)


@pytest.fixture
def table():
    rows = [("harmful", 0, 0), ("inducing", 1, 0), ("benign", 5, 0), ("benign", 6, 0), ("other", 2, 2)]
    return pd.DataFrame([{"latent": i, "group": g, "x": float(x), "y": float(y)} for i, (g, x, y) in enumerate(rows)])


@pytest.mark.parametrize(
    ("effect", "ci", "p", "words"),
    [
        (0.2, (0.1, 0.3), 0.001, "nearer"),
        (-0.2, (-0.3, -0.1), 0.99, "farther"),
        (0.2, (-0.1, 0.3), 0.001, "No clear"),
        (0.2, (0.1, 0.3), 0.2, "No clear"),
    ],
)
def test_geometry_title_follows_the_data(compared, effect, ci, p, words):
    summary = {"effect": effect, "ci": ci, "p": p, "null": "label_permutation"}
    title = geometry_figure(compared.distances, compared.nulls, summary).layout.title.text
    assert words in title and f"{effect:+.3f}" in title


def test_geometry_figure_draws_every_latent_and_draw(compared):
    figure = compared.figure()
    points = [trace for trace in figure.data if trace.type == "scatter" and len(trace.x) == 10]
    assert len(points) == 2 and sum(figure.data[-2].y) == 100
    assert "inducing" in compared._repr_html_()


def test_map_title_follows_the_data(table):
    assert "nearer to" in map_figure(table, trust=0.91).layout.title.text
    assert "0.91" in map_figure(table, trust=0.91).layout.title.text
    swapped = table.assign(group=table.group.map(lambda g: {"inducing": "benign", "benign": "inducing"}.get(g, g)))
    assert "no nearer to" in map_figure(swapped).layout.title.text
    assert map_figure(table[table.group != "harmful"]).layout.title.text == "A map of 4 decoder directions"


def test_map_background_is_webgl_and_marked_points_have_text(table):
    figure = map_figure(table.assign(label="<img src=x onerror=alert(1)>" + "y" * 90))
    kinds = {trace.name.split()[0]: trace for trace in figure.data}
    assert kinds["other"].type == "scattergl" and kinds["other"].text is None
    text = kinds["harmful"].text[0]
    assert "<img" not in text and "&lt;img" in text and text.endswith("…")


def test_map_object_draws_itself(sae):
    plane = torch.rand(3, 2)
    drawn = DecoderMap((4, 5, 6), plane, plane, (0.5, 0.2), 0.9, 0.8, 2, 3)
    figure = drawn.figure({"harmful": FeatureSet.of(sae, (5,))}, {5: "insult"})
    assert figure.data[1].text == ("latent 5 insult",) and "3" in drawn._repr_html_()


def test_features_figure(sae):
    figure = FeatureSet.of(sae, (9, 4), effect=(2.0, 1.0)).figure()
    assert list(figure.data[0].y) == ["9", "4"] and "Latent 9 leads" in figure.layout.title.text


def test_odd_tables_are_refused(sae, compared, table):
    for attempt in (
        lambda: features_figure(FeatureSet.of(sae, ())),
        lambda: geometry_figure(compared.distances.drop(columns="set"), compared.nulls, compared.summary()),
        lambda: geometry_figure(compared.distances[:0], compared.nulls, compared.summary()),
        lambda: map_figure(table.drop(columns="x")),
        lambda: map_figure(table[:0]),
    ):
        with pytest.raises(InputError):
            attempt()
