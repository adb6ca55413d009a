"""Figures of quality: what is drawn is what the tables say, and names are only text."""

import numpy as np
import pandas as pd
import pytest
import torch

from probes import InputError
from saes import density_figure, pareto_figure, stability_figure

PHONE = 40  # characters of an axis title that a phone shows


@pytest.fixture
def table() -> pd.DataFrame:
    """Four SAEs, of which one is worse than another in both."""
    frame = pd.DataFrame({"name": ["a", "<b>", "c", "d"], "l0": [8.0, 16.0, 32.0, 40.0], "fvu": [0.3, 0.2, 0.05, 0.1]})
    return frame.assign(fvu_low=frame["fvu"] - 0.02, fvu_high=frame["fvu"] + 0.01, ce_recovered=[0.5, 0.9, 0.8, 0.95])


def trace(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_the_front_joins_those_that_nothing_beats(table):
    figure = pareto_figure(table)
    assert list(trace(figure, "best").x) == [8, 16, 32]
    np.testing.assert_allclose(trace(figure, "best").y, [0.7, 0.8, 0.95])
    one = trace(figure, "&lt;b&gt;")
    assert one.y[0] == pytest.approx(0.8) and one.error_y.array[0] == pytest.approx(0.02)
    assert one.error_y.arrayminus[0] == pytest.approx(0.01)
    assert figure.layout.title.text == "c: 95.0%<br>at 32 a row" and figure.layout.xaxis.type == "log"


def test_cross_entropy_in_the_place_of_variance(table):
    figure = pareto_figure(table.assign(ce_recovered_low=0.4, ce_recovered_high=1.0), measure="recovered")
    assert list(trace(figure, "best").x) == [8, 16, 40] and "recovered" in figure.layout.yaxis.title.text


def test_the_histogram_counts_every_latent_once():
    freq = torch.tensor([0.0, 0.0, 0.001, 0.02, 0.02, 0.5, 0.9, 1.0], dtype=torch.float64)
    figure = density_figure({"<one>": freq})
    (drawn,) = figure.data
    assert sum(drawn.y) == pytest.approx(1) and drawn.y[0] == 0.25 and drawn.name == "&lt;one&gt;"
    at = int(np.argmin(np.abs(np.array(drawn.x[1:]) - np.log10(0.02)))) + 1
    assert drawn.y[at] == 0.25
    assert figure.layout.title.text == "25.0% of the latents never fire,<br>37.5% on more than 10% of the rows"
    assert figure.layout.xaxis.ticktext[0] == "never"


def test_the_share_that_comes_again():
    cosines = torch.tensor([0.95, 0.8, 0.3, torch.nan])
    figure = stability_figure({("a", "b"): cosines}, torch.tensor([0.2, 0.4]))
    drawn = trace(figure, "a in b")
    assert drawn.y[0] == 1 and drawn.y[70] == pytest.approx(2 / 3) and drawn.y[90] == pytest.approx(1 / 3)
    assert trace(figure, "random directions").y[30] == 0.5
    assert figure.layout.title.text.startswith("67% of the latents")


def test_titles_fit_a_phone(table):
    figures = [
        pareto_figure(table),
        density_figure({"a": torch.rand(9)}),
        stability_figure({("a", "b"): torch.rand(5)}, torch.rand(5)),
    ]
    for figure in figures:
        titles = [
            figure.layout.xaxis.title.text,
            figure.layout.yaxis.title.text,
            *figure.layout.title.text.split("<br>"),
        ]
        assert max(map(len, titles)) <= PHONE, titles


def test_bad_tables_are_refused(table):
    with pytest.raises(InputError, match="no ce_recovered; it needs ce_recovered, l0 and name"):
        pareto_figure(table.drop(columns="ce_recovered"), measure="recovered")
    with pytest.raises(InputError, match="no rows"):
        pareto_figure(table.head(0))
    for draw in (lambda: density_figure({}), lambda: stability_figure({}, torch.rand(3))):
        with pytest.raises(InputError, match=r"no (firing rates|pair)"):
            draw()
