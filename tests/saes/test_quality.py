"""Quality: the reference formulas, the two ends, the invariances, intervals, and which rows are read."""

import dataclasses

import numpy as np
import pytest
import torch

from probes import Activations, ActivationStore, InputError
from saes import HeldOut, QualityTable, SparseAutoencoder, quality


@pytest.fixture
def acts(rows) -> Activations:
    """The rows as 30 conversations of ten tokens, the last six of each its response."""
    index, position = torch.arange(300) // 10, torch.arange(300) % 10
    values = rows + torch.randn(30, 32, generator=torch.Generator().manual_seed(7))[index]  # conversations differ
    return Activations(values[None], (2,), "tokens", "hash", index, position, position, position > 3)


def test_it_follows_the_definitions(sae, rows, reference):
    found, x = quality(sae, rows), rows.double().numpy()
    latents = reference.encode(sae, x)
    y, mean = reference.decode(sae, latents), x.mean(0)
    assert found.fvu == pytest.approx(reference.fvu(sae, x), rel=1e-5)
    assert found.l0 == pytest.approx((latents > 0).sum(1).mean(), abs=0.02)
    assert found.dead == pytest.approx((latents <= 0).all(0).mean(), abs=0.02)
    assert found.dense == pytest.approx(((latents > 0).mean(0) > 0.1).mean(), abs=0.02)
    np.testing.assert_allclose(found.freq, (latents > 0).mean(0), atol=0.01)
    assert found.n == 300 and found.explained == 1 - found.fvu
    share = 1 - ((x - y) ** 2).sum(1) / ((x - mean) ** 2).sum(1)
    ratio = np.linalg.norm(y, axis=1) / np.linalg.norm(x, axis=1)
    gammas = np.linspace(0.2, 5, 200_001)  # arXiv 2404.16014: the gamma for which y / gamma comes nearest to x
    y, x = y - mean, x - mean
    errors = (x**2).sum() - 2 / gammas * (x * y).sum() + (y**2).sum() / gammas**2
    wanted = {"token_explained": share.mean(), "norm_ratio": ratio.mean(), "bias": gammas[errors.argmin()]}
    wanted["fvu_rescaled"] = errors.min() / (x**2).sum()
    assert {name: found.rates[name].value for name in wanted} == pytest.approx(wanted, rel=1e-4)


def test_a_perfect_and_an_empty_sae():
    eye, zero = torch.eye(8), torch.zeros(8)
    x = torch.rand(50, 8) + 0.1
    perfect = quality(SparseAutoencoder(eye, eye, zero, zero, kind="standard", layer=0), x)
    assert perfect.fvu < 1e-12 and perfect.l0 == 8 and (perfect.dead, perfect.dense) == (0, 1)
    assert [perfect.rates[name].value for name in ("bias", "norm_ratio", "token_explained")] == pytest.approx([1] * 3)
    silent = SparseAutoencoder(eye, eye, zero - 100, x.mean(0), kind="standard", layer=0)
    nothing = quality(silent, x)
    assert nothing.fvu == pytest.approx(1) and (nothing.l0, nothing.dead) == (0, 1)


def test_shrinkage_is_seen_and_is_not_confused_with_error(rows):
    eye = torch.eye(32)
    mean = rows.mean(0)
    halved = SparseAutoencoder(
        torch.cat([eye, -eye], 1), torch.cat([eye, -eye]) / 2, torch.zeros(64), mean, kind="standard", layer=2
    )
    rates = quality(halved, rows).rates
    assert rates["bias"].value == pytest.approx(0.5) and rates["fvu"].value == pytest.approx(0.25)
    assert rates["fvu_rescaled"].value == pytest.approx(0, abs=1e-6)
    blind = dataclasses.replace(halved, W_dec=halved.W_dec * (2 * (torch.arange(32) < 16)), b_dec=mean)
    rates = quality(blind, rows).rates
    assert rates["bias"].value == pytest.approx(1, rel=1e-5) and rates["fvu"].value > 0.3


def test_blocks_of_rows_do_not_change_it(sae, acts, monkeypatch):
    whole = quality(sae, acts).as_dict()
    monkeypatch.setattr("saes.fidelity.block_rows", lambda _: 7)
    parts = quality(sae, acts).as_dict()
    assert whole.keys() == parts.keys()
    for name in ("fvu", "bias", "l0"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-6)


def test_a_large_common_offset_costs_no_digits(reference):
    far = 1000 + 0.01 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eye = torch.eye(8, dtype=torch.float64)
    sae = SparseAutoencoder(eye, eye, eye[0] * 0, far[:100].mean(0), kind="topk", layer=0, k=3)
    assert quality(sae, far).fvu == pytest.approx(reference.fvu(sae, far.numpy()), rel=1e-6)


