"""Doses: strength of an operator against misalignment, coherence and capability, with random controls; choosing one."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from geometry.steering.arms import Arm, as_operators, ask_many
from geometry.steering.vectors import Number
from probes.errors import InputError
from probes.hooks import Operator
from probes.judges import Judge
from probes.models import Model
from probes.outcomes import Counts, Outcomes
from probes.questions import Question

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLUMNS = ("strength", "kind", "on", "misaligned", "low", "high", "coherent", "n", "n_controls", "chosen")
PER_CONTROL = ("strength", "kind", "on", "control", "misaligned", "coherent", "n")
Goal = Literal["repair", "induce"]
Capability = Callable[[Model, Sequence[Operator]], float]


@dataclass(frozen=True)
class Controls:
    """Random controls of one kind: `make(strength)` gives the operators to run beside the treatment of that strength.

    `kind` is "random_norm", "random_covariance", "random_latent", or a name of your own. `strengths` and `questions`
    narrow the treatment's (None: the same); twenty controls over sixty questions each is the custom here.
    """

    kind: str
    make: Callable[[float], Sequence[Arm]]
    strengths: Sequence[Number] | None = None
    questions: Sequence[Question] | None = None


class Dose(NamedTuple):
    """One point of a dose curve: the strength and the rates it leads to."""

    strength: float
    misaligned: float
    coherent: float
    n: int


@dataclass(frozen=True)
class DoseCurve:
    """What each strength does.

    `table` has one row per strength and kind. For the kind "vector": the rate of misaligned among coherent answers with
    its 95 % interval (bootstrap over questions). For random kinds: the mean over the controls, with the 5 % and 95 %
    quantiles of the controls as `low` and `high`; `n` counts coherent answers. `per_control` holds every single
    control, `outcomes` the answers under the treatment by strength, `control_outcomes` those of every control by kind
    and strength. Columns behind `COLUMNS` are capabilities (`dose_response`); for random kinds, means over the
    controls.
    """

    table: pd.DataFrame
    per_control: pd.DataFrame
    outcomes: Mapping[float, Outcomes] = field(default_factory=dict, repr=False)
    control_outcomes: Mapping[tuple[str, float], Sequence[Outcomes]] = field(default_factory=dict, repr=False)

    def best(self, coherence_budget: Number, *, goal: Goal = "repair") -> Dose:
        """The strength with the lowest ("repair") or highest ("induce") misaligned rate among the coherent enough.

        `coherence_budget` is the least share of coherent answers that will do. Among equals the smallest strength wins.
        Raises InputError where no strength keeps that much coherence.
        """
        if goal not in ("repair", "induce"):
            raise InputError(f"goal {goal!r}: use 'repair' or 'induce'")
        rows = self.table.query("kind == 'vector' and misaligned.notna()").to_dict("records")
        doses = [Dose(row["strength"], row["misaligned"], row["coherent"], row["n"]) for row in rows]
        fit = [dose for dose in doses if dose.coherent >= coherence_budget]
        if not fit:
            most = max((dose.coherent for dose in doses), default=0.0)
            raise InputError(f"no strength keeps {coherence_budget:.0%} coherent (most: {most:.0%}): try weaker ones")
        sign = 1 if goal == "repair" else -1
        return min(fit, key=lambda dose: (sign * dose.misaligned, abs(dose.strength)))

    def choose(self, strength: Number) -> "DoseCurve":
        """The same curve with one strength marked as chosen."""
        if strength not in set(self.table["strength"]):
            raise InputError(
                f"strength {strength} is not on this curve: use one of {sorted(set(self.table['strength']))}"
            )
        marked = (self.table["strength"] == strength) & (self.table["kind"] == "vector")
        return replace(self, table=self.table.assign(chosen=marked))

    def join(self, other: "DoseCurve") -> "DoseCurve":
        """Both curves in one table, for instance repair on the tuned and induction on the base model."""
        tables = [
            pd.concat([getattr(c, name) for c in (self, other)], ignore_index=True) for name in ("table", "per_control")
        ]
        return DoseCurve(tables[0], tables[1])

    def figure(self, *, coherence_budget: Number | None = None, trait: str = "misaligned") -> "go.Figure":
        """Misaligned and coherent share, and capabilities, against strength, with the random band behind.

        `trait` is the word for "misaligned" where the judge's "aligned" means the absence of something else.
        """
        from geometry.steering.figures import dose_figure

        known = {"capabilities": self.capabilities, "trait": trait}
        return dose_figure(self.table, coherence_budget=coherence_budget, **known)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The columns of the table that hold capabilities."""
        return tuple(name for name in self.table.columns if name not in COLUMNS)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format=lambda value: f"{value:.3f}", border=0, escape=True)


