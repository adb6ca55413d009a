"""How often and how strongly a latent fires: shares of tokens and of conversations, a histogram, prompt and answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.activations import Activations
from probes.models import Model
from saes.fits import check_fits
from saes.inspect.passages import runs
from saes.inspect.reading import TextSource, counted, latent_values, token_parts
from saes.rows import Where
from saes.sae import SparseAutoencoder

if TYPE_CHECKING:
    import plotly.graph_objects as go

BINS = 64


@dataclass(frozen=True)
class Density:
    """How often one latent fires among `n_tokens` tokens of `n_conversations` conversations, and how strongly.

    `counts` are the active tokens by height, in bins of equal `width` that begin at 0 (units of the residual stream);
    `mean` is over active tokens. `prompt` and `response` are pairs (active tokens, tokens) of the two sides.
    """

    n_tokens: int
    n_active: int
    n_conversations: int
    n_active_conversations: int
    mean: float
    top: float
    width: float
    counts: tuple[int, ...]
    prompt: tuple[int, int]
    response: tuple[int, int]

    @property
    def share(self) -> float:
        """Share of the tokens on which it is active."""
        return self.n_active / max(1, self.n_tokens)

    @property
    def share_conversations(self) -> float:
        """Share of the conversations in which it is active at least once."""
        return self.n_active_conversations / max(1, self.n_conversations)

    @property
    def share_prompt(self) -> float | None:
        """Share of the prompts' tokens on which it is active; None where no such token was counted."""
        return _share(self.prompt)

    @property
    def share_response(self) -> float | None:
        """The same of the answers' tokens."""
        return _share(self.response)

    def figure(self) -> "go.Figure":
        """The histogram of the active tokens."""
        from saes.figures.cards import density_figure

        return density_figure(self)


def activation_density(
    sae: SparseAutoencoder,
    model: Model,
    source: TextSource,
    latents: Sequence[int],
    *,
    where: Where = "all",
    skip: int = 0,
) -> dict[int, Density]:
    """How often and how strongly each of `latents` fires on `source`; tokens before position `skip` do not count."""
    check_fits(sae, model)
    sae.check_latents(latents)
    found = Densities(len(latents))
    for part in token_parts(sae, model, source):
        keep = counted(part, where, skip)
        found.add(part, latent_values(sae, part, latents, keep), keep)
    return {int(latent): found.of(column) for column, latent in enumerate(latents)}


class Densities:
    """Counts of several latents over a stream; a histogram's bins are a power of two wide, and double when they must.

    The counts do not depend on how the stream was cut into parts.
    """

    def __init__(self, features: int) -> None:
        self.n = self.n_runs = 0
        self.sides = torch.zeros(2, dtype=torch.long)
        self.side_active, self.run_active = torch.zeros(2, features).long(), torch.zeros(features).long()
        self.total, self.top = torch.zeros(features, dtype=torch.float64), torch.zeros(features)
        self.exponent, self.counts = torch.full((features,), -126), torch.zeros(features, BINS).long()

    def add(self, part: Activations, values: Float[Tensor, "sample feature"], keep: Bool[Tensor, " sample"]) -> None:
        """Take note of a part, whose values are 0 where `keep` is false."""
        assert part.in_response is not None  # `token_parts` yields single tokens only
        places, number = runs(part.conversation_index)
        active = values > 0
        self.n += int(keep.sum())
        for side, mask in enumerate((~part.in_response, part.in_response)):
            self.sides[side] += (keep & mask).sum()
            self.side_active[side] += (active & mask[:, None]).sum(0)
        seen = torch.zeros(len(places), 1 + values.shape[1], dtype=torch.long)
        both = torch.cat([keep[:, None], active], 1).long()
        seen.scatter_reduce_(0, number[:, None].expand_as(both), both, "amax")
        self.n_runs += int(seen[:, 0].sum())
        self.run_active += seen[:, 1:].sum(0)
        self.total += values.sum(0, dtype=torch.float64)
        self.top = torch.maximum(self.top, values.amax(0))
        self._count(values)

    def _count(self, values: Float[Tensor, "sample feature"]) -> None:
        """Put the active values into bins, after the bins have doubled until the largest of them fits."""
        wanted = torch.where(self.top > 0, torch.frexp(self.top).exponent.long(), self.exponent)
        old = torch.arange(BINS)
        for column, (before, now) in enumerate(zip(self.exponent.tolist(), wanted.tolist(), strict=True)):
            if now > before:
                folded = torch.zeros(BINS).long()
                self.counts[column] = folded.index_add_(0, old >> min(now - before, 6), self.counts[column])
            column_values = values[:, column]
            bins = (column_values[column_values > 0].double() * BINS / 2.0**now).long().clamp(max=BINS - 1)
            self.counts[column] += torch.bincount(bins, minlength=BINS)
        self.exponent = wanted

    def of(self, column: int) -> Density:
        """What was counted of one latent."""
        active = int(self.side_active[:, column].sum())
        counts, width = self.counts[column].tolist(), 2.0 ** int(self.exponent[column]) / BINS
        last = max((i for i, count in enumerate(counts) if count), default=-1)
        prompt, response = ((int(self.side_active[side, column]), int(self.sides[side])) for side in (0, 1))
        return Density(
            self.n,
            active,
            self.n_runs,
            int(self.run_active[column]),
            float(self.total[column]) / max(1, active),
            float(self.top[column]),
            width if active else 0.0,
            tuple(counts[: last + 1]),
            prompt,
            response,
        )


def _share(pair: tuple[int, int]) -> float | None:
    return pair[0] / pair[1] if pair[1] else None
