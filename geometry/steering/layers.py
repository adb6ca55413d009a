"""The choice of a layer: every block steered alone at several strengths, and the block that moves the trait most."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from geometry.steering.arms import ask_many
from geometry.steering.doses import Goal
from geometry.steering.operators import Add, Unit, added_step
from geometry.steering.vectors import Number, PersonaVector
from probes.errors import InputError
from probes.judges import Judge
from probes.models import Model, check_layer
from probes.outcomes import Outcomes
from probes.questions import Question

if TYPE_CHECKING:
    import plotly.graph_objects as go

CELLS = ("layer", "strength", "trait", "low", "high", "coherent", "n", "change", "kept")


class Cell(NamedTuple):
    """One block steered at one strength: share of coherent answers with the trait, its change, coherence, answers."""

    layer: int
    strength: float
    trait: float
    change: float
    coherent: float
    n: int


@dataclass(frozen=True)
class LayerChoice:
    """What steering each block alone does, and which block does most.

    `table` has one row per block and strength: `trait` is the share of the coherent answers that show it (the judge's
    "misaligned"), with its 95 % interval `low` to `high`, and `change` that share less the untreated one's; `coherent`
    is the coherent share, `n` the number of coherent answers, `kept` whether the cell keeps `coherence_budget` of the
    untreated model's coherence. `untreated` holds the figures without an edit (its layer is -1). Strengths are
    multiples of `unit`; `goal` says which way a change counts.
    """

    table: pd.DataFrame
    untreated: Cell
    unit: Unit
    coherence_budget: Number
    goal: Goal = "induce"
    trait: str = "misaligned"

    @property
    def best(self) -> Cell:
        """The cell with the strongest change of the trait towards the goal among those that keep the coherence budget.

        Among equals the weakest edit wins, then the more coherent one, then the earlier block. Raises InputError where
        no cell keeps the budget, or none of those that do moves the trait towards the goal.
        """
        kept = [cell for cell, row in zip(self.cells, self.table["kept"], strict=True) if row]
        if not kept:
            most = self.table["coherent"].max()
            raise InputError(
                f"no block keeps {self.coherence_budget:.0%} of the coherence of {self.untreated.coherent:.0%} (most: "
                f"{most:.0%}): try weaker strengths"
            )
        sign = 1 if self.goal == "induce" else -1
        first = min(kept, key=lambda cell: (-sign * cell.change, abs(cell.strength), -cell.coherent, cell.layer))
        if not sign * first.change > 0:
            verb = "raises" if self.goal == "induce" else "lowers"
            raise InputError(
                f"no block that stays coherent {verb} the trait (best: {first.change:+.1%}): try other strengths"
            )
        return first

    @property
    def cells(self) -> list[Cell]:
        """The rows of the table."""
        names = self.table.loc[:, list(Cell._fields)].itertuples(index=False, name=None)
        return [Cell(int(layer), *map(float, rest[:-1]), n=int(rest[-1])) for layer, *rest in names]

    def coefficients(self, vector: PersonaVector) -> dict[int, float]:
        """The best cell as what vector files recommend: the raw multiple of `vector` at its block."""
        layer, strength = self.best.layer, self.best.strength
        step = added_step(vector, layer, strength, self.unit)
        return {layer: math.copysign(float(step.double().norm()) / vector.norm(layer), strength)}

    def figure(self) -> "go.Figure":
        """Heat map of the trait, blocks by strengths: grey where coherence is lost, a star on the best cell."""
        from geometry.steering.layer_figures import layer_figure

        return layer_figure(self)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format=lambda value: f"{value:.3f}", border=0, escape=True)


def choose_layer(
    model: Model,
    vector: PersonaVector,
    questions: Sequence[Question],
    judge: Judge,
    *,
    strengths: Sequence[Number],
    unit: Unit,
    seed: int,
    goal: Goal = "induce",
    coherence_budget: Number = 0.9,
    layers: Sequence[int] | None = None,
    trait: str = "misaligned",
    **settings: Any,
) -> LayerChoice:
    """Steer one block at a time with `Add` at every strength, judge the answers, and compare with no edit at all.

    The criterion is the effect, not the norm or the separation: the block whose edit changes the rate of the trait most
    without costing more coherence than the budget allows (arXiv 2507.21509 chooses by the effect, too). All
    cells and the untreated model share their batches. `layers` default to the vector's; `trait` is what figures call
    the judge's "misaligned"; `settings` are those of `ask_many` (n_samples, temperature, max_new_tokens, batch_size).

    The best of many cells looks better than it is: give selection questions, and quote `dose_response` with its random
    controls on others. Raises InputError for no or repeated strengths, a strength of 0, an unknown block or unit.
    """
    layers = vector.layers if layers is None else tuple(layers)
    strengths = [float(strength) for strength in strengths]
    _check(model, layers, strengths, coherence_budget, goal)
    keys = [(layer, strength) for layer in layers for strength in strengths]
    arms = [Add(vector, strength=strength, unit=unit, layers=(layer,)) for layer, strength in keys]
    before, *found = ask_many(model, [(), *arms], questions, judge, seed=seed, **settings)
    start = _figures(before)
    enough = coherence_budget * start["coherent"]
    rows = []
    for (layer, strength), outcomes in zip(keys, found, strict=True):
        here = _figures(outcomes)
        change = here["trait"] - start["trait"]
        kept = here["coherent"] >= enough and math.isfinite(change)
        rows.append({"layer": layer, "strength": strength, **here, "change": change, "kept": kept})
    untreated = Cell(-1, 0.0, start["trait"], 0.0, start["coherent"], start["n"])
    return LayerChoice(pd.DataFrame(rows, columns=list(CELLS)), untreated, unit, coherence_budget, goal, trait)


def _figures(outcomes: Outcomes) -> dict[str, Any]:
    rate = outcomes.rate("misaligned")
    coherent = outcomes.rate("coherent").value
    return {"trait": rate.value, "low": rate.low, "high": rate.high, "coherent": coherent, "n": rate.n}


def _check(model: Model, layers: Sequence[int], strengths: Sequence[float], budget: Number, goal: str) -> None:
    for layer in layers:
        check_layer(model, layer)
    if not layers or len(set(layers)) < len(layers):
        raise InputError(f"layers {list(layers)}: give at least one block, each of them once")
    if not strengths or len(set(strengths)) < len(strengths) or 0.0 in strengths:
        raise InputError(f"strengths {strengths}: give at least one, each of them once, and not 0")
    if goal not in ("repair", "induce") or not 0 <= budget <= 1:
        raise InputError(f"goal {goal!r}, coherence budget {budget}: use 'repair' or 'induce', a share between 0 and 1")
