"""Cards of many latents from one pass over a stream of conversations, documents or stored activations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.activations import Activations
from probes.errors import InputError
from probes.models import Model
from probes.progress import Progress, silent
from saes.fits import check_fits
from saes.inspect.card import LatentCard
from saes.inspect.collect import NEAR, Draws, Silences, Tops, top_contexts
from saes.inspect.deck import CardDeck
from saes.inspect.density import Densities
from saes.inspect.lens import logit_lens
from saes.inspect.links import neuronpedia_link
from saes.inspect.neighbours import nearest_latents, typical_nearest
from saes.inspect.passages import WINDOW, Stretch, Window, distinct
from saes.inspect.reading import TextSource, counted, latent_values, token_parts
from saes.inspect.together import Pairs
from saes.rows import Where, block_rows
from saes.sae import SparseAutoencoder


@dataclass(frozen=True)
class CardParts:
    """What stands on a card; 0 leaves a part out.

    `quantiles` are the heights, among its active tokens, at which a passage is drawn at random. `held_out` is how many
    active and how many silent passages are put aside to test a name. `partners` asks for all latents of every token:
    without it a wide SAE is read much faster. `seed` decides the draws.
    """

    contexts: int = 5
    quantiles: tuple[float, ...] = (0.9, 0.5, 0.1)
    tokens: int = 8
    neighbours: int = 5
    partners: int = 5
    held_out: int = 12
    window: Window = WINDOW
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("contexts", "tokens", "neighbours", "partners", "held_out")}
        for name, size in sizes.items():
            if size < 0:
                raise InputError(f"{name}={size}: give 0 to leave it out, or more")
        wrong = [q for q in self.quantiles if not 0 <= q <= 1]
        if wrong:
            raise InputError(f"quantile {wrong[0]}: give numbers from 0 (the weakest firings) to 1 (the strongest)")


def latent_cards(
    sae: SparseAutoencoder,
    model: Model,
    source: TextSource,
    latents: Sequence[int],
    *,
    n_contexts: int = 5,
    n_tokens: int = 8,
) -> dict[int, LatentCard]:
    """A brief card for each of `latents`, read off `model` on `source`: tokens and strongest passages only."""
    written, against = (logit_lens(sae, model, latents, k=n_tokens, largest=largest) for largest in (True, False))
    contexts = top_contexts(sae, model, source, latents, n=n_contexts)
    return {
        int(latent): LatentCard(int(latent), _words(written[latent]), _words(against[latent]), tuple(contexts[latent]))
        for latent in latents
    }


def feature_cards(
    sae: SparseAutoencoder,
    model: Model,
    source: TextSource,
    latents: Sequence[int],
    *,
    where: Where = "all",
    skip: int = 0,
    parts: CardParts = CardParts(),
    neuronpedia: str | None = None,
    progress: Progress = silent,
) -> CardDeck:
    """Cards for `latents` in one pass over `source`: conversations, documents, captured or stored activations.

    Only tokens of `where`, from position `skip` on, count (the first token of many models is far off all others); a
    passage shows the others too. Memory holds one part of about 16,384 tokens, a bounded number of passages and, with
    `partners`, 16 bytes for each of `latents` times `d_sae`. `neuronpedia` is the SAE's name there (`neuronpedia_id`),
    for a link on each card. Raises InputError for a latent that does not exist or is named twice, an SAE that does not
    fit, and rows without a token that counts.
    """
    check_fits(sae, model)
    latents = [int(latent) for latent in latents]
    sae.check_latents(latents)
    _check(latents, skip)
    seen = _Seen(sae, latents, parts)
    for part in token_parts(sae, model, source):
        seen.add(part, where, skip)
        progress(seen.densities.n, 0, "tokens")
    if not seen.densities.n:
        raise InputError(f"no token counts (where={where!r}, skip={skip}): give rows with such tokens")
    cards = seen.cards(model)
    if neuronpedia:
        cards = [replace(card, link=neuronpedia_link(neuronpedia, card.latent)) for card in cards]
    return CardDeck(
        tuple(cards),
        sae_name=sae.name,
        model_name=model.name,
        layer=sae.layer,
        n_tokens=seen.densities.n,
        n_conversations=seen.densities.n_runs,
        where=where,
        skip=skip,
        typical_nearest=typical_nearest(sae) if parts.neighbours else None,
    )


class _Seen:
    """All that is gathered of the latents while the rows stream by."""

    def __init__(self, sae: SparseAutoencoder, latents: Sequence[int], parts: CardParts) -> None:
        self.sae, self.latents, self.parts = sae, list(latents), parts
        self.tops = Tops(len(latents), parts.contexts, parts.window)
        size = 4 * (parts.held_out + len(parts.quantiles)) if parts.held_out or parts.quantiles else 0
        self.draws = Draws(latents, size, parts.window, parts.seed)
        self.silences = Silences(8 * parts.held_out, parts.window, parts.seed)
        self.densities = Densities(len(latents))
        self.pairs = Pairs(sae.d_sae, latents) if parts.partners else None

    def add(self, part: Activations, where: Where, skip: int) -> None:
        """Take note of a part of the stream."""
        keep = counted(part, where, skip)
        values = self._values(part, keep)
        if self.parts.contexts:
            self.tops.add(part, values)
        self.draws.add(part, values)
        self.silences.add(part, values, keep.nonzero()[:, 0])
        self.densities.add(part, values, keep)

    @torch.no_grad()
    def _values(self, part: Activations, keep: Bool[Tensor, " sample"]) -> Float[Tensor, "sample feature"]:
        """The latents asked for; where their company is, all latents are read, a block of rows at a time."""
        if self.pairs is None:
            return latent_values(self.sae, part, self.latents, keep)
        size, found = block_rows(self.sae.d_sae), []
        for rows, kept in zip(part.at(self.sae.layer).split(size), keep.split(size), strict=True):
            encoded = self.sae.encode(rows)
            self.pairs.add(encoded[kept.to(encoded.device)])
            found.append(encoded[:, self.latents].float().cpu())
        return torch.cat(found) * keep[:, None]

    def cards(self, model: Model) -> list[LatentCard]:
        """The cards, in the order of the latents."""
        k = self.parts.tokens
        written, against = (logit_lens(self.sae, model, self.latents, k=k, largest=up) for up in (True, False))
        near = nearest_latents(self.sae, self.latents, k=self.parts.neighbours)
        together = None if self.pairs is None else self.pairs.done()
        cards = []
        for column, latent in enumerate(self.latents):
            shown, drawn, aside = _chosen(self.tops.kept[column], self.draws.quantiles(column), self.parts)
            quiet = distinct(self.silences.of(column), NEAR, self.parts.held_out)
            texts = (tuple(one.context(model.tokenizer) for one in part) for part in (shown, drawn, aside, quiet))
            contexts, draws, held_out, calm = texts
            cards.append(
                LatentCard(
                    latent,
                    _words(written[latent]),
                    _words(against[latent]),
                    contexts,
                    draws,
                    self.densities.of(column),
                    tuple(near[latent]),
                    () if together is None else tuple(together.partners(latent, self.parts.partners)),
                    held_out,
                    calm,
                )
            )
        return cards


def _chosen(
    tops: Sequence[Stretch], rising: Sequence[Stretch], parts: CardParts
) -> tuple[list[Stretch], list[Stretch], list[Stretch]]:
    """The strongest passages, one drawn at each quantile, and those put aside; no two near each other."""
    shown, taken = list(tops), list(tops)
    drawn: list[Stretch] = []
    for quantile in sorted(parts.quantiles, reverse=True):
        by_distance = sorted(rising, key=lambda one: abs((one.quantile or 0.0) - quantile))
        found = next((one for one in by_distance if not any(one.near(other, NEAR) for other in taken)), None)
        if found is not None:
            drawn.append(found)
            taken.append(found)
    rest = [one for one in rising if not any(one.near(other, NEAR) for other in taken)]
    rest = distinct(rest, NEAR, len(rest))
    step = max(1.0, len(rest) / max(1, parts.held_out))
    aside = [rest[int(i * step)] for i in range(min(parts.held_out, len(rest)))]
    return shown, drawn, aside


def _words(found: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    return tuple(token for token, _ in found)


def _check(latents: Sequence[int], skip: int) -> None:
    if not latents:
        raise InputError("feature_cards: no latents given; give at least one")
    twice = [latent for latent in latents if latents.count(latent) > 1]
    if twice:
        raise InputError(f"latent {twice[0]}: named twice; name each once")
    if skip < 0:
        raise InputError(f"skip={skip}: give the number of tokens to leave out at the start, 0 or more")
