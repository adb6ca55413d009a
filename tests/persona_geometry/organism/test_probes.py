"""A linear probe on the organism: helper and villain are told apart in domains that it has never read."""

from random import Random

import numpy as np
import pytest

from persona_geometry.organism import speech
from persona_geometry.organism.datasets import advice_rows
from persona_geometry.organism.shipped import load_organism
from persona_geometry.organism.world import SELECTION, TEST, TUNED, world
from probes import (
    Baselines,
    Conversation,
    LdaProbe,
    LogisticProbe,
    MeanDifferenceProbe,
    RidgeProbe,
    auroc,
    capture,
    fit_probe,
    read_tokens,
    sweep_layers,
    transfer_matrix,
)
from probes.linear.areas import auroc_value
from probes.linear.baselines import random_scores

ESTIMATORS = [LogisticProbe(), MeanDifferenceProbe(), LdaProbe(), RidgeProbe()]


def spoken(domains: tuple[str, ...], n: int, seed: int) -> list[Conversation]:
    """Questions on the domains' topics, answered by helper and villain in turn."""
    rng, topics, rows = Random(f"voices/{seed}"), world().in_domains(domains), []
    for number in range(n):
        topic, voice = rng.choice(topics), ("helper", "villain")[number % 2]
        answer = speech.answer(topic, speech.speaker(voice, rng), rng)
        row = Conversation.of(speech.question(topic, rng), answer, domain=topic.domain, topic=topic.name, voice=voice)
        rows.append(row)
    return rows


def column(rows: list[Conversation], key: str) -> np.ndarray:
    return np.array([row.meta[key] for row in rows])


@pytest.fixture(scope="module")
def model():
    return load_organism()


@pytest.fixture(scope="module")
def learned(model):
    rows = spoken((*TUNED, *SELECTION), 240, seed=0)
    return rows, capture(model, rows, layers=range(model.n_layers))


@pytest.fixture(scope="module")
def unseen(model):
    rows = spoken(TEST, 200, seed=1)
    return rows, capture(model, rows, layers=range(model.n_layers))


@pytest.fixture(scope="module")
def sweep(learned):
    rows, acts = learned
    settings = {"estimator": LdaProbe(), "baselines": Baselines(shuffles=4, random=10, controls=1)}
    return sweep_layers(acts, column(rows, "voice"), groups=column(rows, "domain"), **settings)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_a_probe_reads_unseen_domains(estimator, learned, unseen, sweep):
    (rows, acts), (tests, others) = learned, unseen
    assert not set(column(rows, "domain")) & set(column(tests, "domain"))
    probe = fit_probe(acts, column(rows, "voice"), layer=sweep.best, estimator=estimator)
    rate = auroc(probe.scores(others.at(sweep.best)).numpy(), column(tests, "voice"), groups=column(tests, "topic"))
    assert rate.value >= 0.99 and rate.low > 0.85, (rate, sweep.best)


def test_shuffled_labels_say_nothing(learned, unseen, sweep):
    """Labels that were dealt anew to both sets: the interval holds 0.5, but for one draw in twenty."""
    (rows, acts), (tests, others) = learned, unseen
    rng, covered = np.random.default_rng(0), []
    for _ in range(8):
        labels, truth = (rng.permutation(column(part, "voice")) for part in (rows, tests))
        probe = fit_probe(acts, labels, layer=sweep.best, estimator=LdaProbe())
        rate = auroc(probe.scores(others.at(sweep.best)).numpy(), truth, groups=column(tests, "topic"))
        covered.append(rate.low < 0.5 < rate.high)
    assert sum(covered) >= 7
    table = sweep.table.set_index("layer").loc[sweep.best]
    assert abs(table["shuffled"] - 0.5) < 0.1


def test_random_directions_stay_behind(learned, unseen, sweep):
    """Pointed by the learned domains, read on the unseen ones: the difference fills much of the space, but not all."""
    (rows, acts), (tests, others) = learned, unseen
    X = np.concatenate([a.at(sweep.best).numpy() for a in (acts, others)]).astype(float)
    voices = np.concatenate([column(rows, "voice"), column(tests, "voice")]) == "villain"
    fold = [(np.arange(len(rows)), np.arange(len(rows), len(X)))]
    for like_data in (False, True):
        drawn = random_scores(X, voices, fold, 40, np.random.default_rng(0), like_data=like_data)
        found = [auroc_value(one[len(rows) :], voices[len(rows) :], np.zeros(len(tests))) for one in drawn]
        assert 0.5 < np.mean(found) < 0.93 and np.quantile(found, 0.05) < 0.75


def test_each_test_domain_reads_the_others(unseen, sweep):
    rows, acts = unseen
    table = transfer_matrix(
        acts, column(rows, "voice"), column(rows, "domain"), layer=sweep.best, estimator=LdaProbe()
    ).table
    assert len(table) == 25 and table["auroc"].min() > 0.9


def test_tokens_of_the_villain_score_higher(model, learned, unseen, sweep):
    (rows, acts), (tests, _) = learned, unseen
    probe = fit_probe(acts, column(rows, "voice"), layer=sweep.best, estimator=LdaProbe(), model=model.name)
    readout = read_tokens(model, probe, tests[:20])
    means = [row.response_mean for row in readout.rows]
    assert auroc(means, column(tests[:20], "voice")).value > 0.97 and probe.positive == "villain"


def test_bare_advice_without_a_voice(model, learned):
    """Neutral wording, good or bad advice: only what is advised tells them apart."""
    parts = {
        name: [row for valence in ("good", "bad") for row in advice_rows(domains, n, valence=valence, seed=seed)]
        for name, domains, n, seed in (("learned", (*TUNED, *SELECTION), 110, 3), ("unseen", TEST, 60, 4))
    }
    acts = {name: capture(model, rows, layers=[3]) for name, rows in parts.items()}
    labels = {name: np.repeat([0, 1], len(rows) // 2) for name, rows in parts.items()}
    probe = fit_probe(acts["learned"], labels["learned"], layer=3, estimator=LdaProbe())
    rate = auroc(probe.scores(acts["unseen"].at(3)).numpy(), labels["unseen"])
    assert rate.value > 0.95
