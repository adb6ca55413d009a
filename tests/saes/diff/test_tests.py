"""What a diff says of chance: pairing, weights, controls, false discoveries, an SAE that no longer fits."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from probes import ActivationStore, InputError
from saes import LatentTable, SparseAutoencoder, diff_latents, encode, quality


def by_conversation(sae, acts) -> np.ndarray:
    latents = encode(sae, acts).double()
    rows = [latents[acts.conversation_index == i].mean(0) for i in acts.conversation_index.unique()]
    return torch.stack(rows).numpy()


def test_the_same_texts_are_paired(sae, made):
    base, tuned = made(0), made(0, shift=0.4 * sae.directions[11])
    found = diff_latents(base, tuned, sae, weight="conversation")
    before, after = (by_conversation(sae, acts) for acts in (base, tuned))
    fired = (before > 0).any(0) | (after > 0).any(0)
    assert found.test == "paired" and found.conversations == (30, 30)
    np.testing.assert_allclose(found.table["delta_mean"], (after - before).mean(0), atol=1e-6)
    np.testing.assert_allclose(found.table["p"][fired], stats.ttest_rel(after, before).pvalue[fired], rtol=1e-3)
    gaps = (after - before)[:, fired]
    np.testing.assert_allclose(found.table["effect"][fired], gaps.mean(0) / gaps.std(0, ddof=1), rtol=1e-3)
    assert found.table["p"][~fired].isna().all()


def test_other_texts_are_not(sae, made):
    base, tuned = made(0), made(1, n=25, text=1, shift=0.4 * sae.directions[11])
    for other in (tuned, made(1, text=1)):
        assert diff_latents(base, other, sae).test == "welch"
    found = diff_latents(base, tuned, sae, weight="conversation")
    before, after = (by_conversation(sae, acts) for acts in (base, tuned))
    expected = stats.ttest_ind(after, before, equal_var=False).pvalue
    tested = found.table["p"].notna()
    np.testing.assert_allclose(found.table["p"][tested], expected[tested], rtol=1e-3)


def test_weights_say_what_counts(topk, made):
    base, tuned = made(0), made(0, shift=topk.directions[3])
    token = diff_latents(base, tuned, topk).table
    conversation = diff_latents(base, tuned, topk, weight="conversation").table
    tokens = [encode(topk, acts).double() for acts in (base, tuned)]
    np.testing.assert_allclose(token["delta_mean"], tokens[1].mean(0) - tokens[0].mean(0), atol=1e-6)
    np.testing.assert_allclose(token["tuned_freq"], (tokens[1] > 0).double().mean(0), atol=1e-12)
    means = [by_conversation(topk, acts) for acts in (base, tuned)]
    np.testing.assert_allclose(conversation["delta_mean"], (means[1] - means[0]).mean(0), atol=1e-6)
    assert np.abs(token["delta_mean"] - conversation["delta_mean"]).max() > 1e-3


@pytest.mark.parametrize("weight", ["token", "conversation"])
@pytest.mark.parametrize("same", [True, False])
def test_under_the_null_p_is_honest(topk, made, weight, same):
    """Fine-tunes that change nothing but noise: five in a hundred latents have p < .05, and q calls almost none."""
    shares, called = [], 0
    for seed in range(8):
        base, tuned = made(seed, n=40), made(100 + seed, n=40, text=0 if same else 1)
        found = diff_latents(base, tuned, topk, weight=weight).table
        often = found[(found["base_freq"] > 0.02) & (found["tuned_freq"] > 0.02)]
        shares.append((often["p"] < 0.05).mean())
        called += int((often["q"] < 0.05).sum())
    assert 0.02 < np.mean(shares) < 0.08
    assert called <= 3


def test_planted_latents_lead_and_controls_are_taken_off(topk, made):
    def tuned(scale: float = 1.0):
        return made(0, shift=scale * (2.0 * topk.directions[7] - 1.5 * topk.directions[40]), spread=0.1)

    found = diff_latents(made(0), tuned(), topk, controls={"benign": tuned(0.1), "narrow": made(0)})
    assert found.top(1)["latent"].item() == 7
    table = found.table.set_index("latent")
    assert table.loc[7, "q"] < 1e-3 and table.loc[7, "benign_q"] < 1e-3
    expected = table["delta_mean"] - np.maximum(table["benign_delta"], 0)
    rose = (table["delta_mean"] > 0) & (expected > 0)
    np.testing.assert_allclose(table["over_controls"][rose], expected[rose], atol=1e-9)
    assert (np.sign(table["over_controls"]) * np.sign(table["delta_mean"]) >= 0).all()
    assert not table["narrow_delta"].any()
    assert found.top(1, by="cosine")["latent"].item() == 7 and found.bottom(1, by="cosine")["latent"].item() == 40
    assert 7 in found.significant()["latent"].tolist()


def test_cosine_is_that_of_the_mean_difference(sae, made):
    base, tuned = made(0), made(3, text=1)
    found = diff_latents(base, tuned, sae, where="response")
    means = [acts.at(2)[acts.in_response].double().mean(0).numpy() for acts in (base, tuned)]
    shift, rows = means[1] - means[0], sae.W_dec.double().numpy()
    expected = rows @ shift / np.linalg.norm(rows, axis=1) / np.linalg.norm(shift)
    np.testing.assert_allclose(found.table["cosine"], expected, atol=1e-5)
    assert found.shift_norm == pytest.approx(np.linalg.norm(shift), rel=1e-5)
    assert found.table.sort_values("cosine_rank")["cosine"].is_monotonic_decreasing


def test_what_fell_is_protective_unless_a_control_lost_it_too(topk, made):
    base = made(0)
    lost = base.values[0] @ topk.directions[40]
    without = made(0)
    without.values[0] -= 1.0 * lost[:, None].clamp(min=0) * topk.directions[40]
    alone = diff_latents(base, without, topk)
    assert 40 in alone.protective(3)["latent"].tolist()
    assert (alone.protective()["delta_mean"] < 0).all() and alone.protective()["fall_rank"].is_monotonic_increasing
    beside = diff_latents(base, without, topk, controls={"benign": without})
    assert beside.protective().empty and not beside.table["over_controls"].any()


def test_a_misfit_is_said_with_its_figures(rows):
    """An SAE that spans half of the space, and a fine-tune that moves along the other half."""
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    known, unknown = torch.cat([basis[:16], -basis[:16]]), basis[16:]
    sae = SparseAutoencoder(
        known.T.contiguous(), known, torch.zeros(32), torch.zeros(32), kind="standard", layer=2, centred=False
    )
    half = rows @ basis[:16].T @ basis[:16] + 0.3 * rows @ unknown.T @ unknown
    fits = diff_latents(half[:150], half[150:], sae)
    off = diff_latents(half[:150], half[150:] + rows[150:] @ unknown.T @ unknown, sae, controls={"benign": half[150:]})
    assert not fits.warning and fits.misfit < 1.25 < off.misfit
    assert f"{off.misfit:.2f} times" in off.warning and f"benign {off.fvu['benign']:.1%}" in off.warning
    assert off.warning in off._repr_html_() and "variance unexplained: base" in fits._repr_html_()
    assert off.fvu["base"] == pytest.approx(quality(sae, half[:150]).fvu, rel=1e-4)


def test_a_store_gives_what_memory_gives_in_small_groups(topk, made, tmp_path, monkeypatch):
    base, tuned = made(0), made(0, shift=topk.directions[3])
    expected = diff_latents(base, tuned, topk, controls={"benign": made(2, text=1)})
    monkeypatch.setattr("saes.pooling.HELD", 5 * 64)
    store = ActivationStore.create(tmp_path / "store", {})
    for first in range(0, 30, 7):
        store.append(tuned.select((tuned.conversation_index >= first) & (tuned.conversation_index < first + 7)))
    found = diff_latents(base, store, topk, controls={"benign": made(2, text=1)})
    assert found.test == expected.test == "paired"
    pd.testing.assert_frame_equal(found.table, expected.table, rtol=1e-4, atol=1e-6)


def test_what_is_saved_comes_back(topk, made, tmp_path):
    found = diff_latents(made(0), made(0, shift=topk.directions[3]), topk, controls={"benign": made(4)})
    found.save(tmp_path)
    back = LatentTable.load(tmp_path)
    pd.testing.assert_frame_equal(back.table, found.table)
    assert {k: v for k, v in vars(back).items() if k != "table"} == {
        k: v for k, v in vars(found).items() if k != "table"
    }
    assert len(pd.read_csv(tmp_path / "latents.csv")) == 64
    (tmp_path / "latents.json").write_text("{}")
    with pytest.raises(InputError, match="no latent diff of format"):
        LatentTable.load(tmp_path)


def test_names_of_controls_must_be_free(topk, rows):
    with pytest.raises(InputError, match="control 'base': the name is taken"):
        diff_latents(rows, rows, topk, controls={"base": rows})
