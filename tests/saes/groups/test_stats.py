"""Statistics by group: NumPy over dense latents, scikit-learn's AUROC, DeLong's formula written out."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from probes import Activations, ActivationStore, InputError
from saes import Contrast, LatentStore, SparseAutoencoder, encode, encode_into, group_stats
from tests.saes.latent_store.conftest import activations

LABELS = [None if i % 7 == 3 else ("harmful" if i % 2 else "harmless") for i in range(40)]


@pytest.fixture(scope="module")
def acts() -> Activations:
    """Forty conversations; every second one leans towards the first direction."""
    acts = activations(0, 40)
    lean = 4 * (acts.conversation_index % 2)[:, None] * torch.eye(32)[0]
    return dataclasses.replace(acts, values=acts.values + lean)


@pytest.fixture
def dense(sae, acts) -> SimpleNamespace:
    """The latents as a dense array, and what each row belongs to."""
    index = acts.conversation_index.numpy()
    return SimpleNamespace(z=encode(sae, acts).double().numpy(), conversation=index, labels=np.array(LABELS)[index])


def scores(dense, by: str) -> dict[int, np.ndarray]:
    """One score a conversation and latent."""
    pool = {"max": np.max, "mean": np.mean}[by]
    named = [i for i in range(40) if LABELS[i]]
    return {i: pool(dense.z[dense.conversation == i], axis=0) for i in named}


def delong(upper: np.ndarray, lower: np.ndarray) -> tuple[float, float]:
    """AUROC and its standard error, pair by pair."""
    won = (upper[:, None] > lower).astype(float) + (upper[:, None] == lower) / 2
    variance = won.mean(1).var(ddof=1) / len(upper) + won.mean(0).var(ddof=1) / len(lower)
    return won.mean(), np.sqrt(variance)


def test_statistics_are_those_of_each_groups_rows(sae, acts, dense):
    found = group_stats(sae, acts, LABELS)
    assert found.groups == ("harmful", "harmless")
    for at, group in enumerate(found.groups):
        z = dense.z[dense.labels == group]
        np.testing.assert_allclose(found.mean[at], z.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.freq[at], (z > 0).mean(0), atol=2e-3)
        np.testing.assert_allclose(found.max[at], z.max(0), rtol=1e-4, atol=1e-5)
        active = [z[dense.conversation[dense.labels == group] == i].any(0) for i in range(40) if LABELS[i] == group]
        np.testing.assert_allclose(found.active_conversations[at], np.sum(active, axis=0), atol=1)
        assert found.n[at] == len(z) and found.conversations[at] == LABELS.count(group)
    fires = found.freq > 0
    torch.testing.assert_close(found.mean_active[fires], (found.mean / found.freq)[fires])


@pytest.mark.parametrize("by", ["max", "mean"])
def test_the_area_is_that_of_scikit_learn(sae, acts, dense, by):
    found = group_stats(sae, acts, LABELS, contrast=Contrast(versus=("harmful", "harmless"), by=by)).contrast
    held = scores(dense, by)
    sides = [np.array([held[i] for i in held if LABELS[i] == name]) for name in ("harmful", "harmless")]
    truth = np.repeat([1, 0], [len(side) for side in sides])
    for latent in range(64):
        upper, lower = (side[:, latent] for side in sides)
        area = roc_auc_score(truth, np.concatenate([upper, lower]))
        value, error = delong(upper, lower)
        assert float(found.auroc[latent]) == pytest.approx(area, abs=1e-3) == pytest.approx(value, abs=1e-9)
        if 0 < area < 1:
            assert float(found.high[latent] - found.auroc[latent]) == pytest.approx(
                min(1.959964 * error, 1 - area), abs=2e-3
            )
    assert found.exact and not found.error.any() and (found.low <= found.auroc).all()


def test_ties_count_half_and_silence_says_nothing():
    eye = torch.eye(3)
    acts = Activations(torch.zeros(1, 8, 3), (0,), "last_prompt", "hash", torch.arange(8))
    acts.values[0, :, 0] = torch.tensor([2.0, 2, 1, 0, 2, 1, 1, 0])
    acts.values[0, :, 1] = torch.tensor([5.0, 6, 7, 8, 0, 0, 0, 0])
    sae = SparseAutoencoder(eye, eye, torch.zeros(3), torch.zeros(3), "standard", 0)
    found = group_stats(sae, acts, ["b"] * 4 + ["a"] * 4).contrast
    assert found.upper == "b" and found.auroc.tolist() == pytest.approx([9.5 / 16, 1, 0.5])
    assert float(found.low[1]) == pytest.approx(0.025 ** (1 / 4)) and float(found.high[1]) == 1  # Clopper and Pearson
    turned = group_stats(sae, acts, ["b"] * 4 + ["a"] * 4, contrast=Contrast(versus=("a", "b"))).contrast
    torch.testing.assert_close(turned.auroc, 1 - found.auroc)


def test_histograms_keep_their_word(sae, acts):
    exact = group_stats(sae, acts, LABELS).contrast
    for entries in (0, 300):
        binned = group_stats(sae, acts, LABELS, contrast=Contrast(entries=entries)).contrast
        assert not binned.exact and not len(binned.chance)
        assert ((binned.auroc - exact.auroc).abs() <= binned.error + 1e-9).all()
        assert 0 < float(binned.error.mean()) < 0.2
        assert (binned.low <= exact.low + 1e-9 + binned.error).all()


def test_a_store_in_pieces_gives_what_memory_gives(sae, acts, tmp_path, monkeypatch):
    source = ActivationStore.create(tmp_path / "acts")
    for first in range(0, 40, 8):
        inside = (acts.conversation_index >= first) & (acts.conversation_index < first + 8)
        source.append(acts.select(inside))
    store = LatentStore.create(tmp_path / "latents")
    encode_into(sae, source, store)
    whole = group_stats(sae, acts, LABELS, where="response")
    monkeypatch.setattr("saes.groups.stats.block_rows", lambda _: 3)
    for latents, rows in ((sae, source), (sae, acts), (store, None)):
        found = group_stats(latents, rows, LABELS, where="response")
        for name in ("mean", "freq", "max"):
            torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.contrast.auroc, whole.contrast.auroc, rtol=0, atol=2e-3)
        assert found.n == whole.n and found.conversations == whole.conversations


def test_the_planted_latent_comes_first_and_beats_chance(acts):
    eye, zero = torch.eye(32), torch.zeros(32)
    sae = SparseAutoencoder(eye, eye, zero, zero, "standard", 2)
    found = group_stats(sae, acts, LABELS)
    assert found.ranked["latent"].iloc[0] == 0 and found.ranked["auroc"].iloc[0] < 0.5  # harmful leans, and sorts first
    best = abs(found.ranked["auroc"].iloc[0] - 0.5)
    assert best > found.contrast.chance.max() and len(found.contrast.chance) == 20
    assert len(found.table) == 64 and set(found.table["group"]) == {"harmful", "harmless"}
    again = group_stats(sae, acts, LABELS, contrast=Contrast(seed=1)).contrast
    assert not torch.equal(again.chance, found.contrast.chance) and torch.equal(again.auroc, found.contrast.auroc)


def test_chance_covers_groups_that_do_not_differ(acts):
    eye, zero = torch.eye(32), torch.zeros(32)
    sae = SparseAutoencoder(eye, eye, zero, zero, "standard", 1)
    beaten = 0
    for seed in range(10):
        labels = np.random.default_rng(seed).permutation(["a", "b"] * 20).tolist()
        flat = dataclasses.replace(acts, values=activations(0, 40, seed=seed + 1).values)
        found = group_stats(sae, flat, labels, contrast=Contrast(seed=seed)).contrast
        beaten += float((found.auroc - 0.5).abs().max()) > float(found.chance.max())
    assert beaten <= 3  # one in 21 is expected


def test_many_groups_are_compared_two_at_a_time(topk, acts):
    labels = [i % 3 for i in range(40)]
    plain = group_stats(topk, acts, labels)
    assert plain.groups == ("0", "1", "2") and plain.contrast is None and sum(plain.n) == len(acts)
    with pytest.raises(InputError, match="say which two to compare"):
        plain.ranked  # noqa: B018
    two = group_stats(topk, acts, labels, contrast=Contrast(versus=("2", "0"))).contrast
    only = group_stats(topk, acts, [label if label != 1 else None for label in labels]).contrast
    torch.testing.assert_close(two.auroc, only.auroc)


def test_bad_input(topk, acts, rows, tmp_path):
    source, store = ActivationStore.create(tmp_path / "acts"), LatentStore.create(tmp_path / "latents")
    source.append(acts)
    encode_into(topk, source, store)
    cases = [
        ("conversation 39 has no label: groups has 30", lambda: group_stats(topk, acts, LABELS[:30])),
        ("no conversation has a label", lambda: group_stats(topk, acts, [None] * 40)),
        ("group 'x' has no row", lambda: group_stats(topk, acts, [*LABELS, "x"])),
        ("name two of the groups", lambda: group_stats(topk, acts, LABELS, contrast=Contrast(versus=("harmful", "y")))),
        ("which know the conversations of their rows", lambda: group_stats(topk, rows, LABELS)),
        ("which know the conversations of their rows", lambda: group_stats(topk, None, LABELS)),
        ("read at mlp_out", lambda: group_stats(topk, dataclasses.replace(acts, site="mlp_out"), LABELS)),
        ("give None for the source", lambda: group_stats(store, acts, LABELS)),
    ]
    for message, ask in cases:
        with pytest.raises(InputError, match=message):
            ask()


def test_shown_with_labels_that_are_only_text(topk, acts):
    labels = ["<b>x</b>" if label == "harmful" else label for label in LABELS]
    shown = group_stats(topk, acts, labels)._repr_html_()
    assert "&lt;b&gt;x" in shown and "<b>" not in shown
