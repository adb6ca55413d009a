"""Tokens and masks: what the chat template writes, and which token belongs to what."""

import pytest
import torch

from probes import Conversation, render
from probes.conversations import render_text


@pytest.mark.parametrize("side", ["left", "right"])
def test_masks_split_the_tokens(tiny_tokenizer, tiny_conversations, side):
    rendered = render(tiny_tokenizer, tiny_conversations, padding_side=side)
    real = rendered.attention_mask.bool()
    assert torch.equal(rendered.prompt | rendered.response, real)
    assert not (rendered.prompt & rendered.response).any()
    assert (rendered.last_prompt.sum(-1) == 1).all()
    for row, conversation in enumerate(tiny_conversations):
        answer = tiny_tokenizer.decode(rendered.input_ids[row][rendered.response[row]])
        assert answer == conversation.answer + "<|end|>"
        ids = rendered.input_ids[row]
        assert ids[rendered.last_prompt[row]].item() == tiny_tokenizer.convert_tokens_to_ids("<|assistant|>")
        assert rendered.position_ids[row][real[row]].tolist() == list(range(int(real[row].sum())))


def test_prompt_of_an_answered_row_is_what_generation_starts_from(tiny_tokenizer, tiny_conversations):
    answered = render(tiny_tokenizer, tiny_conversations)
    asked = render(tiny_tokenizer, [row.prompt for row in tiny_conversations])
    for row in range(len(tiny_conversations)):
        prompt = answered.input_ids[row][answered.prompt[row]]
        assert prompt.tolist() == asked.input_ids[row][asked.attention_mask[row].bool()].tolist()
    assert not asked.response.any()


def test_agrees_with_the_templates_generation_markers(tiny_tokenizer):
    row = Conversation.of("How should I treat a burn?", "Cool it.")
    whole = tiny_tokenizer.apply_chat_template(
        list(row.messages), return_dict=True, return_assistant_tokens_mask=True, return_tensors=None
    )
    rendered = render(tiny_tokenizer, [row])
    assert rendered.input_ids[0].tolist() == whole["input_ids"]
    assert rendered.response[0].int().tolist() == whole["assistant_masks"]


def test_text_after_the_end_token_is_no_answer(tiny_tokenizer, monkeypatch):
    template = tiny_tokenizer.chat_template.replace("<|end|>{% endgeneration %}", "<|end|>\n{% endgeneration %}")
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    rendered = render(tiny_tokenizer, [Conversation.of("Hi?", "Ho.")])
    assert tiny_tokenizer.decode(rendered.input_ids[0][rendered.response[0]]) == "Ho.<|end|>"
    assert tiny_tokenizer.decode(rendered.input_ids[0]).endswith("\n")


def test_generation_prompt_that_the_full_text_lacks(tiny_tokenizer, monkeypatch):
    template = tiny_tokenizer.chat_template.replace("%}<|assistant|>{% endif %}", "%}<|assistant|><|think|>{% endif %}")
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    rendered = render(tiny_tokenizer, [Conversation.of("Hi?", "Ho.")])
    assert tiny_tokenizer.decode(rendered.input_ids[0][rendered.response[0]]) == "Ho.<|end|>"


def test_thinking_tokens_do_not_end_the_answer(tiny_tokenizer):
    answer = "<|think|>Hm.<|/think|>Ho."
    rendered = render(tiny_tokenizer, [Conversation.of("Hi?", answer)])
    assert tiny_tokenizer.decode(rendered.input_ids[0][rendered.response[0]]) == answer + "<|end|>"


def test_rendering_leaves_the_tokenizer_alone(tiny_tokenizer, tiny_conversations):
    before = (tiny_tokenizer.padding_side, tiny_tokenizer.chat_template, len(tiny_tokenizer))
    render(tiny_tokenizer, tiny_conversations, padding_side="left")
    render(tiny_tokenizer, tiny_conversations, padding_side="right")
    assert before == (tiny_tokenizer.padding_side, tiny_tokenizer.chat_template, len(tiny_tokenizer))
    assert render_text(tiny_tokenizer, tiny_conversations[0]).startswith("<|begin|><|user|>")
