"""Perplexity: how surprised a model is by text, also while it is steered: what an edit costs beside what it does."""

import math
from collections.abc import Sequence

from probes.conversations import Conversation
from probes.hooks import Operator
from probes.judges.margin import response_logprobs
from probes.models import Model


def perplexity(
    model: Model,
    conversations: Sequence[Conversation],
    *,
    operators: Sequence[Operator] = (),
    batch_size: int = 8,
) -> float:
    """exp of the mean negative log-probability of the answers' tokens, end tokens included; every token counts equally.

    `operators` act while the text is read, where their `positions` say. Texts without a chat are read through
    `plain_text(model)`, as `Conversation.of("", text)`. The sum is taken in float64.
    """
    sums, counts = response_logprobs(model, conversations, operators=operators, batch_size=batch_size)
    return math.exp(-float(sums.double().sum()) / int(counts.sum()))
