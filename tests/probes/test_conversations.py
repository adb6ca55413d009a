"""Rows on disk, the chat template and the masks."""

import json

import pytest
import torch

from probes import Conversation, InputError, conversation_batches, load_conversations, render, save_conversations
from probes.conversations import render_text, template_hash


def test_of_prompt_and_answer():
    row = Conversation.of("Hi?", "Ho.", system="Be kind.", id="a", source="x")
    assert row.answer == "Ho." and row.id == "a" and row.meta == {"source": "x"}
    assert [m["role"] for m in row.prompt.messages] == ["system", "user"]
    assert row.prompt.answer is None and row.prompt.prompt == row.prompt
    assert row.prompt.answered("Ho.") == row


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ((), "without messages"),
        (({"role": "tool", "content": "x"},), "tool"),
        (({"role": "user", "content": None},), "string"),
    ],
)
def test_bad_messages(messages, told):
    with pytest.raises(InputError, match=told):
        Conversation(messages)


def test_html_is_escaped():
    assert "<script>" not in Conversation.of("<script>alert(1)</script>")._repr_html_()


def test_round_trip(tmp_path, tiny_conversations):
    rows = [Conversation.of("Hé?", "Ho.", id="a", topic="greeting"), *tiny_conversations]
    save_conversations(rows, tmp_path / "rows.jsonl")
    assert load_conversations(tmp_path / "rows.jsonl") == rows


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "rows.jsonl:2: not JSON"),
        ('{"prompt": "x"}', "rows.jsonl:2: row without messages"),
        ('{"messages": []}', "rows.jsonl:2: row without messages"),
        ('{"messages": [{"role": "narrator", "content": "x"}]}', "rows.jsonl:2: role 'narrator'"),
        ("[1]", "rows.jsonl:2: row without messages"),
    ],
)
def test_bad_rows_are_named(tmp_path, line, told):
    good = json.dumps({"messages": [{"role": "user", "content": "x"}]})
    (tmp_path / "rows.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=told):
        load_conversations(tmp_path / "rows.jsonl")


def test_missing_and_empty_files(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, told in (("none.jsonl", "no such file"), ("empty.jsonl", "no conversation")):
        with pytest.raises(InputError, match=told):
            load_conversations(tmp_path / name)


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


def test_template_hash_follows_the_template(tiny_tokenizer, monkeypatch):
    before = template_hash(tiny_tokenizer)
    assert before == template_hash(tiny_tokenizer)
    monkeypatch.setattr(tiny_tokenizer, "chat_template", tiny_tokenizer.chat_template + " ")
    assert template_hash(tiny_tokenizer) != before


def test_no_template_is_an_input_error(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", None)
    with pytest.raises(InputError, match="no chat template"):
        render(tiny_tokenizer, [Conversation.of("Hi?")])
    with pytest.raises(InputError, match="at least one"):
        render(tiny_tokenizer, [])


def test_rendering_leaves_the_tokenizer_alone(tiny_tokenizer, tiny_conversations):
    before = (tiny_tokenizer.padding_side, tiny_tokenizer.chat_template, len(tiny_tokenizer))
    render(tiny_tokenizer, tiny_conversations, padding_side="left")
    render(tiny_tokenizer, tiny_conversations, padding_side="right")
    assert before == (tiny_tokenizer.padding_side, tiny_tokenizer.chat_template, len(tiny_tokenizer))
    assert render_text(tiny_tokenizer, tiny_conversations[0]).startswith("<|begin|><|user|>")


def test_batches_hold_every_row_once_and_sort_by_length():
    rows = [Conversation.of("x" * n) for n in (5, 1, 4, 2, 3)]
    batches = list(conversation_batches(rows, 2))
    assert [index for index, _ in batches] == [[1, 3], [4, 2], [0]]
    assert all(rows[i] is row for index, batch in batches for i, row in zip(index, batch, strict=True))
    assert list(conversation_batches([], 2)) == []
    with pytest.raises(InputError, match="batch_size"):
        list(conversation_batches(rows, 0))
