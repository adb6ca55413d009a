"""The SAE claims, each beside what was found: every cell, as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_geometry.organism.build import keep_memory
from persona_geometry.organism.claims import found
from persona_geometry.organism.claims.bench import SHIPPED, Bench, Plan
from persona_geometry.organism.shipped import WEIGHTS
from probes.io import write_json

#: Bounds: variance unexplained, share of the cross-entropy recovered, the benign share, the correlation.
FVU, RECOVERED, BENIGN, R = 0.05, 0.97, 0.1, 0.9


@dataclass(frozen=True)
class Claims:
    """Every figure (`data`, plain JSON) and the tables as text."""

    data: Mapping[str, Any]
    text: str


def sae_claims(base: Path, tunes: Path, out: Path, say: Callable[[str], None], *, plan: Plan | None = None) -> Claims:
    """Make or read every cell, write `saes.json` into `out`, return the tables.

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
    data["verdicts"] = verdicts(data)
    write_json(out / "saes.json", data)
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
    place = {
        reference: next((row["rank"] for row in rows if row["latent"] in causal), None)
        for reference, rows in delta.items()
    }
    head = {"sae": sae, "domain": domain, "seed": seed, "rates": rates}
    return head | {"diff": ranks, "delta": delta, "delta_rank": place}


def verdicts(data: Mapping[str, Any]) -> dict[str, list[int]]:
    """How many cells meet each claim, and of how many."""
    quality, cells = data["quality"], data["cells"]
    trained = [q for name, q in quality.items() if name != SHIPPED]
    ranks = [c["diff"]["rank"] for c in cells]
    leading = [next(t for t in c["diff"]["tried"] if t["rank"] == (c["diff"]["rank"] or 1)) for c in cells]
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
        "it repairs": _count(t["repair"]["counts"] for t in leading),
        "switching it off alone repairs": _count(t["repair"]["off"]["counts"] for t in leading),
        "it induces": _count(t["induce"]["counts"] for t in leading),
        "it moves by less than a tenth under the benign fine-tune": _count(t["benign"] < BENIGN for t in leading),
        **{
            f"among the first three of the delta-attribution ({reference} reference)": _count(
                (rank := c["delta_rank"][reference]) is not None and rank <= found.FIRST for c in cells
            )
            for reference in found.REFERENCES
        },
        **{
            f"first order against ablation r >= .9 ({reference} reference, strongest by {by})": _count(
                o[reference][by]["pearson"] >= R for o in data["first_order"]
            )
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
    head = "| SAE | domain | seed | rank, latent | repair: step, cut, coherence kept, random limit | off: cut |"
    lines = [head + " induction: rise, random limit | benign | delta rank (zero, mean) |", "|---" * 9 + "|"]
    for c in cells:
        for t in c["diff"]["tried"]:
            off, best, up = t["repair"]["off"], t["repair"]["best"], t["induce"]["best"]
            done = _effect(best, step=True) if best else "none"
            rise = _effect(up, step=True) if up else "none"
            at = ", ".join(str(c["delta_rank"][r] or "> 10") for r in found.REFERENCES)
            lines.append(
                f"| {c['sae']} | {c['domain']} | {c['seed']} | {t['rank']}, {t['latent']} | {done} | "
                f"{off['effect']['value']:.2f} | {rise} | {t['benign']:.3f} | {at} |"
            )
    return "\n".join(lines)


def _effect(found: Mapping[str, Any], *, step: bool) -> str:
    mark = "" if found["counts"] else " (does not count)"
    shown = [str(found["step"])] if step else []
    shown += [_rate(found["effect"]), f"{found['coherence_kept']:.2f}"]
    shown += ["-" if found["random_limit"] is None else f"{found['random_limit']:.2f}"]
    return "; ".join(shown) + mark


def _order_text(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| SAE | domain | reference | strongest by | Pearson | Spearman |", "|---|---|---|---|---|---|"]
    for row in rows:
        for reference in found.REFERENCES:
            for by in ("activation", "attribution"):
                r = row[reference][by]
                place = f"| {row['sae']} | {row['domain']} | {reference} | {by} "
                lines.append(f"{place}| {r['pearson']:.3f} | {r['spearman']:.3f} |")
    return "\n".join(lines)
