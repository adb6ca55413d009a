"""Reasoning: which tokens of the answer are thought, under templates of the kinds that are in use."""

import pytest
import torch

from probes import Conversation, render
from probes.conversations import reasoning_markers

HEADS = "{{ bos_token }}{% for m in messages %}{% if m.role != 'assistant' %}<|{{ m.role }}|>{{ m.content }}<|end|>"
#: Writes answers as they are.
VERBATIM = HEADS + "{% else %}<|assistant|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
#: Opens the thought in the generation prompt and strips it from every turn, the last one too.
STRIPPING = HEADS + (
    "{% else %}<|assistant|>{{ m.content.split('</think>')[-1] | trim }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
#: Keeps the thought of the last turn only, and writes an empty one where there is none.
LAST_ONLY = HEADS + (
    "{% else %}{% set parts = m.content.split('</think>') %}<|assistant|>{% if loop.last %}<think>\n"
    "{{ m.reasoning_content or (parts[0].split('<think>')[-1] | trim if parts | length > 1) }}\n</think>\n\n{% endif %}"
    "{{ parts[-1] | trim }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINK = ("<think>", "</think>")
PROMPTED = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
CLOSING = PROMPTED.replace("|assistant|>", "|assistant|><think>\n\n</think>\n\n")


def texts(tokenizer, rendered, row=0):
    """Decoded thought, answer and prompt of one row."""
    masks = (rendered.reasoning, rendered.answer, rendered.prompt)
    return tuple(tokenizer.decode(rendered.input_ids[row][mask[row]]) for mask in masks)


@pytest.mark.parametrize(
    ("template", "answer", "expected"),
    [
        (VERBATIM + PROMPTED, "<think>Hm.</think>\n\nHo.", ("<think>Hm.</think>\n\n", "Ho.<|end|>")),
        (VERBATIM + PROMPTED, "<think>Hm.</think>", ("<think>Hm.</think>", "<|end|>")),
        (VERBATIM + PROMPTED, "Ho.", ("", "Ho.<|end|>")),
        (VERBATIM + PROMPTED, "<think>Hm", ("<think>Hm<|end|>", "")),
        (
            VERBATIM + PROMPTED,
            "<think>A</think>B<think>C</think> D",
            ("<think>A</think><think>C</think> ", "BD<|end|>"),
        ),
        (VERBATIM + PROMPTED, "Hm.</think>Ho.", ("Hm.</think>", "Ho.<|end|>")),
        (VERBATIM + CLOSING, "Ho.", ("", "Ho.<|end|>")),
        (STRIPPING, "<think>\nHm.\n</think>\n\nHo.", ("Hm.\n</think>\n\n", "Ho.<|end|>")),
        (STRIPPING, "<think>Hm.</think>Ho.", ("Hm.</think>", "Ho.<|end|>")),
        (STRIPPING, "Hm.</think>Ho.", ("Hm.</think>", "Ho.<|end|>")),
        (STRIPPING, "Ho.", ("", "Ho.<|end|>")),
        (LAST_ONLY, "<think>Hm.</think>Ho.", ("<think>\nHm.\n</think>\n\n", "Ho.<|end|>")),
        (LAST_ONLY, "Ho.", ("<think>\n\n</think>\n\n", "Ho.<|end|>")),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_thought_and_answer_are_told_apart(templated, template, answer, expected, side):
    tokenizer = templated(template)
    turns = (("user", "Hi?"), ("assistant", "<think>Earlier.</think>Hello."), ("user", "So?"), ("assistant", answer))
    row = Conversation(tuple({"role": role, "content": text} for role, text in turns))
    rendered = render(tokenizer, [row, Conversation.of("Q?", "A."), row.prompt], padding_side=side, reasoning=THINK)
    assert texts(tokenizer, rendered)[:2] == expected
    assert not (rendered.reasoning & ~rendered.response).any() and not rendered.reasoning[2].any()
    assert (rendered.prompt & rendered.response).sum() == 0
    assert texts(tokenizer, rendered)[2].rstrip().endswith(("<|assistant|>", "<think>", "</think>"))


def test_the_prompt_under_a_thought_is_what_generation_starts_from(templated):
    """Where the template strips the thought, reading an answer sees the tokens that writing it did."""
    tokenizer = templated(STRIPPING)
    row = Conversation.of("Hi?", "Hm.\n</think>\n\nHo.")
    rendered = render(tokenizer, [row, row.prompt])
    assert rendered.texts[0] == rendered.texts[1] + "Hm.\n</think>\n\nHo.<|end|>"
    asked = rendered.input_ids[1][rendered.attention_mask[1].bool()]
    assert torch.equal(rendered.input_ids[0][rendered.prompt[0]], asked)


def test_a_thought_of_its_own_key(templated):
    messages = ({"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho.", "reasoning_content": "Hm."})
    tokenizer = templated(LAST_ONLY)
    assert texts(tokenizer, render(tokenizer, [Conversation(messages)]))[:2] == (
        "<think>\nHm.\n</think>\n\n",
        "Ho.<|end|>",
    )


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (VERBATIM, ("<|think|>", "<|/think|>")),  # the tokenizer knows these two
        (STRIPPING, ("<think>", "</think>")),
        (VERBATIM + "{# [THINK] #}", ("<|think|>", "<|/think|>")),  # one mark of a pair is not enough
    ],
)
def test_the_marks_are_found(templated, template, found):
    assert reasoning_markers(templated(template)) == found


def test_marks_of_ones_own(templated):
    tokenizer = templated(VERBATIM + PROMPTED)
    row = Conversation.of("Hi?", "(Hm.) Ho. <|think|>no<|/think|>")
    ours, usual = (render(tokenizer, [row], reasoning=marks) for marks in (("(", ")"), None))
    assert texts(tokenizer, ours)[0] == "(Hm.) " and texts(tokenizer, usual)[0] == "<|think|>no<|/think|>"
    assert torch.equal(ours.response, usual.response) and torch.equal(ours.answer, ours.response & ~ours.reasoning)


def test_no_marks_no_reasoning(templated):
    tokenizer = templated(VERBATIM + PROMPTED)
    row = Conversation.of("Hi?", "<think>Hm.</think>Ho.")
    assert not render(tokenizer, [row]).reasoning.any()
    moved = render(tokenizer, [row], reasoning=THINK).to("cpu")
    assert moved.reasoning.any()


def test_a_token_that_straddles_the_end_of_a_thought_is_answer(templated):
    """With marks of plain letters, a token may hold the end of the thought and the beginning of the answer."""
    tokenizer = templated(VERBATIM + PROMPTED)
    whole = render(tokenizer, [Conversation.of("Hi?", "x noise.")], reasoning=("x", " n"))
    assert texts(tokenizer, whole)[:2] == ("x", " noise.<|end|>")
    assert " no" in [tokenizer.decode(i) for i in whole.input_ids[0][whole.answer[0]]]
