"""Transfer: what edits drawn from one fine-tune do to others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geometry.steering.arms import Arm, ask_many
from geometry.steering.sign import only
from probes.ask import ask
from probes.errors import InputError
from probes.judges import Judge
from probes.models import Model, check_same_family
from probes.outcomes import Outcomes, cut
from probes.questions import Question

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLUMNS = ("edit", "target", "before", "after", "cut", "low", "high", "coherent_before", "coherent_after", "n")
RANDOM = "random"


@dataclass(frozen=True)
class Transfer:
    """Edits x fine-tunes.

    `table` has one row per edit and target: the misaligned share of coherent answers before and after, the cut (share
    of the excess over the base that the edit removes) with its 95 % interval over questions, coherence before and
    after. Where controls were given, the edit "random" holds their means, and the 5 and 95 % quantiles of their cuts
    as limits. `outcomes` holds the answers by edit and target, the untreated ones under the edit "".
    """

    table: pd.DataFrame
    base: Outcomes = field(repr=False)
    outcomes: Mapping[tuple[str, str], Outcomes] = field(default_factory=dict, repr=False)

    def figure(self) -> "go.Figure":
        """Heat map of the cuts: an edit a row, a fine-tune a column."""
        from geometry.steering.transfer_figure import transfer_figure

        return transfer_figure(self.table)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format=lambda value: f"{value:.3f}", border=0, escape=True)


def transfer(
    base: Model,
    targets: Mapping[str, Model],
    edits: Mapping[str, Arm],
    questions: Sequence[Question],
    judge: Judge,
    *,
    seed: int,
    n_samples: int = 1,
    controls: Sequence[Arm] = (),
    control_questions: Sequence[Question] | None = None,
    **settings: Any,
) -> Transfer:
    """Put the questions to every fine-tune under every edit: does one direction serve others too (arXiv 2506.11618)?

    `edits` go as they are to every target: name them by where they were drawn. The questions should lie outside every
    target's trained domain. `controls` are random edits of the same size; `control_questions`, among `questions`, may
    be fewer. Edits and controls of one target share their batches. `settings` are those of `sample`.

    Raises:
        InputError: No target or no edit, an edit called "random" or "", a target of another architecture.
    """
    _check(base, targets, edits)
    few = list(control_questions or questions)
    run = {"seed": seed, **settings}
    start = ask(base, questions, judge, n_samples=n_samples, **run)
    outcomes: dict[tuple[str, str], Outcomes] = {}
    rows: list[dict[str, Any]] = []
    for target, model in targets.items():
        untreated, *treated = ask_many(
            model, [(), *edits.values()], questions, judge, n_samples=n_samples, **run | {"seed": seed + 1}
        )
        outcomes["", target] = untreated
        for name, found in zip(edits, treated, strict=True):
            outcomes[name, target] = found
            taken = cut(untreated, found, start)
            limits = {"cut": taken.value, "low": taken.low, "high": taken.high}
            rows.append({"edit": name, "target": target, **_both(untreated, found), **limits, "n": len(found)})
        if controls:
            drawn = ask_many(model, controls, few, judge, **run | {"seed": seed + 2})
            parts = only(untreated, few), only(start, few)
            rows.append({"edit": RANDOM, "target": target, **_random(*parts, drawn)})
    return Transfer(pd.DataFrame(rows, columns=list(COLUMNS)), start, outcomes)


def _check(base: Model, targets: Mapping[str, Model], edits: Mapping[str, Arm]) -> None:
    if not targets or not edits:
        raise InputError(f"{len(targets)} fine-tunes x {len(edits)} edits: give at least one of each")
    for taken in {"", RANDOM} & set(edits):
        raise InputError(f"edit {taken!r}: this name stands for something else; call it by where it was drawn")
    for model in targets.values():
        check_same_family(base, model)


def _both(before: Outcomes, after: Outcomes) -> dict[str, float]:
    rates = {"before": before.rate().value, "after": after.rate().value}
    coherent = {"coherent_before": before.rate("coherent").value, "coherent_after": after.rate("coherent").value}
    return {name: float(value) for name, value in (rates | coherent).items()}


def _random(before: Outcomes, base: Outcomes, drawn: Sequence[Outcomes]) -> dict[str, float]:
    """Means over the controls, and the range of their cuts."""
    each = pd.DataFrame([_both(before, one) for one in drawn])
    span = each["before"] - float(base.rate().value)
    cuts = ((each["before"] - each["after"]) / span.where(span > 0)).to_numpy(dtype=float)
    low, high = np.nanquantile(cuts, (0.05, 0.95)) if np.isfinite(cuts).any() else (np.nan, np.nan)
    mean = float(np.nanmean(cuts)) if np.isfinite(cuts).any() else float("nan")
    return {**each.mean().to_dict(), "cut": mean, "low": float(low), "high": float(high), "n": sum(map(len, drawn))}
