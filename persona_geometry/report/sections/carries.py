"""What carries it? The latents that rose and fell, which of them are causal, and a card for each."""

from __future__ import annotations

from typing import Any

import pandas as pd

from persona_geometry.report.figures.latents import causal_figure
from persona_geometry.report.html import Html, data_table, el, join, shaded
from persona_geometry.report.plots import plot
from persona_geometry.report.tables import Table
from persona_geometry.report.view import LeftOut, View
from persona_geometry.report.wording import ABSENT, known, listing, number, percent, plain, points, span
from saes.figures import latent_diff_figure

SHOWN = 8
LISTED = 40
CARDS = 12


def _figure(value: Any, digits: int = 3) -> str:
    return number(float(value), digits) if known(value) or (isinstance(value, float) and pd.notna(value)) else ABSENT


def diff(view: View) -> Html:
    """The latent diff."""
    table = view.table("latents", "latent", "delta_mean")
    ranked = table.sort_values("delta_mean", ascending=False)
    listed: Table = ranked if len(ranked) <= LISTED else pd.concat([ranked.head(LISTED // 2), ranked.tail(LISTED // 2)])
    words = {
        "delta_mean": "change of mean",
        "delta_freq": "change of frequency",
        "base_freq": "frequency, base",
        "tuned_freq": "frequency, tuned",
        "benign_delta": "benign control",
        "narrow_delta": "narrow twin",
        "over_controls": "beyond the controls",
        "q": "q",
        "attribution": "attribution",
    }
    numbers: dict[str, list[object]] = {"latent": [int(n) for n in listed["latent"]]}
    numbers |= {word: [number(float(v)) for v in listed[key]] for key, word in words.items() if key in listed}
    caption = f"The {len(listed)} latents that changed most, of {len(table):,}"
    ends: Table = pd.concat([ranked.head(3), ranked.tail(3)])
    alt = "; ".join(f"latent {int(r.latent)} {number(float(r.delta_mean))}" for r in ends.itertuples())
    return plot(
        "latent-diff",
        latent_diff_figure(table, n=SHOWN),
        alt=alt,
        table=data_table(numbers, caption=caption, numeric=list(numbers)),
        note=" ".join(filter(None, (_sae(view), _read(view, ranked)))) or None,
    )


def _read(view: View, ranked: Table) -> str:
    """What the columns mean, whether a second method names the same latents, and where the SAE is in doubt."""
    parts = []
    if "q" in ranked:
        called, tested = int((ranked["q"] <= 0.05).sum()), int(ranked["q"].notna().sum())
        parts.append(f"{called:,} of {tested:,} latents that fired changed (q of at most 0.05, over conversations).")
    if "attribution_rank" in ranked and ranked["attribution_rank"].notna().any():
        both = int((ranked.head(SHOWN)["attribution_rank"] <= SHOWN).sum())
        parts.append(
            "Attribution asks by gradient which latents make the fine-tuned model write its own answers rather than "
            "the base's (nats per answer token): "
            f"{both} of the {SHOWN} latents that rose most are among its first {SHOWN}."
        )
    warned = view.value("sae", {}).get("misfit")
    return " ".join([*parts, f"Take care: {warned}."] if warned else parts)


def _sae(view: View) -> str | None:
    sae = view.value("sae", {})
    parts = [str(sae["name"])] if sae.get("name") else []
    parts += [f"block {sae['layer']}"] if sae.get("layer") is not None else []
    parts += [f"{sae['d_sae']:,} latents"] if sae.get("d_sae") else []
    parts += [f"{number(sae['l0'])} active a token"] if known(sae.get("l0")) else []
    parts += [f"{percent(sae['fvu'])} of the variance unexplained"] if known(sae.get("fvu")) else []
    if known(sae.get("ce_recovered")):
        parts.append(f"{percent(sae['ce_recovered'])} of the cross-entropy recovered against mean ablation")
    return f"Sparse autoencoder: {', '.join(parts)}." if parts else None


def _clamped(view: View) -> str:
    """What the chosen latents do together, beside random ones, on test questions."""
    together, cut = view.value("clamped", {}), view.value("cut.latents", {})
    if not (together.get("latents") and known(cut.get("value"))):
        return ""
    which = listing([str(latent) for latent in together["latents"]])
    return (
        f" Together, on test questions: latents {which}, clamped to {plain(together.get('clamp', 0))} times their "
        f"mean, remove {percent(cut['value'])} of the excess ({span(cut.get('low'), cut.get('high'))})."
    )


def causal(view: View) -> Html:
    """Both signs: what taking a latent out repairs, what putting it in induces."""
    features = [f for f in view.need("features", "features") if known(f.get("induce")) or known(f.get("repair"))][
        :CARDS
    ]
    if not features:
        raise LeftOut("features", "no latent was tried in either sign")
    numbers = {
        "latent": [f["latent"] for f in features],
        "change of mean": [_figure(f.get("delta")) for f in features],
        "excess removed when taken out": [percent(f.get("repair")) for f in features],
        "added when put in": [points(f.get("induce")) for f in features],
    }
    alt = "; ".join(
        f"latent {f['latent']}: taken out {percent(f.get('repair'))} of the excess, put in {points(f.get('induce'))}"
        for f in features
    )
    note = (
        "A latent is edited by adding its change to the residual stream. "
        "Removing it can work where adding it does not: both are shown, on selection questions."
    )
    note += _clamped(view)
    return plot(
        "causal",
        causal_figure(features),
        alt=alt,
        table=data_table(numbers, caption="By latent edited", numeric=list(numbers)),
        note=note,
    )


def _context(view: View, context: Any) -> Html:
    """A context as plain text, or token by token under the latent's own strength."""
    if not isinstance(context, dict) or view.no_text:
        return view.text(context, 160)
    tokens, values = list(context.get("tokens") or []), list(context.get("values") or [])
    if len(tokens) != len(values):
        return view.text("".join(map(str, tokens)), 160)
    reach = max([abs(value) for value in values if known(value)], default=0.0) or 1.0
    return el(
        "span", [shaded(token, value, reach) for token, value in zip(tokens, values, strict=True)], class_="colored"
    )


def _measures(feature: dict[str, Any]) -> str:
    delta = feature.get("delta")
    parts = [f"change in mean {'+' if delta > 0 else ''}{_figure(delta)}"] if known(delta) else []
    parts += [f"taken out: {percent(feature['repair'])} of the excess goes"] if known(feature.get("repair")) else []
    parts += [f"put in: {points(feature['induce'])}"] if known(feature.get("induce")) else []
    return " \u00b7 ".join(parts)


def _card(view: View, feature: dict[str, Any]) -> Html:
    card = feature.get("card") or {}
    tokens, contexts = list(card.get("top_tokens") or []), list(card.get("contexts") or [])
    if view.no_text:
        tokens, contexts = [], []
    shown = [join(el("bdi", str(token).strip() or "\u2423", class_="token"), " ") for token in tokens[:10]]
    found = [el("li", _context(view, context)) for context in contexts[:4]]
    head, measures = el("h4", f"Latent {feature.get('latent')}"), el("p", _measures(feature), class_="measures")
    return el(
        "li", head, measures, el("div", shown) if shown else None, el("ul", found) if found else None, class_="card"
    )


def cards(view: View) -> Html:
    """What each latent seems to be about: the tokens it raises and where it fires most."""
    features = [f for f in view.need("features", "features") if f.get("card")][:CARDS]
    if not features:
        raise LeftOut("features", "no latent was looked at closely")
    note = "The tokens that each latent raises most, and the contexts in which it fires most."
    if view.no_text:
        note = "Their tokens and contexts are hidden in this copy."
    return el(
        "div",
        el("h3", "The latents, one by one"),
        el("p", note, class_="note"),
        el("ul", [_card(view, f) for f in features], class_="cards latents"),
        class_="block",
    )


PARTS = (diff, causal, cards)
