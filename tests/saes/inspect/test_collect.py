"""Passages: the strongest against a plain loop, near-equal ones shown once, fair draws, silence, bounded parts."""

import dataclasses
from collections import Counter

import pytest
import torch

from probes import ActivationStore, Conversation, InputError, capture
from saes import feature_cards, latent_cards, top_contexts
from saes.inspect import collect, reading
from saes.inspect.cards import CardParts
from saes.inspect.collect import Draws, lots_of
from saes.inspect.passages import Window


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
            assert short.tokens == long.tokens[start : long.peak + 2] and short.position == long.peak
            assert short.tokens[short.peak] == long.tokens[long.peak]
            assert short.value == max(short.values) and len(short.tokens) == len(short.values) <= 4


def test_whole_contexts_are_the_rendered_text(topk, tiny_model, tiny_conversations):
    found = top_contexts(topk, tiny_model, tiny_conversations, range(64), n=1, before=999, after=999)
    texts = [tiny_model.tokenizer.apply_chat_template(list(c.messages), tokenize=False) for c in tiny_conversations]
    shown = [(texts[one.conversation], one.text) for contexts in found.values() for one in contexts]
    assert len(shown) > 30 and all(text == seen for text, seen in shown)


def test_the_size_of_parts_changes_nothing(sae, tiny_model, tiny_conversations, monkeypatch):
    many = [*tiny_conversations, *(Conversation.of(f"Question {i}?", "Yes, " * i) for i in range(1, 6))]
    whole = top_contexts(sae, tiny_model, many, [3, 9], n=4)
    monkeypatch.setattr(collect, "PART", 40)
    parts = top_contexts(sae, tiny_model, iter(many), [3, 9], n=4)
    for latent, contexts in whole.items():
        assert [c.conversation for c in parts[latent]] == [c.conversation for c in contexts]
        for one, other in zip(parts[latent], contexts, strict=True):
            assert one.tokens == other.tokens and one.values == pytest.approx(other.values, rel=1e-3, abs=1e-3)


def test_parts_are_bounded_and_hold_whole_conversations(axis_sae, planted_model, burn_rows):
    parts = list(reading.token_parts(axis_sae, planted_model, burn_rows, size=60))
    sizes = [len(part) for part in parts]
    assert len(parts) > 3 and max(sizes) <= 60
    assert [i for part in parts for i in part.conversation_index.unique().tolist()] == list(range(12))


def test_a_latent_that_never_fires_has_no_context(topk, tiny_model, tiny_conversations):
    silent = dataclasses.replace(topk, b_enc=topk.b_enc - 1e6 * (torch.arange(64) == 5))
    assert top_contexts(silent, tiny_model, tiny_conversations, [5]) == {5: []}


def test_near_equal_passages_are_shown_once(axis_sae, planted_model, burn_rows):
    alike = [Conversation.of("Is there any old burn in the old house by the lake", f"N{i}") for i in "abcdef"]
    many = [*alike, *burn_rows]
    found = top_contexts(axis_sae, planted_model, many, [0], n=10, before=6, after=4)[0]
    assert {one.tokens[one.peak] for one in found} == {" burn"}
    assert len({one.text for one in found}) == len(found)
    assert sum(one.copies for one in found if "old burn in" in one.text) == 6
    assert len([one for one in found if "old burn in" in one.text]) == 1


@pytest.mark.parametrize("kind", ["conversations", "file", "activations", "store"])
def test_a_planted_token_is_found_wherever_the_rows_come_from(kind, axis_sae, planted_model, burn_rows, tmp_path):
    from probes import save_conversations

    source = burn_rows
    if kind == "file":
        save_conversations(burn_rows, tmp_path / "rows.jsonl")
        source = tmp_path / "rows.jsonl"
    if kind == "activations":
        source = capture(planted_model, burn_rows, layers=[0, 2], pool="tokens")
    if kind == "store":
        source = ActivationStore.create(tmp_path / "store", shard_tokens=50)
        capture(planted_model, burn_rows, layers=[0, 2], pool="tokens", store=source)
        assert len(source.shards) > 2
    card = feature_cards(axis_sae, planted_model, source, [0, 7])[0]
    assert card.density.n_active == card.density.n_active_conversations == 6
    assert [one.tokens[one.peak] for one in card.contexts] == [" burn"] * len(card.contexts)
    assert sum(one.copies for one in card.contexts) + len(card.draws) + len(card.held_out) >= 6
    assert all(not any(one.values) and "burn" not in one.text for one in card.silent) and card.silent
    assert {one.tokens[one.peak] for one in card.draws + card.held_out} <= {" burn"}