def test_intervals_are_over_conversations(topk, acts, reference):
    found = quality(topk, acts)
    x = acts.values[0].double().numpy()
    errors = ((x - reference.decode(topk, reference.encode(topk, x))) ** 2).sum(1).reshape(30, 10).sum(1)
    around = ((x - x.mean(0)) ** 2).sum(1).reshape(30, 10).sum(1)
    rng = np.random.default_rng(5)
    draws = [errors[i].sum() / around[i].sum() for i in rng.integers(0, 30, (4000, 30))]
    low, high = np.quantile(draws, (0.025, 0.975))
    rate = found.rates["fvu"]
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    assert rate.low < rate.value < rate.high and found.conversations == 30
    assert quality(topk, acts).as_dict() == found.as_dict() != quality(topk, acts, seed=1).as_dict()
    assert np.isnan(quality(topk, acts.values[0]).rates["fvu"].low)  # a tensor knows of no conversations
    one = acts.select(acts.conversation_index == 3)
    assert np.isnan(quality(topk, one).rates["fvu"].low)


def test_more_conversations_than_groups_are_resampled_in_groups(topk, acts, monkeypatch):
    monkeypatch.setattr("saes.fidelity.GROUPS", 6)
    rate = quality(topk, acts).rates["fvu"]
    assert rate.low < rate.value < rate.high


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"where": "response"}, lambda acts: acts.in_response),
        ({"skip_first": 2}, lambda acts: acts.positions >= 2),
        ({"where": "prompt", "skip_first": 1}, lambda acts: ~acts.in_response & (acts.positions > 0)),
        ({"keep": lambda index: index < 4}, lambda acts: acts.conversation_index < 4),
    ],
)
def test_which_rows_are_read(topk, acts, asked, wanted):
    found, same = quality(topk, acts, **asked), quality(topk, acts.values[0][wanted(acts)])
    assert (found.fvu, found.l0, found.n) == pytest.approx((same.fvu, same.l0, same.n))
    assert found.rows != same.rows and same.rows == "all tokens"


def test_held_out_conversations_are_the_same_whatever_else_there_is(topk, acts):
    aside = HeldOut(0.3, seed=4)
    index = torch.arange(20_000)
    assert aside(index).double().mean() == pytest.approx(0.3, abs=0.015)
    assert torch.equal(aside(index[5:50]), aside(index)[5:50])
    assert torch.equal((~aside)(index), ~aside(index)) and torch.equal((~~aside)(index), aside(index))
    assert not torch.equal(aside(index), HeldOut(0.3, seed=5)(index))
    held, rest = quality(topk, acts, keep=aside), quality(topk, acts, keep=~aside)
    assert held.n + rest.n == 300 and held.conversations + rest.conversations == 30 and held.n > 0 < rest.n
    assert held.rows == "all tokens; 0.3 of the conversations, drawn by seed 4"
    assert "all but 0.3" in rest.rows
    with pytest.raises(InputError, match=r"a share of 1\.5"):
        HeldOut(1.5)


def test_a_store_gives_what_memory_gives(topk, acts, tmp_path):
    store = ActivationStore.create(tmp_path / "store", {})
    for first in (0, 20):
        inside = (acts.conversation_index >= first) & (acts.conversation_index < first + 20)
        store.append(acts.select(inside))
    told = [quality(topk, source, where="response").as_dict() for source in (store, acts)]
    assert told[0] == told[1]


def test_bad_input(topk, rows, acts):
    with pytest.raises(InputError, match="all 5 rows of block 2 are equal"):
        quality(topk, rows[:1].expand(5, 32))
    with pytest.raises(InputError, match="no rows of block 2"):
        quality(topk, rows[:0])
    mean = Activations(rows[None], (2,), "response_mean", "hash", torch.arange(300))
    with pytest.raises(InputError, match=r"are means .* capture with pool='tokens'"):
        quality(topk, mean)
    with pytest.raises(InputError, match="layer 2 was not captured"):
        quality(topk, dataclasses.replace(mean, layers=(1,), pool="last_prompt"))
    with pytest.raises(InputError, match="read at mlp_out, and the SAE reads resid_post"):
        quality(topk, dataclasses.replace(acts, site="mlp_out"))
    with pytest.raises(InputError, match="skip_first=1 needs captured activations"):
        quality(topk, rows, skip_first=1)
    with pytest.raises(InputError, match="skip_first=1 needs every token"):
        quality(topk, dataclasses.replace(mean, pool="last_prompt"), skip_first=1)
    with pytest.raises(InputError, match="skip_first=-1: give 0 or more"):
        quality(topk, acts, skip_first=-1)


def test_shown_in_words_and_as_a_table(topk, acts):
    shown = quality(topk, acts)._repr_html_()
    assert "variance unexplained" in shown and "300 of 30 conversations" in shown
    held = QualityTable({"here": quality(topk, acts), "<there>": quality(topk, acts, where="prompt")})
    assert held.table["name"].tolist() == ["here", "<there>"] and held.table["n"].tolist() == [300, 120]
    assert held.table["fvu"].between(held.table["fvu_low"], held.table["fvu_high"]).all()
    assert "&lt;there&gt;" in held._repr_html_() and "fvu_low" not in held._repr_html_()
