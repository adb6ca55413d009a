"""The SAE claims, each beside what was found: every cell, as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from persona_geometry.organism.build import keep_memory
from persona_geometry.organism.claims import found
from persona_geometry.organism.claims.bench import SHIPPED, Bench, Plan
from persona_geometry.organism.claims.figure import claims_figure, leading
from persona_geometry.organism.shipped import WEIGHTS
from probes.io import atomic_file, write_json
from probes.theme import CONFIG

#: Bounds: variance unexplained, share of the cross-entropy recovered, the benign share, the correlation.
FVU, RECOVERED, BENIGN, R = 0.05, 0.97, 0.1, 0.9


@dataclass(frozen=True)
class Claims:
    """Every figure (`data`, plain JSON) and the tables as text."""

    data: Mapping[str, Any]
    text: str


def sae_claims(base: Path, tunes: Path, out: Path, say: Callable[[str], None], *, plan: Plan | None = None) -> Claims:
    """Make or read every cell, write `saes.json` and `saes.html` into `out`, return the tables.

    `base` is a base's folder and `tunes` that of its fine-tunes (those of `organism card` are read; missing ones are
    trained, a minute each). Without `plan`: everything, about an hour on one core.
    """
    keep_memory()
    bench = Bench(base, tunes, out, plan or Plan(), say)
    bench.train()
    names = [*bench.plan.sae_seeds]
    data: dict[str, Any] = {"plan": bench.plan.key(), "shipped_base": base == WEIGHTS / "base"}
    data["quality"] = {str(name): found.qualities(bench, name) for name in [*names, SHIPPED]}
    data["cells"] = [
        cell(bench, name, domain, arm, seed)
        for seed in bench.plan.tune_seeds
        for name in names
        for domain, arm in bench.plan.arms.items()
    ]
    data["first_order"] = [
        {"sae": name, "domain": domain} | found.first_order(bench, name, arm, bench.plan.tune_seeds[0])
        for domain, arm in bench.plan.arms.items()
        for name in names
    ]
    leaders = {str(n): sorted({int(leading(c)["latent"]) for c in data["cells"] if c["sae"] == n}) for n in names}
    data["stability"] = found.stable(bench, leaders)
    data["verdicts"] = verdicts(data)
    write_json(out / "saes.json", data)
    with atomic_file(out / "saes.html") as file:
        claims_figure(data).write_html(file, config=CONFIG, include_plotlyjs=True)
    return Claims(data, text_of(data))


def cell(bench: Bench, sae: int | str, domain: str, arm: str, seed: int) -> dict[str, Any]:
    """Everything about one SAE and one fine-tune."""
    ranks = found.causal_ranks(bench, sae, arm, seed)
    delta = found.delta(bench, sae, arm, seed)
    rates = {
        name: {kind: bench.untreated(*which).rate(kind).as_dict() for kind in ("misaligned", "coherent")}
        for name, which in {"base": ("base", 0), "tuned": (arm, seed)}.items()
    }
    causal = {t["latent"] for t in ranks["tried"] if t["repair"]["counts"] or t["induce"]["counts"]}
    place = next((row["rank"] for row in delta if row["latent"] in causal), None)
    first = found.attributed(bench, sae, arm, seed)
    head = {"sae": sae, "domain": domain, "seed": seed, "rates": rates}
    return head | {"diff": ranks, "delta": delta, "delta_rank": place, "delta_first": first}


def verdicts(data: Mapping[str, Any]) -> dict[str, list[int]]:
    """How many cells meet each claim, and of how many."""
    quality, cells = data["quality"], data["cells"]
    trained = [q for name, q in quality.items() if name != SHIPPED]
    ranks = [c["diff"]["rank"] for c in cells]
    leaders = [leading(c) for c in cells]
    return {
        "FVU <= .05 on fresh answers": _count(q["fresh"]["response"]["fvu"]["value"] <= FVU for q in trained),
        "cross-entropy recovered >= 97 % on fresh answers": _count(
            q["fresh"]["recovered"]["value"] >= RECOVERED for q in trained
        ),
        "FVU <= .05 in domains never read": _count(q["test"]["response"]["fvu"]["value"] <= FVU for q in trained),
        "cross-entropy recovered >= 97 % in domains never read": _count(
            q["test"]["recovered"]["value"] >= RECOVERED for q in trained
        ),
        "a causal latent leads the diff": _count(rank == 1 for rank in ranks),
        "a causal latent among the first three": _count(rank is not None and rank <= found.FIRST for rank in ranks),
        "it repairs": _count(t["repair"]["counts"] for t in leaders),
        "switching it off alone repairs": _count(t["repair"]["off"]["enough"] for t in leaders),
        "it induces": _count(t["induce"]["counts"] for t in leaders),
        "it moves by less than a tenth under the benign fine-tune": _count(t["benign"] < BENIGN for t in leaders),
        "it is among the first three of the delta-attribution": _count(
            c["delta_rank"] is not None and c["delta_rank"] <= found.FIRST for c in cells
        ),
        "a causal latent is among the first three of the delta-attribution": _count(
            c["delta_first"]["counts"] or (c["delta_rank"] is not None and c["delta_rank"] <= found.FIRST)
            for c in cells
        ),
        "the first of the delta-attribution repairs when switched off": _count(
            c["delta_first"]["counts"] for c in cells
        ),
        **{
            f"first order against ablation r >= .9 ({what}, {reference} reference, strongest by {by})": _count(
                o[what][reference][by]["pearson"] >= R for o in data["first_order"]
            )
            for what in ("own", "contrast")
            for reference in found.REFERENCES
            for by in ("activation", "attribution")
        },
    }


def _count(holds: Any) -> list[int]:
    found = [bool(h) for h in holds]
    return [sum(found), len(found)]


def text_of(data: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    parts = [_quality_text(data["quality"]), _cells_text(data["cells"]), _order_text(data["first_order"])]
    parts += [_stability_text(data["stability"])] if data["stability"]["table"] else []
    lines = ["| claim | cells |", "|---|---|"]
    lines += [f"| {name} | {held} of {n} |" for name, (held, n) in data["verdicts"].items()]
    return "\n\n".join([*parts, "\n".join(lines)])


def _quality_text(quality: Mapping[str, Any]) -> str:
    lines = [
        "| SAE | answers | FVU, response | FVU, all tokens | L0 | cross-entropy recovered |",
        "|---|---|---|---|---|---|",
    ]
    for name, kinds in quality.items():
        for kind, q in kinds.items():
            fvu, every, kept = (_rate(x) for x in (q["response"]["fvu"], q["all"]["fvu"], q["recovered"]))
            lines.append(f"| {name} | {kind} | {fvu} | {every} | {q['response']['l0']:.1f} | {kept} |")
    return "\n".join(lines)


def _rate(rate: Mapping[str, Any]) -> str:
    limits = [rate["low"], rate["high"]]
    return f"{rate['value']:.3f}" + ("" if None in limits else f" [{limits[0]:.3f}, {limits[1]:.3f}]")


def _cells_text(cells: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "| SAE | domain | seed | rank, latent | repair: step; cut; coherence kept; random limit | switched off: cut |"
    )
    more = " induction: step; rise; coherence kept; random limit | benign | rank by delta-attribution |"
    lines = [head + more + " its first, switched off |", "|---" * 10 + "|"]
    for c in cells:
        last = f"{c['delta_rank'] or f'> {found.KEPT}'} | {c['delta_first']['latent']}: {_effect(c['delta_first'])} |"
        for t in c["diff"]["tried"]:
            done, rise = (_effect(t[half]["best"]) for half in ("repair", "induce"))
            off = _rate(t["repair"]["off"]["effect"])
            place = f"| {c['sae']} | {c['domain']} | {c['seed']} | {t['rank']}, {t['latent']} "
            lines.append(f"{place}| {done} | {off} | {rise} | {t['benign']:.3f} | {last}")
    return "\n".join(lines)


def _effect(best: Mapping[str, Any] | None) -> str:
    if best is None:
        return "no step keeps its coherence"
    limit = "-" if best["random_limit"] is None else f"{best['random_limit']:.2f}"
    mark = "" if best["counts"] else " (does not count)"
    return f"{best['step']}; {_rate(best['effect'])}; {best['coherence_kept']:.2f}; {limit}{mark}"


def _order_text(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| SAE | domain | loss of | reference | strongest by | Pearson | Spearman |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, what, reference in product(rows, ("own", "contrast"), found.REFERENCES):
        for by in ("activation", "attribution"):
            r = row[what][reference][by]
            place = f"| {row['sae']} | {row['domain']} | {what} | {reference} | {by} "
            lines.append(f"{place}| {r['pearson']:.3f} | {r['spearman']:.3f} |")
    return "\n".join(lines)


def _stability_text(stability: Mapping[str, Any]) -> str:
    lines = [
        "| SAE | other | mean cosine one to one | random | share at .7 or more | at .9 or more |",
        "|---" * 6 + "|",
    ]
    for row in stability["table"]:
        figures = (row[name] for name in ("one_to_one", "random_one_to_one", "one_to_one_0.7", "one_to_one_0.9"))
        lines.append(f"| {row['sae']} | {row['other']} | " + " | ".join(f"{x:.3f}" for x in figures) + " |")
    lines += ["", "| SAE, leading latent | nearest in SAE | latent | cosine |", "|---|---|---|---|"]
    for row in stability["latents"]:
        lines.append(f"| {row['sae']}, {row['latent']} | {row['other']} | {row['nearest']} | {row['cosine']:.3f} |")
    return "\n".join(lines)
