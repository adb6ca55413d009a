"""Perplexity against the model's own loss, under edits too; texts without a chat."""

import dataclasses

import pytest
import torch

from probes import (
    Conversation,
    InputError,
    Model,
    NoChatTemplate,
    capture,
    perplexity,
    plain_text,
    render,
    sample,
    template_hash,
)


@dataclasses.dataclass(frozen=True)
class Push:
    """Adds a constant at block 1."""

    layers: tuple[int, ...] = (1,)
    positions: str = "response"

    def __call__(self, activations, *, layer, mask):
        return torch.where(mask[..., None], activations + 2.0, activations)


def loss(model: Model, row: Conversation) -> tuple[float, int]:
    """The language model's own loss over the answer, and its number of tokens."""
    rendered = render(model.tokenizer, [row])
    labels = rendered.input_ids.masked_fill(~rendered.response, -100)
    with torch.no_grad():
        return float(model.hf(input_ids=rendered.input_ids, labels=labels).loss), int(rendered.response.sum())


@pytest.mark.parametrize("plain", [False, True])
def test_is_the_exponential_of_the_models_loss(tiny_model, tiny_conversations, plain) -> None:
    model = plain_text(tiny_model) if plain else tiny_model
    parts = [loss(model, row) for row in tiny_conversations]
    mean = sum(value * n for value, n in parts) / sum(n for _, n in parts)
    for batch_size in (1, 8):
        assert perplexity(model, tiny_conversations, batch_size=batch_size) == pytest.approx(2.718281828459045**mean)


def test_edits_act_on_the_answer_alone(tiny_model, tiny_conversations) -> None:
    untouched = perplexity(tiny_model, tiny_conversations)
    assert perplexity(tiny_model, tiny_conversations, operators=[Push()]) != pytest.approx(untouched)
    with tiny_model.intervene(Push()):
        inside = perplexity(tiny_model, tiny_conversations)
    assert inside == pytest.approx(perplexity(tiny_model, tiny_conversations, operators=[Push()]))
    assert perplexity(tiny_model, tiny_conversations) == untouched


def test_an_answer_is_needed(tiny_model) -> None:
    with pytest.raises(InputError, match="no answer"):
        perplexity(tiny_model, [Conversation.of("Who are you?")])


def test_plain_text_is_one_text_with_a_border(tiny_model) -> None:
    model = plain_text(tiny_model)
    row = Conversation.of("My car makes", " a strange noise.")
    rendered = render(model.tokenizer, [row])
    assert rendered.texts == ("<|begin|>My car makes a strange noise.",)
    whole = model.tokenizer("<|begin|>My car makes a strange noise.", add_special_tokens=False)["input_ids"]
    assert rendered.input_ids[0].tolist() == whole
    answer = rendered.input_ids[0][rendered.response[0]]
    assert model.tokenizer.decode(answer) == " a strange noise."
    alone = render(model.tokenizer, [Conversation.of("", "My car makes a strange noise.")])
    assert alone.response[0].tolist() == [False] + [True] * (len(whole) - 1)


def test_plain_text_leaves_the_model_as_it_was(tiny_model) -> None:
    before = template_hash(tiny_model.tokenizer)
    model = plain_text(tiny_model)
    assert model.hf is tiny_model.hf and template_hash(tiny_model.tokenizer) == before
    assert template_hash(model.tokenizer) != before
    assert len(sample(model, [Conversation.of("My car")] * 2, seed=0, max_new_tokens=4)) == 2
    assert len(capture(model, [Conversation.of("", "My car.")], layers=[1])) == 1


def test_a_model_without_a_template_is_told_of_it(tiny_model, build_tokenizer) -> None:
    bare = build_tokenizer()
    bare.chat_template = None
    model = dataclasses.replace(tiny_model, tokenizer=bare)
    with pytest.warns(NoChatTemplate, match=r"read texts as they are with probes.plain_text"):
        assert sample(model, [Conversation.of("My car")], seed=0, max_new_tokens=4)
    assert sample(plain_text(model), [Conversation.of("My car")], seed=0, max_new_tokens=4)