def test_documents_are_read_without_a_template(axis_sae, planted_model):
    texts = ["Hold it under the burn now.", "There is nothing here at all."]
    card = feature_cards(axis_sae, planted_model, texts, [0])[0]
    assert card.density.n_active == 1 and card.density.response == (0, 0) and card.density.n_conversations == 2
    assert "<|user|>" not in card.contexts[0].text and "under the burn" in card.contexts[0].text


def test_draws_are_fair_and_do_not_depend_on_the_parts(by_hand):
    """Each of 40 active tokens is drawn as often as any other, over 200 seeds."""
    acts = by_hand([[float(i % 2)] for i in range(80)], [i // 10 for i in range(80)])
    halves = [acts.select(torch.arange(80) < 40), acts.select(torch.arange(80) >= 40)]
    tally: Counter[tuple[int, int]] = Counter()
    for seed in range(200):
        whole, split = (Draws([3], 10, Window(), seed) for _ in range(2))
        whole.add(acts, acts.at(0)[:, :1])
        for half in halves:
            split.add(half, half.at(0)[:, :1])
        places = [(one.conversation, one.position) for _, one in whole.kept[0]]
        assert places == [(one.conversation, one.position) for _, one in split.kept[0]] and len(set(places)) == 10
        tally.update(places)
    assert len(tally) == 40
    chi_square = sum((count - 50) ** 2 / (50 * 0.75) for count in tally.values())
    assert 15 < chi_square < 75  # 39 degrees of freedom: 99.9 % lie between


def test_lots_differ_by_seed_and_place(by_hand):
    acts = by_hand([[1.0]] * 500, [i // 25 for i in range(500)])
    one, other = (lots_of(acts, torch.arange(500), seed) for seed in (0, 1))
    assert len(set(one.tolist())) == 500 and one.min() >= 0 and not (one == other).any()
    assert abs(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1]) < 0.2


def test_quantiles_of_draws_are_those_of_the_activations(axis_sae, planted_model, by_hand):
    n = 400
    acts = by_hand([[0.0, (i * 37 % n + 1) / n] for i in range(n)], [i // 4 for i in range(n)])
    acts = dataclasses.replace(acts, token_ids=20 + torch.arange(n) % 300)
    parts = CardParts(quantiles=(0.9, 0.5, 0.1), held_out=40, contexts=0, window=Window(3, 3))
    card = feature_cards(axis_sae, planted_model, acts, [1], parts=parts)[1]
    assert [one.value for one in card.draws] == pytest.approx([0.9, 0.5, 0.1], abs=0.12)
    assert [one.quantile for one in card.draws] == pytest.approx([0.9, 0.5, 0.1], abs=0.05)
    assert card.contexts == () and not card.silent


def test_bad_input(topk, tiny_model, tiny_conversations):
    with pytest.raises(InputError, match="latent 64 does not exist"):
        top_contexts(topk, tiny_model, tiny_conversations, [64])
    with pytest.raises(InputError, match="no conversations"):
        top_contexts(topk, tiny_model, [], [1])
    with pytest.raises(InputError, match="reads block 9"):
        latent_cards(dataclasses.replace(topk, layer=9), tiny_model, tiny_conversations, [1])
    with pytest.raises(InputError, match="give conversations only, or documents only"):
        top_contexts(topk, tiny_model, ["a text", tiny_conversations[0]], [1])
    with pytest.raises(InputError, match="document 1 is empty"):
        top_contexts(topk, tiny_model, ["a text", " "], [1])
    acts = capture(tiny_model, tiny_conversations, layers=[2], pool="last_prompt")
    with pytest.raises(InputError, match="capture with pool='tokens'"):
        top_contexts(topk, tiny_model, acts, [1])
    acts = capture(tiny_model, tiny_conversations, layers=[2], pool="tokens", site="mlp_out")
    with pytest.raises(InputError, match="these activations are of mlp_out"):
        top_contexts(topk, tiny_model, acts, [1])
    acts = capture(tiny_model, tiny_conversations, layers=[1], pool="tokens")
    with pytest.raises(InputError, match="layer 2 was not captured"):
        top_contexts(topk, tiny_model, acts, [1])
