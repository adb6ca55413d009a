"""Chat templates: none at all, ones that know tools, ones that refuse, ones that add what nobody wrote."""

import itertools
import warnings

import pytest
from tokenizers.processors import TemplateProcessing

from probes import Conversation, InputError, render
from probes.conversations import NoChatTemplate, has_template, render_text, template_hash
from probes.plain import PLAIN

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Graz"}}}
TURNS = (
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "name": "weather"},
    {"role": "assistant", "content": "Take a coat."},
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
KNOWING = CHAT.replace(
    "<|end|>{% endfor",
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}<|end|>"
    "{% endfor",
)
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|system|>Be good.<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def decoded(tokenizer, rendered, mask, row=0):
    return tokenizer.decode(rendered.input_ids[row][mask[row]])


def test_template_hash_follows_the_template(templated):
    before = template_hash(templated(CHAT))
    assert before == template_hash(templated(CHAT)) != template_hash(templated(CHAT + " "))


def test_no_conversations_is_an_input_error(templated):
    with pytest.raises(InputError, match="at least one"):
        render(templated(CHAT), [])


@pytest.mark.parametrize("template", [None, {"rag": CHAT}])
def test_without_a_template_a_transcript_is_written(templated, template):
    bare = templated(template)
    row = Conversation.of("Hi? ", "Ho.", system="Be kind.")
    with pytest.warns(NoChatTemplate, match="no chat template"):
        rendered = render(bare, [row, row.prompt])
    whole = "<|begin|>System: Be kind.\n\nUser: Hi?\n\nAssistant: Ho.<|end|>"
    assert rendered.texts == (whole, whole[: -len(" Ho.<|end|>")])
    assert decoded(bare, rendered, rendered.response) == " Ho.<|end|>"
    assert decoded(bare, rendered, rendered.prompt) == decoded(bare, rendered, rendered.prompt, 1) == rendered.texts[1]
    assert bare.chat_template == template and not has_template(bare) and has_template(templated(CHAT))
    hashes = {template_hash(tokenizer) for tokenizer in (bare, templated(PLAIN), templated(CHAT))}
    assert len(hashes) == 3 and rendered.template_hash == template_hash(bare)


def test_a_missing_template_is_said_once_a_tokenizer(templated):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for name in ("one", "one", "other"):
            bare = templated(None)
            bare.name_or_path = name
            for text in ("Hi?", "Ho?"):
                render(bare, [Conversation.of(text)])
    assert [str(w.message).split(" has ")[0] for w in said] == ["tokenizer one", "tokenizer other"]


def test_tools_are_rendered_by_templates_that_know_them(templated):
    tokenizer = templated(KNOWING)
    rendered = render(tokenizer, [Conversation(TURNS), Conversation(TURNS[:3]), Conversation(TURNS[:2])])
    asked = '<|begin|><|user|>Rain?<|end|><|assistant|>[weather {"city": "Graz"}]<|end|>'
    told = f"{asked}<|tool|>rain<|end|><|assistant|>"
    assert rendered.texts == (f"{told}Take a coat.<|end|>", told, asked)
    assert decoded(tokenizer, rendered, rendered.response) == "Take a coat.<|end|>"
    assert not rendered.response[1].any()
    assert decoded(tokenizer, rendered, rendered.response, 2) == '[weather {"city": "Graz"}]<|end|>'


def test_the_template_is_told_of_the_tools(templated):
    tokenizer = templated("{% for t in tools or [] %}({{ t.function.name }}){% endfor %}" + KNOWING)
    row = Conversation(TURNS[:1], meta={"tools": [CALL]})
    assert render_text(tokenizer, row).startswith("(weather)<|begin|><|user|>Rain?")
    assert render_text(tokenizer, Conversation(TURNS[:1], meta={"tools": "a list"})).startswith("<|begin|>")


