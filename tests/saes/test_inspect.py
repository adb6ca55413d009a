"""What a latent means: contexts against a plain loop, the logit lens against the model's own head, hostile text."""

import dataclasses
import json

import pytest
import torch

from probes import Conversation, InputError, capture
from saes import LatentCard, latent_cards, logit_lens, top_contexts
from saes.inspect import Context


def test_contexts_are_the_highest_conversations(sae, tiny_model, tiny_conversations):
    acts = capture(tiny_model, tiny_conversations, layers=[2], pool="tokens")
    latents = sae.encode(acts.at(2))
    found = top_contexts(sae, tiny_model, tiny_conversations, range(64), n=3)
    assert list(found) == list(range(64))
    for latent, contexts in found.items():
        peaks = [(latents[acts.conversation_index == i, latent].max().item(), i) for i in range(4)]
        expected = sorted(((-value, i) for value, i in peaks if value > 1e-4))[:3]
        kept = [c for c in contexts if c.value > 1e-4]
        assert [c.conversation for c in kept] == [i for _, i in expected]
        assert [c.value for c in kept] == pytest.approx([-value for value, _ in expected], rel=1e-4, abs=1e-4)


def test_a_context_is_cut_around_its_peak(sae, tiny_model, tiny_conversations):
    whole = top_contexts(sae, tiny_model, tiny_conversations, range(64), n=1, before=999, after=999)
    cut = top_contexts(sae, tiny_model, tiny_conversations, range(64), n=1, before=2, after=1)
    for latent, contexts in cut.items():
        for short, long in zip(contexts, whole[latent], strict=True):
            start = max(0, long.peak - 2)
            assert short.tokens == long.tokens[start : long.peak + 2]
            assert short.tokens[short.peak] == long.tokens[long.peak]
            assert short.value == max(long.values) and len(short.tokens) == len(short.values) <= 4


def test_groups_of_conversations_change_nothing(sae, tiny_model, tiny_conversations, monkeypatch):
    many = [*tiny_conversations, *(Conversation.of(f"Question {i}?", "Yes, " * i) for i in range(1, 6))]
    whole = top_contexts(sae, tiny_model, many, [3, 9], n=4)
    from saes import inspect

    groups = inspect._groups
    monkeypatch.setattr(inspect, "_groups", lambda *a: groups(*a, size=2))
    parts = top_contexts(sae, tiny_model, many, [3, 9], n=4)
    for latent, contexts in whole.items():
        assert [c.conversation for c in parts[latent]] == [c.conversation for c in contexts]
        for one, other in zip(parts[latent], contexts, strict=True):
            assert one.tokens == other.tokens and one.values == pytest.approx(other.values, rel=1e-3, abs=1e-3)


def test_a_latent_that_never_fires_has_no_context(topk, tiny_model, tiny_conversations):
    silent = dataclasses.replace(topk, b_enc=topk.b_enc - 1e6 * (torch.arange(64) == 5))
    assert top_contexts(silent, tiny_model, tiny_conversations, [5]) == {5: []}


def test_the_logit_lens_is_the_head_after_the_norm(topk, tiny_model):
    lens = logit_lens(topk, tiny_model, [4, 11], k=6)
    hf = tiny_model.hf
    with torch.no_grad():
        logits = hf.lm_head(hf.model.norm(topk.directions[[4, 11]]))
    for row, latent in enumerate([4, 11]):
        values, ids = (logits[row] - logits[row].mean()).topk(6)
        assert [token for token, _ in lens[latent]] == [tiny_model.tokenizer.decode([i]) for i in ids.tolist()]
        assert [value for _, value in lens[latent]] == pytest.approx(values.tolist(), abs=1e-5)
    lowest = logit_lens(topk, tiny_model, [4], k=3, largest=False)[4]
    assert [value for _, value in lowest] == pytest.approx(
        (logits[0] - logits[0].mean()).sort().values[:3].tolist(), abs=1e-5
    )


def test_the_logit_lens_turns_with_the_direction_and_ignores_its_length(topk, tiny_model):
    flipped = dataclasses.replace(topk, W_dec=-3 * topk.W_dec)
    up, down = logit_lens(topk, tiny_model, [4], k=5)[4], logit_lens(flipped, tiny_model, [4], k=5, largest=False)[4]
    assert [token for token, _ in up] == [token for token, _ in down]
    assert [value for _, value in up] == pytest.approx([-value for _, value in down], abs=1e-5)


def test_the_logit_lens_reads_peft_models(topk, tiny_model, tiny_tuned):
    assert logit_lens(topk, tiny_tuned, [4]) == logit_lens(topk, tiny_model, [4])


def test_cards(topk, tiny_model, tiny_conversations):
    cards = latent_cards(topk, tiny_model, tiny_conversations, [4, 11], n_contexts=2, n_tokens=3)
    assert list(cards) == [4, 11]
    card = cards[4]
    assert card.top_tokens == tuple(token for token, _ in logit_lens(topk, tiny_model, [4], k=3)[4])
    assert list(card.contexts) == top_contexts(topk, tiny_model, tiny_conversations, [4], n=2)[4]
    plain = json.loads(json.dumps(card.as_dict()))
    assert plain["latent"] == 4 and len(plain["top_tokens"]) == 3
    assert set(plain) == {"latent", "top_tokens", "bottom_tokens", "contexts"}


def test_hostile_text_is_inert():
    context = Context(("<script>", "alert(1)", "</script>"), (1.0, 2.0, 0.0), 1, 0)
    html = LatentCard(1, ("<img src=x onerror=alert(1)>",), ("</div>",), (context,))._repr_html_()
    assert "<script" not in html and "<img" not in html and html.count("</div>") == 1
    assert context.text == "<script>alert(1)</script>"


def test_bad_input(topk, tiny_model, tiny_conversations):
    with pytest.raises(InputError, match="latent 64 does not exist"):
        top_contexts(topk, tiny_model, tiny_conversations, [64])
    with pytest.raises(InputError, match="latent -1 does not exist"):
        logit_lens(topk, tiny_model, [-1])
    with pytest.raises(InputError, match="no conversations"):
        top_contexts(topk, tiny_model, [], [1])
    with pytest.raises(InputError, match="reads block 9"):
        latent_cards(dataclasses.replace(topk, layer=9), tiny_model, tiny_conversations, [1])
