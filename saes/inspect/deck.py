"""A deck of cards: latents of one SAE read on the same rows, as pages that stand alone."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probes.errors import InputError
from probes.io import atomic_file, write_json
from saes.inspect.card import LatentCard
from saes.rows import Where

PER_PAGE = 100


@dataclass(frozen=True)
class CardDeck:
    """Cards of latents of one SAE, in the order asked for, and what they were read on.

    `typical_nearest` is the median cosine of a latent with its nearest neighbour in this SAE, beside which the
    neighbours on the cards are to be read.
    """

    cards: tuple[LatentCard, ...]
    sae_name: str
    model_name: str
    layer: int
    n_tokens: int
    n_conversations: int
    where: Where = "all"
    skip: int = 0
    typical_nearest: float | None = None

    def __len__(self) -> int:
        return len(self.cards)

    def __iter__(self) -> Iterator[LatentCard]:
        return iter(self.cards)

    def __getitem__(self, latent: int) -> LatentCard:
        """The card of a latent, by its number."""
        found = next((card for card in self.cards if card.latent == latent), None)
        if found is None:
            raise InputError(f"latent {latent} has no card here: there are {', '.join(str(c.latent) for c in self)}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The deck for JSON."""
        return asdict(self)

    def html(self, *, text: bool = True) -> str:
        """One page with all cards, which fetches nothing and runs no script; `text=False` hides what rows hold."""
        from saes.inspect.html import page_html

        return page_html(self, text=text)

    def write(self, path: str | Path, *, text: bool = True, per_page: int = PER_PAGE) -> list[Path]:
        """Write the cards as HTML, at most `per_page` on a page (`cards.html`, `cards-2.html`, ...); the pages' paths.

        With a `path` that ends in `.json`, the deck as JSON instead. Raises InputError for another ending.
        """
        from saes.inspect.html import page_html

        path = Path(path)
        if path.suffix == ".json":
            write_json(path, self.as_dict())
            return [path]
        if path.suffix != ".html" or per_page < 1:
            raise InputError(f"{path}, {per_page} a page: give a name that ends in .html or .json, and 1 or more")
        parts = [self.cards[i : i + per_page] for i in range(0, max(1, len(self.cards)), per_page)]
        names = [path.name, *(f"{path.stem}-{i}.html" for i in range(2, len(parts) + 1))]
        for number, (cards, name) in enumerate(zip(parts, names, strict=True)):
            with atomic_file(path.with_name(name)) as temporary:
                page = page_html(self, cards, names=names, number=number, text=text)
                temporary.write_text(page, encoding="utf-8")
        return [path.with_name(name) for name in names]

    def _repr_html_(self) -> str:
        from saes.inspect.html import card_html, with_style

        return with_style("".join(card_html(card, typical=self.typical_nearest) for card in self.cards))
