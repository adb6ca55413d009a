"""`persona-geometry latent`: cards that show what latents of an SAE mean, as a page that stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from probes.models import Model
    from probes.subjects import Endpoint
    from saes.inspect import CardDeck
    from saes.inspect.reading import TextSource
    from saes.sae import SparseAutoencoder

STRONGEST = 20


def latent(
    sae: Annotated[str, typer.Argument(help="An SAE: a folder, a release of sae-lens, or a hub repository.")],
    model: Annotated[str, typer.Argument(help="The model that it reads: a hub id or a folder.")],
    rows: Annotated[
        Path,
        typer.Option(
            help="What to read: conversations (JSONL), documents (JSONL with `text`, a JSON list, or one a line of "
            "a .txt), or an activation store."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write, .html (or .json).")],
    latents: Annotated[
        str, typer.Option(help="Latents: `12,40`, `0-99`, or `strongest` (20, by mean activation).")
    ] = "strongest",
    layer: Annotated[int | None, typer.Option(help="Block of the SAE, where a release has several.")] = None,
    sae_id: Annotated[str | None, typer.Option(help="SAE of the release.")] = None,
    where: Annotated[str, typer.Option(help="Tokens that count: all, prompt or response.")] = "all",
    skip: Annotated[int, typer.Option(help="Tokens at the start of each text that do not count.")] = 0,
    no_text: Annotated[bool, typer.Option("--no-text", help="Leave out what the rows hold, for sharing.")] = False,
    name_by: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint that names each latent; three requests each.")
    ] = None,
    name_model: Annotated[str, typer.Option(help="The model that the endpoint should use.")] = "default",
    seed: Annotated[int, typer.Option(help="Seed of the passages that are drawn at random.")] = 0,
    device: Annotated[str, typer.Option(help="Where the models run: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Show what latents mean: strongest and random passages, tokens written, density, neighbours, company."""
    from persona_geometry.commands.terminal import Bar, settle

    _check(out, where, skip, latents, name_by)
    settle()
    from probes.models import load_model
    from saes.inspect import CardParts, feature_cards, load_rows, name_latents, neuronpedia_id
    from saes.load import load_sae

    source = load_rows(rows)
    namer = None if name_by is None else _namer(name_by, name_model, out)
    loaded = load_sae(sae, layer=layer, sae_id=sae_id, device=device)
    reader = load_model(model, device=device)
    published = neuronpedia_id(sae, sae_id) if sae_id else None
    with Bar() as bar:
        chosen = _chosen(latents, loaded, reader, source, where, skip)
        asked = {"where": where, "skip": skip, "parts": CardParts(seed=seed), "neuronpedia": published}
        deck = feature_cards(loaded, reader, source, chosen, progress=bar, **asked)  # pyright: ignore[reportArgumentType]
        deck = deck if namer is None else name_latents(deck, namer, progress=bar)
    _show(deck, text=not no_text)
    for page in deck.write(out, text=not no_text):
        print(page)


def _check(out: Path, where: str, skip: int, latents: str, name_by: str | None) -> None:
    """What can be known to be wrong before anything heavy is imported."""
    from probes.errors import InputError

    if out.suffix not in (".html", ".json") or out.is_dir():
        raise InputError(f"--out {out}: give the name of a file that ends in .html or .json")
    if where not in ("all", "prompt", "response"):
        raise InputError(f"--where {where}: use one of all, prompt, response")
    if skip < 0:
        raise InputError(f"--skip {skip}: give 0 or more")
    if latents != "strongest":
        _numbers(latents)
    if name_by is not None and not name_by.startswith(("http://", "https://")):
        raise InputError(f"--name-by {name_by}: give the address of an OpenAI-compatible endpoint")


def _numbers(text: str) -> list[int]:
    """The latents that `12`, `12,40` or `0-99` name, each once, in their order."""
    from probes.errors import InputError

    try:
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
        found = [i for part in ends for i in range(part[0], part[-1] + 1)]
    except ValueError:
        ends, found = [], []
    if not found or any(len(part) > 2 for part in ends):
        raise InputError(f"--latents {text}: give numbers such as 12,40 or 0-99, or `strongest`")
    return list(dict.fromkeys(found))


def _namer(url: str, model: str, out: Path) -> Endpoint:
    from probes.subjects import Endpoint

    return Endpoint(url, model, out.parent / "names-cache")


def _chosen(latents: str, sae: SparseAutoencoder, model: Model, source: TextSource, where: str, skip: int) -> list[int]:
    """The latents named, or the strongest by mean activation on the rows, those that never fire left out."""
    if latents != "strongest":
        found = _numbers(latents)
        sae.check_latents(found)
        return found
    from saes.inspect import strongest_latents

    return strongest_latents(sae, model, source, n=STRONGEST, where=where, skip=skip)  # pyright: ignore[reportArgumentType]


def _show(deck: CardDeck, *, text: bool) -> None:
    """A row a latent: how often it fires, what it writes, its name."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    named = text and any(card.naming for card in deck)
    table = Table("latent", "fires on", "texts", "writes", *(["name"] if named else []), box=None, pad_edge=False)
    for card in deck:
        assert card.density is not None  # feature_cards counts always
        words = " ".join(token.strip() for token in card.top_tokens[:5]) if text else ""
        row = [str(card.latent), f"{card.density.share:.2%}", f"{card.density.share_conversations:.0%}", Text(words)]
        table.add_row(*row, *([Text(card.naming.name if card.naming else "")] if named else []))
    Console().print(table)
