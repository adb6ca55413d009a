"""Cross-entropy recovered: against the rest of the model run by hand, and at its two ends."""

import dataclasses

import numpy as np
import pytest
import torch

from probes import Conversation, InputError, Model, load_model, render
from saes import SparseAutoencoder, quality, spliced_loss

CONVERSATIONS = [Conversation.of(f"Tell me about {word}.", f"Of {word} I know little.") for word in ("it", "a", "us")]
CONVERSATIONS.append(Conversation.of("Who?", "Nobody at all, and then nobody again."))


@pytest.fixture(scope="module")
def learned(build_llama, build_tokenizer) -> Model:
    """A tiny model that has read the conversations until it predicts them, so that ablation has something to harm."""
    tokenizer = build_tokenizer()
    hf, rendered = build_llama(tokenizer), render(tokenizer, CONVERSATIONS, padding_side="right")
    optimiser = torch.optim.Adam(hf.parameters(), lr=3e-3)
    labels = rendered.input_ids.masked_fill(~rendered.attention_mask.bool(), -100)
    for _ in range(60):
        hf(input_ids=rendered.input_ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return load_model(hf, tokenizer=tokenizer)


def by_hand(model, conversation, edit, *, layer: int, where: str):
    """Cross-entropy sum and predictions of one conversation; `edit` changes what block `layer` has written.

    No hook, no padding: the blocks are called one after the other, with a causal mask of our own.
    """
    rendered, hf = render(model.tokenizer, [conversation]), model.hf
    ids = rendered.input_ids
    length = ids.shape[1]
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
    position = torch.arange(length)[None]
    with torch.no_grad():
        hidden = hf.model.embed_tokens(ids)
        turned = hf.model.rotary_emb(hidden, position)
        for index, block in enumerate(hf.model.layers):
            hidden = block(hidden, attention_mask=mask, position_ids=position, position_embeddings=turned)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            if index == layer:
                hidden = edit(hidden)
        logprobs = hf.lm_head(hf.model.norm(hidden)).double().log_softmax(-1)[0]
    target = rendered.response[0] if where == "response" else torch.ones(length, dtype=torch.bool)
    scored = [pos for pos in range(length - 1) if target[pos + 1]]
    return np.array([-float(logprobs[pos, ids[0, pos + 1]]) for pos in scored]), logprobs[scored]


def block_outputs(model, conversation, layer: int, skip: int):
    seen = []
    by_hand(model, conversation, lambda hidden: seen.append(hidden) or hidden, layer=layer, where="all")
    return seen[0][0, skip:]


@pytest.mark.parametrize(("where", "skip"), [("response", 0), ("all", 1)])
def test_it_is_what_the_blocks_give_when_run_by_hand(sae, learned, where, skip):
    found = spliced_loss(sae, learned, CONVERSATIONS, where=where, skip_first=skip, batch_size=3)
    rows = torch.cat([block_outputs(learned, row, sae.layer, skip) for row in CONVERSATIONS])
    mean = rows.double().mean(0).float()

    def behind(change):
        return lambda hidden: torch.cat([hidden[:, :skip], change(hidden[:, skip:])], dim=1)

    edits = {
        "clean": lambda hidden: hidden,
        "spliced": behind(lambda hidden: sae.decode(sae.encode(hidden))),
        "mean": behind(lambda hidden: mean.expand_as(hidden)),
        "zero": behind(torch.zeros_like),
    }
    ran = {
        name: [by_hand(learned, row, edit, layer=sae.layer, where=where) for row in CONVERSATIONS]
        for name, edit in edits.items()
    }
    ce = {name: np.concatenate([losses for losses, _ in rows]).mean() for name, rows in ran.items()}
    for name, value in ce.items():
        assert getattr(found, name).value == pytest.approx(value, rel=1e-5)
    assert found.recovered.value == pytest.approx((ce["mean"] - ce["spliced"]) / (ce["mean"] - ce["clean"]), rel=1e-4)
    wanted = (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["clean"])
    assert found.recovered_zero.value == pytest.approx(wanted, rel=1e-4)
    clean = torch.cat([logprobs for _, logprobs in ran["clean"]])
    for name, arm in (("kl", "spliced"), ("kl_mean", "mean")):
        other = torch.cat([logprobs for _, logprobs in ran[arm]])
        assert getattr(found, name).value == pytest.approx(
            float((clean.exp() * (clean - other)).sum(1).mean()), rel=1e-4
        )
    assert found.n == len(clean) and found.conversations == len(CONVERSATIONS)


def identity(layer: int, site: str = "resid_post") -> SparseAutoencoder:
    """An SAE that gives back what it reads."""
    eye, zero = torch.eye(32), torch.zeros(32)
    w_enc = torch.cat([eye, -eye], dim=1)
    return SparseAutoencoder(w_enc, w_enc.T.contiguous(), torch.zeros(64), zero, "standard", layer, site=site)  # type: ignore[arg-type]


@pytest.mark.parametrize("site", ["resid_post", "resid_pre", "mlp_out", "attn_out"])
def test_a_perfect_reconstruction_costs_nothing(learned, site):
    found = spliced_loss(identity(1, site), learned, CONVERSATIONS)
    assert found.spliced.value == pytest.approx(found.clean.value, rel=1e-5)
    assert found.recovered.value == pytest.approx(1, abs=1e-4) and found.kl.value == pytest.approx(0, abs=1e-5)
    assert found.mean.value != pytest.approx(found.clean.value, rel=1e-3)


def test_an_empty_sae_at_the_mean_recovers_nothing(learned):
    rows = torch.cat([block_outputs(learned, row, 2, 0) for row in CONVERSATIONS])
    silent = dataclasses.replace(identity(2), b_enc=torch.full((64,), -1e6), b_dec=rows.mean(0))
    found = spliced_loss(silent, learned, CONVERSATIONS)
    assert found.spliced.value == pytest.approx(found.mean.value, rel=1e-4)
    assert found.recovered.value == pytest.approx(0, abs=1e-3) and found.kl.value == pytest.approx(found.kl_mean.value)


def test_intervals_hold_the_figures_and_follow_the_seed(topk, learned):
    found = spliced_loss(topk, learned, CONVERSATIONS, batch_size=1)
    for name in ("clean", "spliced", "mean", "recovered", "kl"):
        rate = getattr(found, name)
        assert rate.low < rate.value < rate.high
    again = spliced_loss(topk, learned, CONVERSATIONS, batch_size=4, seed=1)
    assert again.clean.value == pytest.approx(found.clean.value, rel=1e-5) and again.clean.low != found.clean.low
    one = spliced_loss(topk, learned, CONVERSATIONS[:1])
    assert np.isnan(one.clean.low) and one.as_dict()["clean"]["low"] is None


def test_where_ablation_does_no_harm_nothing_is_recovered(topk, tiny_model):
    found = spliced_loss(topk, tiny_model, CONVERSATIONS)  # random weights: worse than knowing nothing
    assert found.zero.value < found.clean.value and np.isnan(found.recovered_zero.value)
    assert "recovered" in str(found) and "cross-entropy recovered" in found.lines()


def test_the_model_is_left_as_it_was(topk, learned):
    before = spliced_loss(topk, learned, CONVERSATIONS)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in learned.hf.modules()]
    assert spliced_loss(topk, learned, CONVERSATIONS) == before and sum(hooks) == 0


def test_it_joins_the_other_figures(topk, rows, learned):
    loss = spliced_loss(topk, learned, CONVERSATIONS)
    both = quality(topk, rows).with_loss(loss)
    assert both.as_dict()["loss"]["recovered"]["value"] == loss.recovered.value
    assert "cross-entropy recovered" in both._repr_html_()


def test_bad_input(topk, learned):
    with pytest.raises(InputError, match="no conversations given"):
        spliced_loss(topk, learned, [])
    with pytest.raises(InputError, match="no conversation has a token to score"):
        spliced_loss(topk, learned, [Conversation.of("Hello?")])
    with pytest.raises(InputError, match="skip_first=500: no conversation has as many tokens"):
        spliced_loss(topk, learned, CONVERSATIONS, skip_first=500)
    with pytest.raises(InputError, match="skip_first=-1: give 0 or more"):
        spliced_loss(topk, learned, CONVERSATIONS, skip_first=-1)
    with pytest.raises(InputError, match="reads block 7"):
        spliced_loss(dataclasses.replace(topk, layer=7), learned, CONVERSATIONS)
