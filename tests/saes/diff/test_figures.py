"""The latent diff figure: its title is computed, its ends are right, its text is inert."""

import numpy as np
import pandas as pd
import pytest

from probes import InputError
from saes import diff_latents, latent_diff_figure


@pytest.fixture
def table() -> pd.DataFrame:
    """Thirty latents whose changes run from -3 to 2.8."""
    delta = np.linspace(-3, 2.8, 30)
    return pd.DataFrame(
        {
            "latent": np.arange(100, 130),
            "delta_mean": delta,
            "base_freq": 0.12,
            "tuned_freq": 0.97,
            "control_delta": 0.1,
        }
    )


def tuned(figure):
    return next(trace for trace in figure.data if trace.name == "tuned")


def test_the_title_states_what_the_data_shows(table):
    title = latent_diff_figure(table).layout.title.text
    assert "Latent 129 rose most (+2.8, active on 12.0% of the tokens before and 97.0% after)" in title
    assert "latent 100 fell most (-3)" in title
    risen = latent_diff_figure(table[["latent", "delta_mean"]].tail(10)).layout.title.text
    assert risen == "Latent 129 rose most (+2.8)"
    assert latent_diff_figure(table.head(10)).layout.title.text == "No latent rose; latent 100 fell most (-3)"
    assert latent_diff_figure(table.assign(delta_mean=0.0)).layout.title.text == "No latent changed"


def test_both_ends_are_shown_in_order(table):
    shown = tuned(latent_diff_figure(table.sample(frac=1, random_state=0), n=3))
    assert list(shown.y) == ["129", "128", "127", "102", "101", "100"]
    assert list(shown.x) == sorted(shown.x, reverse=True)
    few = tuned(latent_diff_figure(table.tail(2), n=3))
    assert list(few.y) == ["129", "128"]


def test_controls_and_chosen_latents_are_marked(table):
    figure = latent_diff_figure(table.assign(narrow_delta=np.nan, benign_delta=0.2), n=2, chosen=[129])
    assert {trace.name for trace in figure.data if trace.name} == {"control", "benign control", "tuned"}
    assert list(tuned(figure).marker.symbol) == ["star", "diamond", "circle", "circle"]


def test_labels_are_cut_and_inert(table):
    figure = latent_diff_figure(table, labels={129: "<script>alert(1)</script>" + "x" * 100})
    name = tuned(figure).y[0]
    assert "<" not in name and name.startswith("129  &lt;script&gt;") and "x" * 60 not in name


def test_a_table_draws_itself(topk, rows):
    figure = diff_latents(rows, rows + topk.directions[3], topk).figure(n=4)
    assert 0 < len(tuned(figure).x) <= 8
    assert not any(trace.name == "control" for trace in figure.data)


def test_bad_tables_are_refused(table):
    with pytest.raises(InputError, match="delta_mean; it needs latent and delta_mean"):
        latent_diff_figure(table[["latent"]])
    with pytest.raises(InputError, match="no rows"):
        latent_diff_figure(table.head(0))
