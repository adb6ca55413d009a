"""A card of one latent: what it writes, where it fires, how often, what stands near it and what fires with it."""

from dataclasses import asdict, dataclass
from typing import Any

from saes.inspect.density import Density
from saes.inspect.detecting import Naming
from saes.inspect.neighbours import Neighbour
from saes.inspect.passages import Context
from saes.inspect.together import Partner


@dataclass(frozen=True)
class LatentCard:
    """One latent, as far as it was looked at.

    `top_tokens` and `bottom_tokens` are those that its decoder direction makes likelier and unlikelier, `contexts` its
    strongest passages. `draws` are passages around active tokens drawn at random, from its strong firings to its weak
    ones, so that a card shows more than its best. `held_out` (active) and `silent` passages are not shown: they test
    what somebody says of the latent (`detection`).
    """

    latent: int
    top_tokens: tuple[str, ...]
    bottom_tokens: tuple[str, ...]
    contexts: tuple[Context, ...]
    draws: tuple[Context, ...] = ()
    density: Density | None = None
    neighbours: tuple[Neighbour, ...] = ()
    partners: tuple[Partner, ...] = ()
    held_out: tuple[Context, ...] = ()
    silent: tuple[Context, ...] = ()
    naming: Naming | None = None
    link: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The card for JSON."""
        return asdict(self)

    def figure(self) -> Any:
        """The histogram of its activations. Raises InputError for a card without a density."""
        from saes.figures.cards import density_figure

        return density_figure(self.density, self.latent)

    def _repr_html_(self) -> str:
        from saes.inspect.html import card_html, with_style

        return with_style(card_html(self))
