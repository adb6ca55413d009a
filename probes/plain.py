"""Plain text: models without a chat template, which go on with a text instead of answering a message."""

import copy
from dataclasses import replace

from probes.models import Model

#: Writes the texts of a conversation one after the other behind the start token; no roles, no end token.
PLAIN = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


def plain_text(model: Model) -> Model:
    """The same model, for texts instead of chats: nothing is written around the messages of a conversation.

    `Conversation.of("Once upon a time", ", there was")` is then one text; what stands before the border is the prompt,
    what follows it the response, as pools and operators mean these words. White space is yours: end a prompt without a
    space and begin the answer with it. `Conversation.of("", text)` is all response. The weights are shared and the
    tokenizer is a copy; the template's hash, which results record, tells such figures from those of a chat, and from
    the transcript with roles in words that `render` writes, with a warning, where nobody has said what to do.
    """
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = PLAIN
    return replace(model, tokenizer=tokenizer)
