"""Chat templates: the text that one writes around a conversation, and what stands in where a tokenizer has none."""

import copy
import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.conversations.rows import Conversation, Message
from probes.errors import InputError

#: Stands in for a missing chat template: "User: ...", a blank line, "Assistant: ...", the end token behind the answer.
TRANSCRIPT = (
    "{{ bos_token }}{% for m in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{{ m['role'] | capitalize }}:{% if m['content'] | trim %} {{ m['content'] | trim }}{% endif %}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


class NoChatTemplate(UserWarning):
    """A tokenizer has no chat template, so that conversations are written as a transcript in plain words."""


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a chat template of its own."""
    return _own(tokenizer) is not None


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, or the transcript that stands in for it."""
    return _own(tokenizer) or TRANSCRIPT


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the chat template and the special tokens it may write: results of other templates do not compare."""
    parts = (template_of(tokenizer), str(tokenizer.bos_token), str(tokenizer.eos_token))
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]


def render_text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """Render one conversation with the chat template; without an answer it ends in the generation prompt.

    A tokenizer without a chat template writes a transcript (`TRANSCRIPT`) and warns with `NoChatTemplate`, whose text
    is the same for every call, so that Python shows it once. Raises InputError where the template rejects the
    conversation, or silently leaves out what a tool said or was asked.
    """
    prompted = conversation.answer is None
    text = written(tokenizer, conversation.messages, conversation, prompted=prompted)
    for what, messages in _variants(conversation.messages):
        if written(tokenizer, messages, conversation, prompted=prompted) == text:
            raise InputError(f"chat template of {_name(tokenizer)} leaves out {what}: use one that knows tools")
    return text


def written(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], row: Conversation, *, prompted: bool
) -> str:
    """The text of `messages`, with the tools of `row`."""
    if not has_template(tokenizer):
        warnings.warn(
            f"tokenizer {_name(tokenizer)} has no chat template: conversations are written in plain words ('User: ', "
            "'Assistant: '); set chat_template, or read texts as they are with probes.plain_text(model)",
            NoChatTemplate,
            stacklevel=1,
        )
    template: Any = template_of(tokenizer)
    try:
        text = tokenizer.apply_chat_template(
            copy.deepcopy(list(messages)),
            tools=_tools(row),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=prompted,
        )
    except Exception as error:  # a template is a program: it may raise anything
        roles = ", ".join(str(message["role"]) for message in messages)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError(
            f"chat template of {_name(tokenizer)} rejects a conversation ({reason}); its turns are {roles}: leave out "
            "what the template does not know, or set another one"
        ) from error
    return str(text)


def _own(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    return (template.get("default") if isinstance(template, dict) else template) or None


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def _tools(row: Conversation) -> list[Any] | None:
    tools = row.meta.get("tools")
    return tools if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools) and tools else None


def _variants(messages: Sequence[Message]) -> list[tuple[str, list[Message]]]:
    """The messages with other answers and other names of tools, where there are any: a template must show those."""
    said = [{**m, "content": f"{m['content']}?"} if m["role"] == "tool" else m for m in messages]
    called = [{**m, "tool_calls": [_renamed(c) for c in m["tool_calls"]]} if "tool_calls" in m else m for m in messages]
    found = (("the answers of tools", said), ("the calls of tools", called))
    return [(what, variant) for what, variant in found if variant != list(messages)]


def _renamed(call: Message) -> Message:
    inner = call.get("function")
    changed = {"function": _renamed(inner)} if isinstance(inner, dict) else {"name": f"{call.get('name')}?"}
    return {**call, **changed}
