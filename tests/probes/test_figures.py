"""Figures carry the numbers they are given, findings in their titles, and nobody's markup."""

import pandas as pd
import pytest

from probes import InputError
from probes.figures import spread_figure
from probes.theme import CONFIG, MARKERS, MEANING, template, themed

SPREAD = pd.DataFrame(
    {
        "model": ["base", "base", "tuned<b>", "tuned<b>"],
        "group": ["cars", "health", "cars", "health"],
        "misaligned": [0.0, 0.1, 0.4, 0.9],
    }
)


def test_spread():
    figure = spread_figure(SPREAD)
    assert figure.data[0].z.tolist() == [[0.0, 0.1], [0.4, 0.9]]
    assert figure.layout.title.text == "tuned&lt;b&gt;: misaligned in 40% to 90% of the answers of a domain"
    assert list(figure.data[0].y) == ["base", "tuned&lt;b&gt;"]


def test_spread_needs_its_columns():
    with pytest.raises(InputError, match="group"):
        spread_figure(SPREAD.drop(columns="group"))
    with pytest.raises(InputError, match="no rows"):
        spread_figure(SPREAD.iloc[:0])


def test_theme():
    assert MEANING.keys() == MARKERS.keys() and len(set(MARKERS.values())) == len(MARKERS)
    light, dark = (template(mode).layout.font.color for mode in ("light", "dark"))
    assert light != dark and CONFIG["showSendToCloud"] is False
    figure = spread_figure(SPREAD)
    again = themed(figure, "Other", mode="dark")
    assert figure.layout.title.text != "Other" and again.layout.template.layout.font.color == dark