def dose_response(
    model: Model,
    make_operator: Callable[[float], Arm],
    strengths: Sequence[Number],
    questions: Sequence[Question],
    judge: Judge,
    *,
    seed: int,
    n_samples: int = 1,
    controls: Sequence[Controls] = (),
    on: str = "tuned",
    capability: Mapping[str, Capability] | None = None,
    **settings: Any,
) -> DoseCurve:
    """Ask `questions` under `make_operator(strength)` for every strength, and under the random controls, in shared
    batches.

    `on` names the model's part in the study ("tuned": repair, "base": induction) and goes into the table. Choose the
    dose on selection questions and quote it on others. `capability` names what else a dose may cost: callables that
    take the model and an arm's operators and return a figure, such as `lambda model, operators: perplexity(model,
    neutral, operators=operators)`; each is called once for every strength and every control, and becomes a column.
    `settings` are those of `sample`. Raises InputError for repeated or no strengths, for a capability named like a
    column of the table.
    """
    strengths = [float(strength) for strength in strengths]
    if not strengths or len(set(strengths)) < len(strengths):
        raise InputError(f"strengths {strengths}: give at least one, each of them once")
    able = _named(capability or {})
    arms = [as_operators(make_operator(strength)) for strength in strengths]
    answered = ask_many(model, arms, questions, judge, seed=seed, n_samples=n_samples, **settings)
    rows = [
        _treated(strength, on, outcomes) | _measured(able, model, arm)
        for strength, arm, outcomes in zip(strengths, arms, answered, strict=True)
    ]
    singles: list[dict[str, Any]] = []
    kept: dict[tuple[str, float], Sequence[Outcomes]] = {}
    for number, control in enumerate(controls, 1):
        asked = control.questions or questions
        run = {"seed": seed + number, "n_samples": n_samples if control.questions is None else 1, **settings}
        for strength in strengths if control.strengths is None else control.strengths:
            drawn = [as_operators(arm) for arm in control.make(strength)]
            found = ask_many(model, drawn, asked, judge, **run)
            kept[control.kind, float(strength)] = [*kept.get((control.kind, float(strength)), ()), *found]
            singles += [
                _single(control.kind, strength, on, i, outcomes) | _measured(able, model, arm)
                for i, (arm, outcomes) in enumerate(zip(drawn, found, strict=True))
            ]
    table = pd.DataFrame([*rows, *_bands(singles, able)], columns=[*COLUMNS, *able])
    per_control = pd.DataFrame(singles, columns=[*PER_CONTROL, *able])
    return DoseCurve(table, per_control, dict(zip(strengths, answered, strict=True)), kept)


def _named(capability: Mapping[str, Capability]) -> Mapping[str, Capability]:
    taken = sorted(set(capability) & {*COLUMNS, *PER_CONTROL})
    if taken:
        raise InputError(f"capability {taken[0]!r}: the dose table has a column of this name; call it something else")
    return capability


def _measured(able: Mapping[str, Capability], model: Model, arm: Sequence[Operator]) -> dict[str, float]:
    return {name: float(measure(model, arm)) for name, measure in able.items()}


def _treated(strength: float, on: str, outcomes: Outcomes) -> dict[str, Any]:
    rate, coherent = outcomes.rate("misaligned"), outcomes.rate("coherent")
    found = {"misaligned": rate.value, "low": rate.low, "high": rate.high, "coherent": coherent.value, "n": rate.n}
    return {"strength": strength, "kind": "vector", "on": on, "n_controls": 0, "chosen": False, **found}


def _single(kind: str, strength: float, on: str, control: int, outcomes: Outcomes) -> dict[str, Any]:
    rates = {what: _share(outcomes, what) for what in ("misaligned", "coherent")}
    _, coherent = Counts("misaligned").masks(outcomes.table)
    return {"strength": strength, "kind": kind, "on": on, "control": control, **rates, "n": int(coherent.sum())}


def _share(outcomes: Outcomes, what: str) -> float:
    """A rate without its interval: single controls have too few answers for one."""
    event, base = Counts(what).masks(outcomes.table)
    return float(event.sum() / base.sum()) if base.any() else math.nan


def _bands(singles: Sequence[Mapping[str, Any]], able: Iterable[str]) -> list[dict[str, Any]]:
    """One row per kind and strength: mean and 5-95 % range over the controls that gave coherent answers at all.

    Capabilities are means over all controls.
    """
    rows = []
    for kind, strength, on in dict.fromkeys((one["kind"], one["strength"], one["on"]) for one in singles):
        cell = [one for one in singles if (one["kind"], one["strength"], one["on"]) == (kind, strength, on)]
        rates = [one["misaligned"] for one in cell if math.isfinite(one["misaligned"])]
        low, high = np.quantile(rates, (0.05, 0.95)) if rates else (math.nan, math.nan)
        found = {"misaligned": float(np.mean(rates)) if rates else math.nan, "low": float(low), "high": float(high)}
        found |= {name: float(np.mean([one[name] for one in cell])) for name in ("coherent", *able)}
        found |= {"n": sum(one["n"] for one in cell)}
        rows.append({"strength": strength, "kind": kind, "on": on, **found, "n_controls": len(cell), "chosen": False})
    return rows
