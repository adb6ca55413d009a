"""The study: its stages in order, each resumable, and the folder that they leave."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd

from persona_geometry.results import Study
from persona_geometry.stages import behaviour, controls, finish, latents, nearness, picking, steering
from persona_geometry.stages.cells import Cells, Say, quiet
from persona_geometry.stages.choosing import Goal
from persona_geometry.stages.inputs import Inputs
from persona_geometry.stages.summary import assemble, random_spread
from probes.outcomes import Outcomes, pool

#: What is tried: goal, the model that is treated, and what its cell is called.
TREATMENTS: tuple[tuple[Goal, str, str], ...] = (
    ("repair", "tuned", "tuned_ablated"),
    ("induce", "base", "base_steered"),
)

#: Cells of a full study, for progress bars.
STAGES = 37


class Run:
    """One run of a study: what has been found so far."""

    def __init__(self, inputs: Inputs, cells: Cells) -> None:
        self.inputs, self.cells = inputs, cells
        self.answers: dict[str, Outcomes] = {}
        self.parts: dict[str, Any] = {"left_out": []}
        self.tables: dict[str, pd.DataFrame] = {}

    def leave_out(self, part: str, why: str) -> None:
        """Say in words why a part is missing."""
        self.parts["left_out"].append({"part": part, "why": why})


def run_study(inputs: Inputs, *, say: Say = quiet) -> Study:
    """Run every stage that the inputs allow, and write the study's folder.

    Finished cells in `inputs.out` are read instead of made again, so an interrupted study goes on where it was.

    Raises:
        InputError: The folder holds another study.
    """
    began = time.perf_counter()
    run = Run(inputs, Cells.open(inputs.out, inputs.key(), say))
    _behaviour(run)
    found = steering.material(inputs, run.cells)
    repair = _steering(run, found)
    _latents(run, found)
    _nearness(run, found, repair)
    _finish(run, found, repair)
    run.tables["spread"] = behaviour.spread(run.answers)
    run.tables["samples"] = behaviour.samples(inputs, run.answers)
    run.tables["outcomes"] = pool(list(run.answers.values())).table
    summary = assemble(inputs, run.cells, run.answers, run.parts, began)
    study = Study(summary, run.tables, inputs.out)
    study.save()
    say("report", "begin")
    study.report()
    say("report", "done")
    return study


def _behaviour(run: Run) -> None:
    for name in run.inputs.models:
        run.answers[name] = behaviour.asked(run.inputs, run.cells, name, name)
    judged = run.inputs.judge is not None
    run.parts["verdict"] = behaviour.verdict(run.answers["tuned"], run.answers["base"], judged=judged)
    asked = run.answers["tuned"].table["group"].unique().tolist()
    run.parts["spread"] = {"trained": run.inputs.trained_group, "asked": asked}
    if not judged:
        run.leave_out("rates", "no judge was given, so answers were not scored")


def _steering(run: Run, found: steering.Material) -> steering.Choice | None:
    inputs, cells = run.inputs, run.cells
    run.tables["layer_curve"] = finish.layer_curve(found)
    if found.missing:
        run.leave_out("the vector from opposite prompts", found.missing)
    if inputs.judge is None:
        run.leave_out("dose", "no judge was given, so no treatment could be chosen")
        return None
    chosen, curves = {}, []
    for goal, model, name in TREATMENTS:
        choice = picking.choose(inputs, cells, found, goal)
        if choice is None:
            run.leave_out("dose", f"no {goal} treatment kept enough coherence on selection questions")
            continue
        chosen[goal] = choice
        run.answers[name] = behaviour.asked(inputs, cells, name, model, (choice.operator(found),))
        run.answers |= controls.random_cells(inputs, cells, choice, found)
        curves.append(controls.curve(inputs, cells, choice, found))
    run.parts["chosen"] = (chosen["repair"].as_dict() if "repair" in chosen else {}) | {
        "induce": chosen["induce"].as_dict() if "induce" in chosen else None
    }
    if curves:
        run.tables["dose"] = pd.concat(curves, ignore_index=True)
    return chosen.get("repair")


def _latents(run: Run, found: steering.Material) -> None:
    inputs, cells = run.inputs, run.cells
    if inputs.sae is None:
        run.leave_out("latents", "no SAE was given")
        return
    table = latents.diff(inputs, cells, found)
    run.parts["sae"] = latents.sae_quality(inputs, cells, found) | latents.fit(inputs, cells, found)
    table = table.merge(latents.attribution(inputs, cells, found), on="latent", how="left")
    if inputs.judge is not None:
        screened = latents.screen(inputs, cells, found, table)
        table = table.merge(screened[["latent", "induce", "repair"]], on="latent", how="left")
        clamp = latents.choose_clamp(inputs, cells, table)
        if clamp:
            run.parts["clamped"] = clamp
            run.answers["tuned_latents"] = latents.clamped_cell(inputs, cells, table, clamp)
            run.answers["tuned_random_latents"] = latents.random_clamps(inputs, cells, found, table, clamp)
            run.parts["clamped"] = clamp | {"random": random_spread(run.answers["tuned_random_latents"])}
    run.tables["latents"] = table
    shown = [*table["latent"].head(inputs.sizes.screened).tolist(), *table["latent"].tail(2).tolist()]
    cards = latents.cards(inputs, cells, found, [int(i) for i in shown])
    run.parts["features"] = [_feature(table, int(i), cards) for i in shown]


def _feature(table: pd.DataFrame, latent: int, cards: dict[str, Any]) -> dict[str, Any]:
    row = table[table["latent"] == latent].iloc[0]
    figures = {name: float(row[name]) if name in row and pd.notna(row[name]) else None for name in ("induce", "repair")}
    return {"latent": latent, "delta": float(row["delta_mean"]), **figures, "card": cards.get(str(latent), {})}


def _nearness(run: Run, found: steering.Material, repair: steering.Choice | None) -> None:
    inputs, cells, rows = run.inputs, run.cells, run.inputs.rows
    if inputs.sae is None or not (rows.train and rows.benign and rows.harmful and rows.harmless):
        run.leave_out("geometry", "needs an SAE, the training rows, benign rows, and harmful and harmless rows")
        return
    geometry, table, null, distances = nearness.compared(inputs, cells)
    sets = geometry.pop("sets")
    run.parts["geometry"] = geometry
    run.tables |= {"geometry": table, "geometry_null": null, "distances": distances}
    diff = run.tables["latents"]
    alive = diff.loc[(diff["base_freq"] > 0) | (diff["tuned_freq"] > 0), "latent"].astype(int).tolist()
    labels = {f["latent"]: " ".join(f["card"].get("top_tokens", [])[:3]) for f in run.parts["features"]}
    run.tables["map"] = nearness.mapped(inputs, cells, sets, alive, labels)
    run.tables["rows"] = nearness.worst_rows(inputs, cells, found, repair, sets["harmful"])
    worst = run.tables["rows"].head(20).filter(items=["index", "score", "question", "answer"])
    run.parts["rows"] = worst.to_dict("records")


def _finish(run: Run, found: steering.Material, repair: steering.Choice | None) -> None:
    inputs, cells = run.inputs, run.cells
    if repair:
        run.tables["writers"] = finish.writers(inputs, cells, found, repair)
        run.tables["tokens"] = nearness.coloured_tokens(inputs, cells, found, repair)
    if inputs.rows.good and inputs.judge is not None:
        run.answers["realigned"] = finish.realigned(inputs, cells)
    else:
        run.leave_out("realigned", "needs good rows (`--good FILE`) and a judge")
    run.parts["vectors"] = finish.exported(inputs, found, repair)
    run.parts["checks"] = finish.checks(inputs, cells, found)
