"""What a probe says of every token: of conversations that a model reads now, or of activations on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.activations import Activations
from probes.conversations import Conversation, conversation_batches, render, template_hash
from probes.errors import InputError
from probes.hooks import capture_blocks
from probes.linear.placed import LayerProbe
from probes.models import Model, check_layer
from probes.store import ActivationStore

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class TokenScores:
    """The scores of one conversation's tokens, positive for the probe's upper class; `texts` are the tokens' texts.

    Texts put together are the rendered conversation. A character that several tokens share stands with the last of
    them. `scores` are in the probe's unit (log odds, or units of the activations).
    """

    conversation: int
    texts: tuple[str, ...]
    scores: Float[Tensor, " pos"]
    in_response: Bool[Tensor, " pos"]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def response_mean(self) -> float:
        """Mean score of the answer's tokens; NaN without an answer."""
        return float(self.scores[self.in_response].mean())


@dataclass(frozen=True, eq=False)
class TokenReadout:
    """Token scores of some conversations, in their order, with what the probe's positive class is called."""

    rows: tuple[TokenScores, ...]
    positive: str = ""
    title: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def table(self) -> pd.DataFrame:
        """One row per token: conversation, position, text, score, in_response."""
        parts = [
            pd.DataFrame(
                {
                    "conversation": row.conversation,
                    "position": range(len(row)),
                    "text": row.texts,
                    "score": row.scores.numpy(),
                    "in_response": row.in_response.numpy(),
                }
            )
            for row in self.rows
        ]
        return pd.concat(parts, ignore_index=True)

    def html(self) -> str:
        """The texts, each token on the colour of its score; safe to put into a page, whatever the texts hold."""
        from probes.linear.coloured import coloured_html

        return coloured_html(self)

    def figure(self) -> "go.Figure":
        """Scores along the tokens, a line a conversation, prompts dotted."""
        from probes.figures import tokens_figure

        return tokens_figure(self)

    def _repr_html_(self) -> str:
        return self.html()


def read_tokens(
    model: Model, probe: LayerProbe, conversations: Sequence[Conversation], *, batch_size: int = 32
) -> TokenReadout:
    """Score every token of `conversations` with the probe at its block and site; only scores are kept in memory.

    Raises InputError where the probe does not fit the model: another width, a block that is not there, or another chat
    template (`dataclasses.replace(probe, template_hash="")` says that you mean it).
    """
    if not conversations:
        raise InputError("read_tokens: no conversations given; give at least one")
    _check(model, probe)
    rows: dict[int, TokenScores] = {}
    for index, batch in conversation_batches(conversations, batch_size):
        rendered = render(model.tokenizer, batch)
        values = capture_blocks(model, rendered, [probe.layer], rows=index, site=probe.site)[0]
        scores = probe.scores(values.cpu())
        for place, number in enumerate(index):
            kept = rendered.attention_mask[place].bool()
            texts = token_texts(model.tokenizer, rendered.input_ids[place][kept])
            rows[number] = TokenScores(number, texts, scores[place][kept], rendered.response[place][kept])
    return TokenReadout(tuple(rows[i] for i in sorted(rows)), str(probe.positive), repr(probe))


def stream_tokens(
    store: ActivationStore, probe: LayerProbe, tokenizer: PreTrainedTokenizerBase
) -> Iterator[TokenScores]:
    """Score the tokens of a store (pool "tokens"), conversation by conversation, with one shard in memory at a time.

    Raises InputError where the store lacks the probe's block or holds means, another site, or another template.
    """
    for shard in store.iter_shards():
        yield from score_tokens(shard, probe, tokenizer)


def score_tokens(
    activations: Activations, probe: LayerProbe, tokenizer: PreTrainedTokenizerBase
) -> Iterator[TokenScores]:
    """The same for activations in memory."""
    ids, positions, inside = activations.token_ids, activations.positions, activations.in_response
    if ids is None or positions is None or inside is None:
        raise InputError(f"activations of pool {activations.pool!r} hold no single tokens: capture with pool='tokens'")
    if activations.site != probe.site:
        raise InputError(
            f"the probe reads {probe.site}, these activations are of {activations.site}: capture that site"
        )
    _same_template(probe, activations.template_hash)
    scores = probe.scores(activations.at(probe.layer))
    for number in activations.conversation_index.unique().tolist():
        mine = (activations.conversation_index == number).nonzero()[:, 0]
        mine = mine[positions[mine].argsort(stable=True)]
        yield TokenScores(number, token_texts(tokenizer, ids[mine]), scores[mine], inside[mine])


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Int[Tensor, " pos"]) -> tuple[str, ...]:
    """The text that each token adds to those before it, special tokens by name.

    Where a character takes several tokens all but the last of them are given an empty text.
    """
    numbers, out = ids.tolist(), []
    start = read = 0  # the text of [start, read) is given out; it tells how the next token joins on
    for stop in range(1, len(numbers) + 1):
        before, now = (_decoded(tokenizer, numbers[start:end]) for end in (read, stop))
        if now.endswith("\ufffd") and stop < len(numbers) and stop - read < 8:
            out.append("")
            continue
        out.append(now[len(before) :])
        start, read = read, stop
    return tuple(out)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _check(model: Model, probe: LayerProbe) -> None:
    check_layer(model, probe.layer)
    if probe.d_model != model.d_model:
        raise InputError(f"probe of width {probe.d_model} for {model.name} of width {model.d_model}: fit one to it")
    _same_template(probe, template_hash(model.tokenizer))


def _same_template(probe: LayerProbe, found: str) -> None:
    if probe.template_hash and found and probe.template_hash != found:
        raise InputError(
            f"probe of chat template {probe.template_hash}, text of {found}: fit it anew, or say that you mean it with "
            "dataclasses.replace(probe, template_hash='')"
        )
