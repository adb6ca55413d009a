"""Passages: a stretch of a text around a token, cut out while the text is at hand, made readable at the end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.activations import Activations
from saes.inspect.texts import running_texts


@dataclass(frozen=True)
class Context:
    """A stretch of a conversation around one token.

    `tokens` and `values` (the latent at each, 0 at tokens that do not count) run side by side; `peak` is the index of
    the token that the stretch was cut for, `conversation` its row, `position` its place there. `in_response` says
    whether it is the answer's. `copies` counts the near-equal strong passages that it stands for, with itself.
    `quantile` is the share of the latent's active tokens that reach no higher (None: one of the highest, or silent).
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int
    conversation: int
    position: int = -1
    in_response: bool = False
    copies: int = 1
    quantile: float | None = None

    @property
    def value(self) -> float:
        """The latent at the peak."""
        return self.values[self.peak]

    @property
    def text(self) -> str:
        """The stretch as plain text."""
        return "".join(self.tokens)

    def _repr_html_(self) -> str:
        from saes.inspect.html import context_html, with_style

        return with_style(context_html(self))


class Window(NamedTuple):
    """How many tokens before and after the peak belong to a passage."""

    before: int = 12
    after: int = 4


WINDOW = Window()


@dataclass(frozen=True)
class Stretch:
    """A passage in the making: token ids, the first of them only there to tell how the second joins on."""

    ids: tuple[int, ...]
    values: tuple[float, ...]
    peak: int
    conversation: int
    position: int
    in_response: bool
    copies: int = 1
    quantile: float | None = field(default=None, compare=False)

    @property
    def value(self) -> float:
        """The latent at the peak."""
        return self.values[self.peak]

    @property
    def order(self) -> tuple[float, int, int]:
        """Sorts by value, the highest first, then by place."""
        return (-self.value, self.conversation, self.position)

    @cached_property
    def pairs(self) -> frozenset[tuple[int, ...]]:
        """The neighbouring tokens of the stretch, and its first token."""
        shown = self.ids[1:]
        return frozenset([shown[:1], *pairwise(shown)])

    def near(self, other: "Stretch", share: float) -> bool:
        """Whether at least `share` of all their pairs of neighbouring tokens stand in both (Jaccard)."""
        both = len(self.pairs & other.pairs)
        return both >= share * (len(self.pairs) + len(other.pairs) - both)

    def context(self, tokenizer: PreTrainedTokenizerBase) -> Context:
        """The passage with its tokens as texts."""
        return Context(
            running_texts(tokenizer, self.ids),
            self.values,
            self.peak,
            self.conversation,
            self.position,
            self.in_response,
            self.copies,
            self.quantile,
        )


def cut(part: Activations, values: Sequence[float] | Tensor, run: tuple[int, int], row: int, window: Window) -> Stretch:
    """The stretch around sample `row` of the run of samples [start, stop) that one conversation takes."""
    first, last = max(run[0], row - window.before), min(run[1], row + window.after + 1)
    assert part.token_ids is not None and part.positions is not None  # `token_parts` yields single tokens only
    ids = part.token_ids[max(run[0], first - 1) : last].tolist()
    return Stretch(
        tuple(ids if first > run[0] else [ids[0], *ids]),
        tuple(torch.as_tensor(values)[first:last].tolist()),
        row - first,
        int(part.conversation_index[row]),
        int(part.positions[row]),
        bool(part.in_response[row]) if part.in_response is not None else False,
    )


def distinct(stretches: Iterator[Stretch] | Sequence[Stretch], share: float, n: int) -> list[Stretch]:
    """The first `n` that are near none before them; those that follow and are near count as copies."""
    kept: list[Stretch] = []
    for stretch in stretches:
        same = next((i for i, one in enumerate(kept) if stretch.near(one, share)), None)
        if same is not None:
            kept[same] = replace(kept[same], copies=kept[same].copies + stretch.copies)
        elif len(kept) < n:
            kept.append(stretch)
    return kept


def runs(conversation_index: Int[Tensor, " sample"]) -> tuple[list[tuple[int, int]], Int[Tensor, " sample"]]:
    """The samples [start, stop) of each conversation in their order, and the number of the run of every sample."""
    _, number, counts = conversation_index.unique_consecutive(return_inverse=True, return_counts=True)
    stops = counts.cumsum(0)
    return list(zip((stops - counts).tolist(), stops.tolist(), strict=True)), number
