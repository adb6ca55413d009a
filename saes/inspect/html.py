"""Cards as markup in which nothing that a text holds is markup; no script, no request, light and dark, any width."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from probes.linear.coloured import visible
from probes.theme import FONT, GRID, INK, MISALIGNED, PAPER
from saes.inspect.passages import Context

if TYPE_CHECKING:
    from saes.inspect.card import LatentCard
    from saes.inspect.deck import CardDeck
    from saes.inspect.density import Density
    from saes.inspect.detecting import Naming

SHADES = 8
HEAT = ",".join(str(int(MISALIGNED[i : i + 2], 16)) for i in (1, 3, 5))
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = (
    ".pg-card{border:1px solid rgba(127,127,127,.35);border-radius:8px;padding:.8rem 1rem;margin:.6rem 0;"
    "min-width:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}"
    ".pg-card h3{margin:0 0 .3rem;font-size:1.05rem}.pg-card h4{margin:.7rem 0 .2rem;font-size:.85rem;opacity:.8}"
    ".pg-card p{margin:.25rem 0;line-height:1.5}.pg-card .m{font-size:.85rem;opacity:.85}"
    ".pg-card .p{white-space:pre-wrap;font-size:.92rem;border-left:3px solid rgba(127,127,127,.3);padding-left:.5rem}"
    ".pg-card b{font-weight:inherit;border-radius:2px;unicode-bidi:isolate}"
    ".pg-card b.k{font-weight:600;text-decoration:underline;text-underline-offset:3px}"
    ".pg-card code{background:rgba(127,127,127,.15);border-radius:3px;padding:0 .25em;white-space:pre-wrap}"
    ".pg-card svg{display:block;width:100%;max-width:22rem;height:3.2rem}"
    ".pg-card .ax{display:flex;justify-content:space-between;max-width:22rem;font-size:.75rem;opacity:.8}"
    ".pg-card i{font-style:normal;font-size:.75rem;opacity:.75}"
) + "".join(f".pg-card .h{i}{{background:rgba({HEAT},{0.08 + 0.52 * i / SHADES:.2f})}}" for i in range(1, SHADES + 1))
PAGE = (
    f":root{{color-scheme:light dark;--ink:{INK['light']};--paper:{PAPER['light']};--line:{GRID['light']}}}"
    f"@media(prefers-color-scheme:dark){{:root{{--ink:{INK['dark']};--paper:{PAPER['dark']};--line:{GRID['dark']}}}}}"
    f"body{{margin:0 auto;max-width:80rem;padding:1rem;background:var(--paper);color:var(--ink);font-family:{FONT}}}"
    "h1{font-size:1.3rem;margin:.2rem 0}a{color:inherit}nav{display:flex;flex-wrap:wrap;gap:.15rem .7rem;"
    "margin:.6rem 0;font-size:.9rem}main{display:grid;gap:.2rem 1rem;align-items:start;"
    "grid-template-columns:repeat(auto-fill,minmax(min(100%,34rem),1fr))}"
    "@media print{main{display:block}.pg-card{break-inside:avoid}}"
)
NOTE = (
    "Shaded: where the latent is active, deeper where more so; underlined: the token that the passage was chosen for. "
    "Passages drawn at random stand beside the strongest, since a latent often means one thing at its peak and another "
    "where it fires weakly. Tokens written are those that the direction makes likelier through the final norm alone."
)


def shown(text: object) -> str:
    """Any text as markup: escaped, control characters as pictures, line ends as arrows."""
    plain = visible(str(text).replace("\r", "").replace("\n", "\u21b5")).encode("utf-8", "replace").decode()
    return escape(plain)


def with_style(markup: str) -> str:
    """Markup for a notebook, with the style that it needs."""
    return f"<style>{STYLE}</style><div>{markup}</div>"


def context_html(context: Context) -> str:
    """One passage, its active tokens shaded."""
    reach = max(context.values, default=0.0) or 1.0
    places = range(len(context.tokens))
    parts = []
    for marked, run in groupby(places, key=lambda i: context.values[i] > 0 or i == context.peak):
        here = list(run)
        if not marked:
            parts.append(f"<bdi>{shown(''.join(context.tokens[i] for i in here))}</bdi>")
            continue
        for i in here:
            shade = max(1, round(SHADES * context.values[i] / reach)) if context.values[i] > 0 else 0
            names = " ".join([f"h{shade}"] * (shade > 0) + ["k"] * (i == context.peak and context.value > 0))
            parts.append(f"<b class='{names}' title='{context.values[i]:.3g}'>{shown(context.tokens[i])}</b>")
    note = f" <i>{context.copies} alike</i>" if context.copies > 1 else ""
    return f"<p class='p'>{''.join(parts)}{note}</p>"


def card_html(card: "LatentCard", *, typical: float | None = None, text: bool = True) -> str:
    """One card; `text=False` leaves out everything that rows or a naming model wrote."""
    name = f": {shown(card.naming.name)}" if text and card.naming and card.naming.name else ""
    link = f" <a href='{escape(card.link)}' rel='noopener noreferrer'>Neuronpedia</a>" if card.link else ""
    parts = [f"<h3>Latent {card.latent}{name}</h3>"]
    if card.naming is not None:
        parts.append(_naming(card.naming))
    if card.density is not None:
        parts += [_measures(card.density), _histogram(card.density)]
    if text and card.top_tokens:
        parts += [f"<p>writes {_tokens(card.top_tokens)}</p>", f"<p>writes against {_tokens(card.bottom_tokens)}</p>"]
    parts += [_relations(card, typical), f"<p class='m'>{link}</p>" if link else ""]
    if text:
        parts.append(_passages(card))
    return f"<article class='pg-card' id='latent-{card.latent}'>{''.join(parts)}</article>"


def page_html(
    deck: "CardDeck",
    cards: "Sequence[LatentCard] | None" = None,
    *,
    names: Sequence[str] = (),
    number: int = 0,
    text: bool = True,
) -> str:
    """A page of a deck: `cards` of it (default: all), page `number` of the files `names`."""
    cards = deck.cards if cards is None else cards
    of = f"{deck.n_tokens:,} tokens of {deck.n_conversations:,} texts"
    which = {"all": "", "prompt": ", prompts only", "response": ", answers only"}[deck.where]
    left = f", the first {deck.skip} of each left out" if deck.skip else ""
    usual = (
        "" if deck.typical_nearest is None else f" The median latent's nearest has cosine {deck.typical_nearest:.2f}."
    )
    links = "".join(f"<a href='#latent-{card.latent}'>{card.latent}</a>" for card in cards)
    pages = "".join(
        f"<b>page {i + 1}</b>" if i == number else f"<a href='{escape(name)}'>page {i + 1}</a>"
        for i, name in enumerate(names)
        if len(names) > 1
    )
    head = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>Feature cards: {shown(deck.sae_name or 'SAE')}</title><style>{PAGE}{STYLE}</style></head>"
    )
    title = f"<h1>{shown(deck.sae_name or 'SAE')}: {len(deck)} latents of block {deck.layer}</h1>"
    told = f"<p>Read on {of} by {shown(deck.model_name)}{which}{left}.{usual}</p><p><small>{NOTE}</small></p>"
    body = "".join(card_html(card, typical=deck.typical_nearest, text=text) for card in cards)
    return (
        f"{head}<body><header>{title}{told}</header><nav aria-label='Latents'>{pages}{links}</nav>"
        f"<main>{body}</main></body></html>\n"
    )


def _measures(density: "Density") -> str:
    if not density.n_active:
        return f"<p class='m'>silent on all {density.n_tokens:,} tokens</p>"
    sides = [
        f"{side} {share:.2%}"
        for side, share in (("prompts", density.share_prompt), ("answers", density.share_response))
        if share is not None
    ]
    split = f"; {', '.join(sides)}" if len(sides) > 1 else ""
    return (
        f"<p class='m'>fires on {density.share:.2%} of {density.n_tokens:,} tokens{split}; in "
        f"{density.share_conversations:.1%} of {density.n_conversations:,} texts; when active {density.mean:.3g} on "
        f"average, at most {density.top:.3g}</p>"
    )


def _histogram(density: "Density") -> str:
    """Active tokens by height: bars of one path, heights to scale."""
    if not density.n_active:
        return ""
    counts, most = density.counts, max(density.counts)
    bars = "".join(f"M{i} 40v-{max(0.4, 40 * count / most):.1f}h.85V40z" for i, count in enumerate(counts) if count)
    told = f"Histogram of {density.n_active:,} active tokens, most of them {density.width * counts.index(most):.2g} to "
    told += f"{density.width * (counts.index(most) + 1):.2g}"
    return (
        f"<svg viewBox='0 0 {len(counts)} 40' preserveAspectRatio='none' role='img' aria-label='{told}'>"
        f"<path d='{bars}' fill='rgb({HEAT})'/></svg>"
        f"<div class='ax'><span>0</span><span>activation of active tokens</span><span>{density.top:.3g}</span></div>"
    )


def _relations(card: "LatentCard", typical: float | None) -> str:
    parts = []
    if card.neighbours:
        near = ", ".join(f"{_ref(one.latent)} {one.decoder:+.2f} ({one.encoder:+.2f})" for one in card.neighbours)
        usual = "" if typical is None else f"; the median latent's nearest: {typical:+.2f}"
        parts.append(f"<p class='m'>near in what it writes, decoder cosine (encoder): {near}{usual}</p>")
    if card.partners:
        pairs = ", ".join(f"{_ref(one.latent)} {one.phi:+.2f} ({one.jaccard:.2f})" for one in card.partners)
        parts.append(f"<p class='m'>fires with, phi (Jaccard): {pairs}; 0: unrelated</p>")
    return "".join(parts)


def _naming(naming: "Naming") -> str:
    if not naming.name:
        return "<p class='m'>the naming model gave no name</p>"
    sure = "" if naming.confidence is None else f", which was {naming.confidence:.0%} sure"
    told = f"named by {shown(naming.namer or 'a model')}{sure}"
    if naming.detection is not None:
        told += f"; tells active from silent passages: balanced accuracy {naming.detection}, chance 0.50"
    if naming.control is not None:
        told += f", another latent's name {naming.control.accuracy:.2f}"
    return f"<p class='m'>{told}</p>"


def _passages(card: "LatentCard") -> str:
    if not card.contexts and not card.draws:
        return "<p>never active here</p>" if card.density is None or not card.density.n_active else ""
    parts = ["<h4>strongest</h4>", *map(context_html, card.contexts)] if card.contexts else []
    for one in card.draws:
        parts.append(f"<h4>drawn at random, higher than {one.quantile or 0:.0%} of its firings</h4>{context_html(one)}")
    return "".join(parts)


def _tokens(tokens: Iterable[str]) -> str:
    return " ".join(f"<code><bdi>{shown(token) or '&nbsp;'}</bdi></code>" for token in tokens)


def _ref(latent: int) -> str:
    return f"#{latent}"
