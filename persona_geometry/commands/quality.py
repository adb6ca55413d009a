"""`persona-geometry quality`: how faithful and sparse SAEs are, what they cost a model, which latents come again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from probes.conversations import Conversation
    from probes.models import Model
    from probes.outcomes import Rate
    from saes.fidelity import Quality
    from saes.rows import Source
    from saes.sae import SparseAutoencoder
    from saes.stability import Stability

FIGURES = "quality.json"


@dataclass(frozen=True)
class Measured:
    """What was found: qualities and the baseline of each by name, and how far latents come again."""

    qualities: dict[str, Quality]
    chance: dict[str, Rate]
    stability: Stability | None


def quality(
    sae: Annotated[str, typer.Argument(help="An SAE: a folder, a release of sae-lens, or a hub repository.")],
    source: Annotated[str, typer.Argument(help="A store of single tokens; or a model, with --conversations.")],
    out: Annotated[Path, typer.Option(help="Folder for quality.json, quality.parquet and quality.html.")],
    also: Annotated[list[str] | None, typer.Option(help="Another SAE of the same block; may be repeated.")] = None,
    conversations: Annotated[Path | None, typer.Option(help="JSONL that a model reads.")] = None,
    model: Annotated[str | None, typer.Option(help="Beside a store: the model to splice reconstructions into.")] = None,
    layer: Annotated[int | None, typer.Option(help="Block of the SAE, where a release has several.")] = None,
    sae_id: Annotated[str | None, typer.Option(help="SAE of the release.")] = None,
    where: Annotated[str, typer.Option(help="Tokens that count: all, prompt or response.")] = "all",
    skip_first: Annotated[int, typer.Option(help="Leave out so many tokens at a conversation's start.")] = 0,
    held_out: Annotated[
        float | None, typer.Option(help="Judge on the share of a store that `train-sae --held-out` did not train on.")
    ] = None,
    spliced: Annotated[int, typer.Option(help="Conversations for the cross-entropy, at most; 0 leaves it out.")] = 200,
    stability: Annotated[bool, typer.Option("--stability", help="Match the latents of all SAEs given.")] = False,
    batch_size: Annotated[int, typer.Option(help="Conversations of one forward pass.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap and of the random directions.")] = 0,
    device: Annotated[str, typer.Option(help="Where the models run: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Judge SAEs: variance unexplained, sparsity, dead and dense latents, cross-entropy recovered, stability."""
    from persona_geometry.commands.terminal import settle

    store = (Path(source) / "manifest.json").is_file()
    _check(where, skip_first, spliced, store, conversations, model, stability and not also)
    settle()
    from probes.conversations import load_conversations
    from probes.models import load_model
    from saes.load import load_sae
    from saes.rows import HeldOut

    named = [sae, *(also or [])]
    saes = [load_sae(name, layer=layer, sae_id=sae_id, device=device) for name in named]
    loaded = {name: one for name, one in zip(_names(named), saes, strict=True)}
    said = None if conversations is None else load_conversations(conversations)
    reader = None if store and model is None else load_model(model or source, device=device)
    rows = _rows(source if store else None, reader, said, saes)
    keep = None if held_out is None else HeldOut(held_out)
    chosen: dict[str, Any] = {"where": where, "skip_first": skip_first, "keep": keep}
    cost = (reader, (said or [])[:spliced], where, skip_first, batch_size)
    found = _measured(loaded, rows, chosen, cost, stability, seed)
    _write(out, found)
    _show(found)
    print(out)


def _check(
    where: str, skip_first: int, spliced: int, store: bool, conversations: Path | None, model: str | None, alone: bool
) -> None:
    """What can be known to be wrong before anything heavy is imported."""
    from probes.errors import InputError

    if where not in ("all", "prompt", "response"):
        raise InputError(f"--where {where}: use one of all, prompt, response")
    if skip_first < 0 or spliced < 0:
        raise InputError(f"--skip-first {skip_first}, --spliced {spliced}: give 0 or more")
    if not store and model is not None:
        raise InputError(f"--model {model}: the source is no store, but a model already; give one of them")
    if conversations is None and (not store or model is not None):
        raise InputError("--conversations: give a JSONL file for the model to read")
    if alone:
        raise InputError("--stability: one SAE; give others to match its latents with, by --also")


def _names(given: list[str]) -> list[str]:
    """Short names that differ: the ends of paths where they do."""
    short = [name.rstrip("/").rpartition("/")[2] for name in given]
    return short if len(set(short)) == len(given) else [f"{at}: {name}" for at, name in enumerate(given)]


