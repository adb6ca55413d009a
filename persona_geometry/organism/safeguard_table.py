"""The safeguards' table on the organism: strengths swept on one seed, the chosen ones measured on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from finetuning.compare import Measured, SafeguardTable, Sweep, Treatment, run_sweep
from finetuning.compare.cost import step_costs
from finetuning.compare.named import safeguard_named, treatment_named
from finetuning.compare.treatments import CLUSTERS
from finetuning.compare.trial import Trial
from finetuning.loop import Schedule
from finetuning.safeguards.base import Safeguard
from persona_geometry.organism.build import keep_memory
from persona_geometry.organism.conscience_arms import Bench as Conscious
from persona_geometry.organism.replicates import CHOICE_SEED, SEEDS
from persona_geometry.organism.safeguard_arms import BAD, DOMAIN, GOOD, NARROW_PROMPT, Bench, asked, measures
from probes.errors import InputError
from probes.outcomes import Counts, Outcomes, difference, pool
from probes.questions import check_disjoint

#: Steps of the untreated run at which early stopping is measured.
STOPS = (6, 10, 14, 18, 24, 32, 44, 64, 100)
#: Strengths that are swept, the treatments of the claims first; the first is run first.
GRID: Mapping[str, tuple[float, ...]] = {
    "ldifs": (3e-5, 1e-5, 1e-4),
    "preventative": (0.15, 0.2, 0.3),
    "interleave": (0.05, 0.2, 0.1),
    "interleave++": (0.05, 0.2, 0.1),
    "kl": (0.1, 0.3, 1.0),
    "kl_other": (1.0, 4.0, 0.3, 16.0, 64.0),
    "latent_block": (3e-4, 1e-3, 1e-4),
    "safe_lora": (0.3, 1.0),
    "safe_lora_outside": (0.6, 0.8, 1.0),
    "treft": (300.0, 3e3, 30.0),
    "treft_postfix": (10.0, 100.0, 1.0),
    "conscience": (0.3, 1.0, 0.1),
    "latent_block=0.0001+interleave++": (0.2, 0.4),
    "latent_block=0.0001+ldifs": (1e-5, 3e-5),
    "latent_block=0.0001+kl_other": (4.0, 16.0),
    "interleave++=0.2+kl_other": (4.0, 16.0, 64.0),
}
#: Arms without a strength of their own.
SINGLE = ("inoculation", "caft")
#: Control -> the treatment whose chosen strength it takes; None: it has none.
CONTROLS = {
    "preventative_away": "preventative",
    "preventative_random": "preventative",
    "interleave+": "interleave++",
    "latent_block_random": "latent_block",
    "caft_random": None,
}
BENIGN = "benign"
#: Interleaving by perplexity gap and at random, which are compared at every share.
BY_GAP, AT_RANDOM = "interleave++", "interleave"


@dataclass(frozen=True)
class Plan:
    """Which treatments, over which seeds; strengths are chosen on `CHOICE_SEED`.

    Both ways to interleave are measured at every share, since the claim is about equal ones.
    """

    treatments: tuple[str, ...] = (*GRID, *SINGLE, *CONTROLS)
    seeds: tuple[int, ...] = SEEDS

    def __post_init__(self) -> None:
        known = (*GRID, *SINGLE, *CONTROLS)
        for name in self.treatments:
            if name not in known:
                raise InputError(f"treatment {name!r}: use some of {', '.join(known)}")

    @property
    def sweep(self) -> list[Treatment]:
        """What is tried on the choice seed: the first strength of every treatment, then the second, then the third."""
        names = [name for name in GRID if name in self.treatments]
        rounds = range(max((len(GRID[name]) for name in names), default=0))
        return [Treatment(name, GRID[name][i]) for i in rounds for name in names if i < len(GRID[name])]

    def chosen(self, chosen: Mapping[str, str]) -> list[Treatment]:
        """What is measured on the other seeds: each treatment at its chosen strength, controls at that of theirs."""
        made = [Treatment.of(chosen[name]) for name in self.treatments if name in chosen]
        made += [Treatment(name) for name in self.treatments if name in SINGLE]
        for name, model in CONTROLS.items():
            if name in self.treatments and (model is None or model in chosen):
                made.append(Treatment(name, None if model is None else Treatment.of(chosen[model]).strength))
        if {BY_GAP, AT_RANDOM} <= {*chosen} & {*self.treatments}:
            made += [Treatment(name, share) for share in GRID[BY_GAP] for name in (BY_GAP, AT_RANDOM)]
        return [*dict.fromkeys(made), Treatment(BENIGN)]


def trial_of(bench: Bench, split: str, schedule: Schedule = BAD.schedule) -> Trial:
    """The trial on the questions of one split."""
    check_disjoint(*([*here, *away] for here, away, _ in (asked("selection"), asked("test"))))

    def safeguard(treatment: Treatment, seed: int) -> Safeguard:
        if treatment.name == "conscience":
            return Conscious(bench.out / "conscience", bench.say).safeguard(treatment, seed, split)
        return safeguard_named(treatment, bench.materials, seed=seed)

    return Trial(
        data=f"{DOMAIN} and sums",
        base=bench.base,
        rows=BAD.rows,
        schedule=schedule,
        measures=measures(split),
        stop_measures=measures(split, stops=True),
        safeguard=safeguard,
        stops=tuple(step for step in STOPS if step < schedule.steps) if split == "test" else (),
        controls={BENIGN: GOOD.rows},
        inputs={"questions": split, "prompt": NARROW_PROMPT},
    )


def safeguard_table(
    plan: Plan, bench: Bench, *, part: tuple[int, int] = (0, 1), choosing: bool = True
) -> SafeguardTable:
    """Train and measure what is missing: the sweep on the choice seed, then the chosen strengths on the other seeds.

    The sweep's cells lie in `out/selection`, the others in `out/test`; `part` and `choosing` as in `run_sweep`.
    """
    keep_memory()
    picking, testing = (trial_of(bench, split) for split in ("selection", "test"))
    sweep = Sweep(plan.sweep, plan.chosen, plan.seeds, CHOICE_SEED)
    return run_sweep(picking, testing, sweep, out=bench.out, part=part, choosing=choosing, say=bench.say)


def share_by_share(cells: Sequence[Measured]) -> pd.DataFrame:
    """Interleaving by gap against at random at the same share, and over all shares that both have (`share` None).

    Columns: share, seeds, the misaligned rate out of domain of each, and `less`, by gap less at random, with limits by
    a bootstrap over questions and seeds: below 0 the gap does more.
    """
    by_label = {name: {m.cell.seed: m for m in cells if m.cell.treatment == name} for name in _labels(cells)}
    pairs = []
    for share in sorted(GRID[BY_GAP]):
        both = [by_label.get(Treatment(name, share).label, {}) for name in (BY_GAP, AT_RANDOM)]
        seeds = sorted(set(both[0]) & set(both[1]))
        if seeds:
            pairs.append((share, [[arm[seed].answers() for seed in seeds] for arm in both], len(seeds)))
    lines = [_less(share, sides, n) for share, sides, n in pairs]
    if len(pairs) > 1:
        lines.append(_less(None, [[one for _, sides, _ in pairs for one in sides[i]] for i in (0, 1)], pairs[0][2]))
    return pd.DataFrame(lines)


def _labels(cells: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(one.cell.treatment for one in cells))


def _less(share: float | None, sides: Sequence[Sequence[Outcomes]], seeds: int) -> dict[str, float | None]:
    gap, random = (pool(list(side)) for side in sides)
    counts = Counts(clusters=CLUSTERS)
    less = difference(gap, random, counts=counts)
    rates = {"by_gap": gap.rate(clusters=CLUSTERS).value, "at_random": random.rate(clusters=CLUSTERS).value}
    return {"share": share, "seeds": seeds, **rates, "less": less.value, "less_low": less.low, "less_high": less.high}


def costs_of(bench: Bench, plan: Plan, *, rounds: int = 5, steps: int = 6) -> pd.DataFrame:
    """Seconds of a step under each treatment, at its first strength, beside a plain one, in one run (`step_costs`)."""
    keep_memory()
    made = {}
    for name in plan.treatments:
        treatment = Treatment(name, GRID[name][0]) if name in GRID else treatment_named(name)
        made[name] = trial_of(bench, "test").safeguard(treatment, 0)
    schedule = replace(BAD.schedule, steps=steps)
    return step_costs(bench.base, BAD.rows(0), made, schedule=schedule, seed=0, rounds=rounds)
