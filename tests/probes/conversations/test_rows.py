"""Conversations as values, and their rows on disk."""

import json

import pytest

from probes import Conversation, InputError, conversation_batches, load_conversations, save_conversations

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Graz"}}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOLD = {"role": "tool", "content": "rain", "name": "weather", "tool_call_id": "a1"}


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
        (({"role": "narrator", "content": "x"},), "narrator"),
        (({"role": "user", "content": None},), "string"),
        (({"role": "assistant", "content": None},), "string"),
        (({"role": "user", "content": "x", "tool_calls": [CALL]},), "assistant turn"),
        (({"role": "assistant", "content": "x", "tool_calls": ["f(x)"]},), "list of dicts"),
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


def test_turns_with_tools_load(tmp_path):
    user, thought = {"role": "user", "content": "Rain?"}, {"reasoning_content": "Hm.", "odd": 1}
    rows = [{"messages": [user, {**ASKED, **thought}, TOLD], "tools": [CALL]}, {"messages": [user, ASKED]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = load_conversations(tmp_path / "rows.jsonl")
    assert first.messages[1] == {**ASKED, "content": "", "reasoning_content": "Hm."} and first.messages[2] == TOLD
    assert first.answer is None and first.prompt is first and first.meta["tools"] == [CALL]
    assert second.answer == "" and [m["role"] for m in second.prompt.messages] == ["user"]
    save_conversations([first, second], tmp_path / "again.jsonl")
    assert load_conversations(tmp_path / "again.jsonl") == [first, second]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "rows.jsonl:2: not JSON"),
        ('{"prompt": "x"}', "rows.jsonl:2: row without messages"),
        ('{"messages": []}', "rows.jsonl:2: row without messages"),
        ('{"messages": [{"role": "narrator", "content": "x"}]}', "rows.jsonl:2: role 'narrator'"),
        ("[1]", "rows.jsonl:2: row without messages"),
        ('{"messages": ["x"]}', "rows.jsonl:2: message 'x': give a dict with a role"),
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


def test_batches_hold_every_row_once_and_sort_by_length():
    rows = [Conversation.of("x" * n) for n in (5, 1, 4, 2, 3)]
    batches = list(conversation_batches(rows, 2))
    assert [index for index, _ in batches] == [[1, 3], [4, 2], [0]]
    assert all(rows[i] is row for index, batch in batches for i, row in zip(index, batch, strict=True))
    assert list(conversation_batches([], 2)) == []
    with pytest.raises(InputError, match="batch_size"):
        list(conversation_batches(rows, 0))