def _rows(
    store: str | None, model: Model | None, said: list[Conversation] | None, saes: list[SparseAutoencoder]
) -> Source:
    from probes.capture import capture
    from probes.store import ActivationStore
    from saes.fits import check_fits

    if model is not None:
        for sae in saes:
            check_fits(sae, model)
    if store is not None:
        return ActivationStore.open(store)
    assert model is not None and said is not None
    layers = sorted({sae.layer for sae in saes})
    return capture(model, said, layers=layers, site=saes[0].site, pool="tokens")


def _measured(
    saes: dict[str, SparseAutoencoder],
    rows: Source,
    chosen: dict[str, Any],
    cost: tuple[Model | None, list[Conversation], str, int, int],
    stability: bool,
    seed: int,
) -> Measured:
    from saes.chance import random_unexplained
    from saes.fidelity import quality
    from saes.splicing import spliced_loss
    from saes.stability import latent_stability

    model, said, where, skip_first, batch_size = cost
    qualities, chance = {}, {}
    scored: Any = "all" if where == "all" else "response"
    for name, sae in saes.items():
        found = quality(sae, rows, **chosen, seed=seed)
        chance[name] = random_unexplained(sae, rows, found, **chosen, seed=seed)
        if model is not None and said and where != "prompt":
            asked: dict[str, Any] = {"where": scored, "skip_first": skip_first, "batch_size": batch_size}
            found = found.with_loss(spliced_loss(sae, model, said, **asked, seed=seed))
        qualities[name] = found
    matched = {"where": chosen["where"], "keep": chosen["keep"], "seed": seed}
    return Measured(qualities, chance, latent_stability(saes, activations=rows, **matched) if stability else None)


def _write(out: Path, found: Measured) -> None:
    from probes.io import atomic_file, write_json
    from saes.fidelity import QualityTable

    told: dict[str, Any] = {
        name: quality.as_dict() | {"fvu_of_random_directions": found.chance[name].as_dict()}
        for name, quality in found.qualities.items()
    }
    table = QualityTable(found.qualities)
    figures = [table.figure(), table.density_figure()]
    if found.stability is not None:
        matched = found.stability.table.to_dict("records")
        told["stability"] = [{k: None if v != v else v for k, v in row.items()} for row in matched]
        figures.append(found.stability.figure())
    write_json(out / FIGURES, told)
    with atomic_file(out / "quality.parquet") as file:
        table.table.to_parquet(file, index=False)
    with atomic_file(out / "quality.html") as file:
        file.write_text(_page(found, figures), encoding="utf-8")


def _page(found: Measured, figures: list[Any]) -> str:
    """Tables and figures as one page that stands alone."""
    from html import escape

    from probes.theme import CONFIG

    parts = [f"<h2>{escape(name)}</h2>{quality._repr_html_()}" for name, quality in found.qualities.items()]
    parts += [
        figure.to_html(full_html=False, include_plotlyjs=not at, config=CONFIG) for at, figure in enumerate(figures)
    ]
    parts += [] if found.stability is None else [found.stability._repr_html_()]
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Quality of SAEs</title>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1"></head>'
    style = "font-family:system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;overflow-x:auto"
    return f'{head}<body style="{style}">{"".join(parts)}</body></html>\n'


def _show(found: Measured) -> None:
    """A row an SAE; under it how far latents come again."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    columns = ("SAE", "FVU", "95 %", "random", "L0", "dead", "dense", "size", "CE back")
    table = Table(*columns, box=None, pad_edge=False)
    for name, quality in found.qualities.items():
        rate, loss = quality.rates["fvu"], quality.loss
        limits = "" if rate.low != rate.low else f"{rate.low:.1%}-{rate.high:.1%}"
        recovered = "" if loss is None else f"{loss.recovered.value:.1%}"
        shares = (f"{quality.l0:.1f}", f"{quality.dead:.1%}", f"{quality.dense:.1%}")
        shrunk = f"{quality.rates['bias'].value:.2f}"
        table.add_row(name, f"{rate.value:.1%}", limits, f"{found.chance[name].value:.1%}", *shares, shrunk, recovered)
    console.print(table)
    first = next(iter(found.qualities.values()))
    console.print("FVU: variance unexplained; random: by random directions; size: of the reconstruction, 1 is unbiased")
    console.print(f"{first.n:,} rows of {first.conversations:,} conversations: {first.rows}", highlight=False)
    for row in [] if found.stability is None else found.stability.table.to_dict("records"):
        pair, share = f"{row['sae']} in {row['other']}", f"{row['one_to_one_0.7']:.0%} of {row['latents']:,} above 0.7"
        chance = f"random {row['random_one_to_one']:.2f}, covariance {row['covariance_one_to_one']:.2f}"
        line = f"{pair}: cosine {row['one_to_one']:.2f} one to one ({chance}); {share}"
        console.print(line, highlight=False, soft_wrap=True)
