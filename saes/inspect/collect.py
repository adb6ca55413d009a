"""Passages of several latents in one pass over a stream: the highest, a fair draw of active ones, silent ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.activations import Activations
from probes.models import Model
from saes.fits import check_fits
from saes.inspect.passages import Context, Stretch, Window, cut, distinct, runs
from saes.inspect.reading import PART, TextSource, counted, latent_values, token_parts
from saes.sae import SparseAutoencoder

NEAR = 0.7
"""Share of neighbouring tokens from which two passages count as one."""
TRIES = 8


def top_contexts(
    sae: SparseAutoencoder,
    model: Model,
    source: TextSource,
    latents: Sequence[int],
    *,
    n: int = 5,
    before: int = 12,
    after: int = 4,
) -> dict[int, list[Context]]:
    """For each latent the `n` conversations where it is most active, the strongest first, cut around the peak.

    A conversation appears once per latent, and passages of which 70 % of the neighbouring tokens are the same are shown
    once, as `copies`; a latent that is never active has no contexts. `source` is what `token_parts` takes; it is read
    a bounded part at a time.
    """
    check_fits(sae, model)
    sae.check_latents(latents)
    tops = Tops(len(latents), n, Window(before, after))
    for part in token_parts(sae, model, source, size=PART):
        tops.add(part, latent_values(sae, part, latents, counted(part, "all", 0)))
    return {
        int(latent): [stretch.context(model.tokenizer) for stretch in kept]
        for latent, kept in zip(latents, tops.kept, strict=True)
    }


class Tops:
    """The `n` highest passages of each latent, one a conversation, none near another."""

    def __init__(self, features: int, n: int, window: Window, share: float = NEAR) -> None:
        self.n, self.window, self.share = n, window, share
        self.kept: list[list[Stretch]] = [[] for _ in range(features)]

    def add(self, part: Activations, values: Float[Tensor, "sample feature"]) -> None:
        """Take note of the conversations of a part."""
        places, number = runs(part.conversation_index)
        peaks = torch.zeros(len(places), values.shape[1])
        peaks = peaks.scatter_reduce(0, number[:, None].expand_as(values), values, "amax")
        order = peaks.argsort(dim=0, descending=True, stable=True)
        for column, kept in enumerate(self.kept):
            found: list[Stretch] = []
            for run in order[: self.n * TRIES, column].tolist():
                peak = float(peaks[run, column])
                if peak <= 0 or (len(kept) == self.n and peak < kept[-1].value):
                    break
                start, stop = places[run]
                row = start + int(values[start:stop, column].argmax())
                found.append(cut(part, values[:, column], places[run], row, self.window))
            if found:
                self.kept[column] = distinct(sorted([*kept, *found], key=lambda one: one.order), self.share, self.n)


class Draws:
    """A fair draw, without replacement, of `n` of each latent's active tokens, whatever the parts they come in.

    Every token has a pseudo-random number of its own, and those with the lowest are kept (a bottom-k sketch).
    """

    def __init__(self, latents: Sequence[int], n: int, window: Window, seed: int) -> None:
        self.n, self.window, self.seeds = n, window, [seed + 0x10001 * (int(latent) + 1) for latent in latents]
        self.kept: list[list[tuple[int, Stretch]]] = [[] for _ in latents]

    def add(self, part: Activations, values: Float[Tensor, "sample feature"]) -> None:
        """Take note of the active tokens of a part."""
        places, number = runs(part.conversation_index)
        for column, kept in enumerate(self.kept):
            active = values[:, column].nonzero()[:, 0]
            lots = lots_of(part, active, self.seeds[column])
            for i in lots.argsort(stable=True)[: self.n].tolist():
                if len(kept) >= self.n and int(lots[i]) >= kept[-1][0]:
                    break
                row = int(active[i])
                kept.append((int(lots[i]), cut(part, values[:, column], places[int(number[row])], row, self.window)))
                kept.sort(key=lambda one: one[0])
                del kept[self.n :]

    def quantiles(self, column: int) -> list[Stretch]:
        """The draw of one latent from its weakest to its strongest, each with the share that reaches no higher."""
        rising = sorted((stretch for _, stretch in self.kept[column]), key=lambda one: one.order, reverse=True)
        return [replace(one, quantile=(i + 1) / len(rising)) for i, one in enumerate(rising)]


@dataclass(frozen=True)
class Pool:
    """One passage of the shared pool: its lot, the stretch, the values of all latents in it."""

    lot: int
    stretch: Stretch
    values: Float[Tensor, "pos feature"]


class Silences:
    """A fair draw of `n` passages, kept for the latents that are silent in them."""

    def __init__(self, n: int, window: Window, seed: int) -> None:
        self.n, self.window, self.seed = n, window, seed
        self.kept: list[Pool] = []

    def add(self, part: Activations, values: Float[Tensor, "sample feature"], among: Int[Tensor, " kept"]) -> None:
        """Take note of the samples `among` a part."""
        places, number = runs(part.conversation_index)
        lots = lots_of(part, among, self.seed)
        for i in lots.argsort(stable=True)[: self.n].tolist():
            if len(self.kept) >= self.n and int(lots[i]) >= self.kept[-1].lot:
                break
            row = int(among[i])
            run = places[int(number[row])]
            first, last = max(run[0], row - self.window.before), min(run[1], row + self.window.after + 1)
            stretch = cut(part, torch.zeros(len(part)), run, row, self.window)
            self.kept.append(Pool(int(lots[i]), stretch, values[first:last].clone()))
            self.kept.sort(key=lambda one: one.lot)
            del self.kept[self.n :]

    def of(self, column: int) -> list[Stretch]:
        """The passages in which one latent is silent throughout."""
        return [one.stretch for one in self.kept if not bool(one.values[:, column].any())]


def lots_of(part: Activations, rows: Int[Tensor, " kept"], seed: int) -> Int[Tensor, " kept"]:
    """A pseudo-random number for each of these samples, from its conversation, its position and the seed alone."""
    assert part.positions is not None  # `token_parts` yields single tokens only
    x = part.conversation_index[rows].long() * 0x9E3779B97F4A7C1 + part.positions[rows].long() * 0x2545F4914F6CDD1D
    x = x + (seed + 1) * 0x1B873593
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB), (31, 1)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor  # splitmix64, the shift without the sign
    return x & (2**63 - 1)