REFUSING = "{% for m in messages if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endfor %}" + KNOWING
FORGETTING = KNOWING.replace("{{ m['content'] }}", "{{ m['content'] if m.role != 'tool' }}")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            REFUSING,
            r"chat template of plain-chat rejects a conversation \(no tools here\); its turns are user, assistant",
        ),
        ("{{ messages[0].content + 1 }}", r"plain-chat rejects a conversation \(can only concatenate str"),
        (CHAT, "chat template of plain-chat leaves out the calls of tools"),
        (FORGETTING, "chat template of plain-chat leaves out the answers of tools"),
    ],
)
def test_templates_that_do_not_know_tools(templated, template, told):
    tokenizer = templated(template)
    tokenizer.name_or_path = "plain-chat"
    with pytest.raises(InputError, match=told):
        render(tokenizer, [Conversation(TURNS)])


def test_a_default_system_prompt_is_prompt(templated):
    tokenizer = templated(DEFAULT)
    rows = [Conversation.of("Hi?", "Ho."), Conversation.of("Hi?", "Ho.", system="Be bad.")]
    rendered = render(tokenizer, [*rows, *(row.prompt for row in rows)])
    for row, system in enumerate(("Be good.", "Be bad.")):
        assert decoded(tokenizer, rendered, rendered.prompt, row).startswith(f"<|system|>{system}<|end|>")
        assert decoded(tokenizer, rendered, rendered.prompt, row) == rendered.texts[row + 2]
        assert decoded(tokenizer, rendered, rendered.response, row) == "Ho.<|end|>"
        assert rendered.texts[row].endswith("Ho.<|end|>\n")


@pytest.mark.parametrize(("template", "starts"), [(CHAT, 1), (CHAT.replace("{{ bos_token }}", ""), 0)])
def test_the_tokenizers_own_start_token_does_not_double_the_templates(templated, template, starts):
    tokenizer = templated(template)
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", start)]
    )
    assert tokenizer("Hi")["input_ids"][0] == start
    row = Conversation.of("Hi?", "Ho.")
    ids = render(tokenizer, [row]).input_ids[0].tolist()
    assert ids.count(start) == starts
    assert ids == tokenizer.apply_chat_template(list(row.messages), return_dict=False)


def test_answers_that_templates_trim_or_change(templated):
    trimming = templated(CHAT.replace("{{ m['content'] }}", "{{ m['content'] | trim }}"))
    rendered = render(trimming, [Conversation.of(" Hi? ", "\n Ho. \n")])
    assert decoded(trimming, rendered, rendered.response) == "Ho.<|end|>"
    loud = CHAT.replace("{{ m['content'] }}", "{{ m['content'] | upper }}").replace("|assistant|>{%", "|system|>{%")
    with pytest.raises(InputError, match="changes the answer's text"):
        render(templated(loud), [Conversation.of("Hi?", "Ho.")])


def test_an_answer_that_also_stands_in_the_end_token_is_found(templated):
    """A generation prompt that the whole text lacks, and an answer of one letter."""
    tokenizer = templated(CHAT.replace("%}<|assistant|>{%", "%}<|assistant|>Sure: {%"))
    rendered = render(tokenizer, [Conversation.of("n?", "n")])
    assert decoded(tokenizer, rendered, rendered.response) == "n<|end|>"


@pytest.mark.parametrize(
    ("before", "after", "straddles"),
    [("My car makes a st", "range noise.", True), ("How sho", "uld I", True), ("Hé", "é.", False)],
)
def test_a_token_that_straddles_the_border_is_response(templated, before, after, straddles):
    """Byte-level tokens are as long as the bytes they stand for: that tells which ones reach past the border."""
    tokenizer = templated(PLAIN)
    rendered = render(tokenizer, [Conversation.of(before, after)])
    lengths = [len(token) for token in tokenizer.convert_ids_to_tokens(rendered.input_ids[0])]
    border, reach = len(("<|begin|>" + before).encode()), list(itertools.accumulate(lengths))
    assert rendered.response[0].tolist() == [end > border for end in reach]
    assert rendered.last_prompt[0].tolist().index(True) == rendered.response[0].tolist().index(True) - 1
    assert (border in reach) is not straddles
