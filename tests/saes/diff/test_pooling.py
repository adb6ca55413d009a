"""Latents by conversation: against a loop over conversations, whatever the source, the order and the blocks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probes import ActivationStore, InputError
from saes.pooling import Moments, aligned, pooled_latents


def whole(sae, source, **settings):
    """All conversations of a source as one: numbers, means, counts, shares of active tokens."""
    parts = list(pooled_latents(sae, source, **settings))
    names = ("conversation", "latents", "count", "fired", "inputs", "square", "error")
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in names}


@pytest.mark.parametrize("where", ["all", "response", "prompt", "last_prompt"])
@pytest.mark.parametrize("group", [1, 4, None])
def test_sums_are_those_of_a_loop(topk, made, where, group, monkeypatch):
    acts = made(0, n=9)
    monkeypatch.setattr("saes.pooling.block_rows", lambda _: 7)
    found = whole(topk, acts, where=where, group=group)
    kept = {"all": acts.positions >= 0, "response": acts.positions >= 2, "prompt": acts.positions < 2}
    mask = kept.get(where, acts.positions == 1)
    for row, number in enumerate(found["conversation"].tolist()):
        x = acts.at(2)[mask & (acts.conversation_index == number)]
        z = topk.encode(x)
        assert found["count"][row] == len(x)
        torch.testing.assert_close(found["latents"][row], z.double().sum(0), rtol=1e-5, atol=1e-5)
        assert torch.equal(found["fired"][row], (z > 0).sum(0).int())
        torch.testing.assert_close(found["inputs"][row], x.double().sum(0), rtol=1e-6, atol=1e-6)
        error = (topk.decode(z) - x).double().square().sum()
        torch.testing.assert_close(found["error"][row], error, rtol=1e-4, atol=1e-4)
    assert found["conversation"].tolist() == list(range(9))


def test_order_and_source_change_nothing(topk, made, tmp_path):
    acts = made(0, n=12)
    order = torch.randperm(len(acts), generator=torch.Generator().manual_seed(0))
    store = ActivationStore.create(tmp_path / "store", {})
    for part in (acts.conversation_index < 5, acts.conversation_index >= 5):
        store.append(acts.select(part))
    expected = whole(topk, acts)
    for source in (acts.select(order), store):
        for name, value in whole(topk, source, group=2).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def test_last_prompt_without_an_answer_is_the_last_token(topk, made):
    acts = made(0, n=3)
    silent = replace(acts, in_response=acts.in_response & (acts.conversation_index != 1))
    found = whole(topk, silent, where="last_prompt")
    ends = [1, 4 + int((acts.conversation_index == 1).sum()) - 1, 4 + 5 + 1]
    torch.testing.assert_close(found["inputs"].float(), acts.at(2)[ends])


def test_streams_of_other_cuts_are_aligned(topk, made):
    acts = made(0, n=11)
    steps = list(aligned({str(n): pooled_latents(topk, acts, group=n) for n in (2, 3, 11)}))
    assert all(step["2"].reads_the_same(step["3"]) and step["2"].reads_the_same(step["11"]) for step in steps)
    assert sum(len(step["11"]) for step in steps) == 11
    other = next(pooled_latents(topk, made(0, n=11, text=1), group=11))
    assert not other.reads_the_same(next(pooled_latents(topk, acts, group=11)))


def test_moments_with_equal_weights_are_the_usual_ones():
    x = 1e4 + torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Moments()
    for part in x.split(7):
        found.add(part, torch.ones(len(part)))
    torch.testing.assert_close(found.mean, x.mean(0))
    torch.testing.assert_close(found.variance, x.var(0) / 50)


def test_moments_with_weights_have_the_spread_of_a_ratio():
    """The variance of a token-weighted mean is what many resampled sets of conversations show."""
    rng = np.random.default_rng(0)
    lengths, level = rng.integers(1, 20, 400), rng.normal(size=400)
    found = Moments()
    found.add(torch.tensor(level)[:, None], torch.tensor(lengths).double())
    assert found.mean.item() == pytest.approx((lengths * level).sum() / lengths.sum())
    drawn = rng.integers(0, 400, (4000, 400))
    means = (lengths * level)[drawn].sum(1) / lengths[drawn].sum(1)
    assert found.variance.item() == pytest.approx(means.var(), rel=0.08)


def test_one_conversation_has_no_spread():
    found = Moments()
    found.add(torch.ones(1, 2), torch.ones(1))
    assert found.variance.isnan().all()


def test_bad_input(topk, made, rows):
    with pytest.raises(InputError, match="where='response' needs captured activations"):
        next(pooled_latents(topk, rows, where="response"))
    acts = made(0)
    with pytest.raises(InputError, match=r"no token of block 2 to read \(where='response'\)"):
        list(pooled_latents(topk, replace(acts, in_response=acts.positions < 0), where="response"))
    with pytest.raises(InputError, match="read at mlp_out"):
        next(pooled_latents(topk, replace(acts, site="mlp_out")))
