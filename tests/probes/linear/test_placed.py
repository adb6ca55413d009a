"""Probes with their place: fitted from activations, and the same after a trip through a folder."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from probes import (
    CalibratedProbe,
    InputError,
    LayerProbe,
    LdaProbe,
    LogisticProbe,
    MeanDifferenceProbe,
    RidgeProbe,
    fit_probe,
    load_probe,
    save_probe,
)
from probes.linear import estimator_named

ESTIMATORS = [
    LogisticProbe(C=0.5),
    MeanDifferenceProbe(),
    LdaProbe(shrinkage=0.3),
    RidgeProbe(),
    CalibratedProbe(LdaProbe(shrinkage=0.2), n_folds=3),
]


@pytest.fixture
def fitted(planted) -> LayerProbe:
    acts, labels, _ = planted()
    return fit_probe(acts, labels, layer=5, model="tiny<m>", meta={"auroc": 0.9})


def test_scores_are_the_estimators(planted):
    acts, labels, _ = planted()
    placed = fit_probe(acts, np.where(labels, "villain", "helper"), layer=5, estimator=LdaProbe(), model="m")
    expected = LdaProbe().fit(acts.at(5).double().numpy(), labels).decision_function(acts.at(5).numpy())
    assert placed.scores(acts.at(5)).numpy() == pytest.approx(expected)
    cube = acts.at(5).reshape(2, 60, 12)
    assert placed.scores(cube).shape == (2, 60) and placed.scores(cube[1, 3]).item() == pytest.approx(expected[63])
    assert (placed.positive, placed.pool, placed.template_hash, placed.d_model) == (
        "villain", "response_mean", "hash", 12
    )  # fmt: skip
    assert repr(placed) == "LayerProbe(LdaProbe, block 5, resid_post, m)"


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize("names", [(0, 1), ("bad", "good"), (False, True)], ids=str)
def test_a_folder_gives_it_back(estimator, names, planted, tmp_path):
    acts, labels, _ = planted()
    labels = np.array(names)[labels]
    placed = fit_probe(acts, labels, layer=5, estimator=estimator, model="m", meta={"seed": 3})
    again = load_probe(save_probe(placed, tmp_path / "probe"))
    X = acts.at(5).double().numpy()
    assert np.array_equal(again.probe.decision_function(X), placed.probe.decision_function(X))
    assert np.array_equal(again.probe.predict(X), placed.probe.predict(X)) and again.positive == names[1]
    assert np.array_equal(again.probe.direction_, placed.probe.direction_)
    assert repr(again.probe) == repr(placed.probe) and type(again.probe) is type(estimator)
    assert all(getattr(again, name) == getattr(placed, name) for name in ("layer", "site", "pool", "model", "meta"))
    assert torch.equal(again.scores(acts.at(5)), placed.scores(acts.at(5)))
    assert sorted(p.name for p in (tmp_path / "probe").iterdir()) == ["probe.json", "probe.safetensors"]


def damaged(change):
    """A way to damage a saved probe: what `change` does to its card."""

    def apply(folder):
        card = json.loads((folder / "probe.json").read_text())
        change(card)
        (folder / "probe.json").write_text(json.dumps(card))

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "probe.json").unlink(), "no such file"),
        (lambda folder: (folder / "probe.json").write_text("[]"), "not of the format"),
        (lambda folder: (folder / "probe.safetensors").unlink(), "not readable"),
        (lambda folder: (folder / "probe.safetensors").write_bytes(b"cos\nsystem\n"), "not readable"),
        (damaged(lambda card: card.pop("layer")), "layer is 'None', no int"),
        (damaged(lambda card: card.update(format="other/1")), "not of the format"),
        (damaged(lambda card: card.update(d_model=13)), "the card says width 13"),
        (damaged(lambda card: card.update(site="nowhere")), "nowhere"),
        (damaged(lambda card: card.update(estimator="logistic")), "no dict"),
        (damaged(lambda card: card.update(classes=["one"])), "classes"),
        (damaged(lambda card: card["estimator"].update(name="os.system")), "use one of logistic"),
        (damaged(lambda card: card["estimator"]["settings"].update(fit="x")), "no setting 'fit'"),
    ],
)
def test_damaged_folders_are_refused(damage, said, fitted, tmp_path):
    folder = save_probe(fitted, tmp_path / "probe")
    damage(folder)
    with pytest.raises(InputError, match=said):
        load_probe(folder)


def test_refusals(fitted, planted):
    acts, labels, _ = planted()
    with pytest.raises(InputError, match="not fitted"):
        LayerProbe(LogisticProbe(), 3)
    with pytest.raises(InputError, match="layer -1"):
        replace(fitted, layer=-1)
    with pytest.raises(InputError, match="was not captured"):
        fit_probe(acts, labels, layer=4)
    with pytest.raises(InputError, match="for 120 samples"):
        fit_probe(acts, labels[:-1], layer=5)
    with pytest.raises(InputError, match="mean-difference"):
        estimator_named("mlp")
