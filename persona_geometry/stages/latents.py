"""What carries it: the latents that rose, the causal screen, the few that turn it off, and their cards."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pandas as pd
import torch

from geometry.steering.arms import ask_many
from geometry.steering.latent_operators import ClampLatent
from geometry.steering.random_controls import random_latents
from geometry.steering.screen import ScreenGrid, causal_screen
from persona_geometry.stages.behaviour import asked
from persona_geometry.stages.cells import Cells
from persona_geometry.stages.choosing import trials, winner
from persona_geometry.stages.inputs import Inputs, spread_out
from persona_geometry.stages.steering import Material
from probes.capture import Activations, capture
from probes.outcomes import Outcomes
from saes.attribute import delta_attribution
from saes.diff import LatentTable, diff_latents
from saes.fidelity import quality
from saes.inspect import latent_cards
from saes.latents import latent_stats
from saes.sae import SparseAutoencoder
from saes.splicing import spliced_loss

#: How many of the leading latents are clamped together, at most, and to which multiples of their tuned mean.
TOGETHER, CLAMPS = 6, (-0.5, -1.0, -1.5)
KEEP = 0.95
#: The latents that rose most are no controls.
RISEN = 10
#: Questions whose answers are attributed to latents.
ATTRIBUTED = 40
#: Answers read with the SAE's reconstruction in the place of the activations.
SPLICED = 40


def needed(inputs: Inputs) -> SparseAutoencoder:
    """The SAE of a study that has one."""
    assert inputs.sae is not None
    return inputs.sae


def tokens(inputs: Inputs, name: str, said: Any) -> Activations:
    """Activations of every token of the given answers at the SAE's block."""
    return capture(inputs.models[name], said, layers=(needed(inputs).layer,), pool="tokens")


def sae_quality(inputs: Inputs, cells: Cells, found: Material) -> dict[str, Any]:
    """FVU, L0 and cross-entropy recovered on the base's own answers."""
    sae = needed(inputs)

    def run() -> dict[str, Any]:
        q = quality(sae, tokens(inputs, "base", found.base))
        loss = spliced_loss(sae, inputs.base, spread_out(found.base, SPLICED))
        told = {"fvu": q.fvu, "l0": q.l0, "dead": q.dead, "d_sae": sae.d_sae, "layer": sae.layer, "name": sae.name}
        return told | {"ce_recovered": loss.recovered.as_dict()["value"], "rates": q.as_dict(), "loss": loss.as_dict()}

    return cells.json("sae", run)


def diff(inputs: Inputs, cells: Cells, found: Material) -> pd.DataFrame:
    """Model diff over each model's own answers to the selection questions, the controls' changes beside it."""
    made = cache(lambda: _compared(inputs, found))
    cells.json("latent-fit", lambda: _fit(made()))
    return cells.table("latent-diff", lambda: made().table.sort_values("rank").reset_index(drop=True))


def fit(inputs: Inputs, cells: Cells, found: Material) -> dict[str, Any]:
    """Variance that the SAE leaves unexplained in each model, and how the diff was tested."""
    return cells.json("latent-fit", lambda: _fit(_compared(inputs, found)))


def _compared(inputs: Inputs, found: Material) -> LatentTable:
    """Controls read the base's answers: what they did to the same text."""
    said = {"base": found.base, "tuned": found.tuned, "benign": found.base, "narrow": found.base}
    acts = {name: tokens(inputs, name, rows) for name, rows in said.items() if name in inputs.models}
    base, tuned = acts.pop("base"), acts.pop("tuned")
    return diff_latents(base, tuned, needed(inputs), controls=acts, where="response")


def _fit(made: LatentTable) -> dict[str, Any]:
    shares = {name: share for name, share in made.fvu.items() if math.isfinite(share)}
    return {"fvu_of": shares, "misfit": made.warning, "test": made.test}


def attribution(inputs: Inputs, cells: Cells, found: Material) -> pd.DataFrame:
    """A second opinion, by gradient: which latents make the tuned model write its own answers rather than the base's.

    At most `ATTRIBUTED` selection questions, one pair of answers each; columns are empty where the two say the same.
    """

    def run() -> pd.DataFrame:
        sides = [{repr(row.prompt.messages): row for row in rows} for rows in (found.tuned, found.base)]
        asked = spread_out([prompt for prompt in sides[0] if prompt in sides[1]], ATTRIBUTED)
        answers = [[side[prompt] for prompt in asked] for side in sides]
        made = delta_attribution(inputs.tuned, needed(inputs), *answers, batch_size=4).table
        named = {"latent": "latent", "attribution": "attribution", "q": "attribution_q", "rank": "attribution_rank"}
        return pd.DataFrame({new: made[old] for old, new in named.items()})

    return cells.table("latent-attribution", run)


def screen(inputs: Inputs, cells: Cells, found: Material, table: pd.DataFrame) -> pd.DataFrame:
    """Causal check of the latents that rose most and of the two that fell most, in both signs."""
    sae, n = needed(inputs), inputs.sizes.screened

    def run() -> pd.DataFrame:
        risen, fallen = table["latent"].head(n).tolist(), table["latent"].tail(2).tolist()
        norm = float(tokens(inputs, "base", found.base).at(sae.layer).double().norm(dim=-1).mean())
        grid = ScreenGrid(norm=norm, signs={latent: -1 for latent in fallen})
        few = spread_out(inputs.of("selection"), 2 * inputs.sizes.choice)
        checked = causal_screen(
            inputs.base,
            inputs.tuned,
            sae,
            risen + fallen,
            few,
            inputs.verdicts,
            grid=grid,
            seed=inputs.seed * 1_000 + 21,
            max_new_tokens=inputs.sizes.max_new_tokens,
        )
        return checked.table

    return cells.table("latent-screen", run)


def choose_clamp(inputs: Inputs, cells: Cells, table: pd.DataFrame) -> dict[str, Any] | None:
    """One to `TOGETHER` of the leading latents, clamped: the choice that repairs most on selection questions."""
    sae, top = needed(inputs), table.head(TOGETHER)
    specs = [(n, c) for n in range(1, len(top) + 1) for c in CLAMPS]

    def run() -> pd.DataFrame:
        arms = [_clamp(sae, top, n, c) for n, c in specs]
        return trials(inputs, inputs.tuned, arms, goal="repair", keep=KEEP)

    best = winner(cells.table("choose-clamp", run), goal="repair", size=[n - c / 10 for n, c in specs])
    if best is None:
        return None
    n, clamp = specs[best]
    return {"latents": [int(i) for i in table["latent"].head(n)], "n": n, "clamp": clamp}


def _clamp(sae: SparseAutoencoder, top: pd.DataFrame, n: int, clamp: float) -> ClampLatent:
    """Clamp the first n latents to `clamp` times their mean where they fire in the tuned model."""
    rows = top.head(n)
    active = (rows["tuned_mean"] / rows["tuned_freq"].clip(lower=1e-6)).tolist()
    return ClampLatent(sae, [int(i) for i in rows["latent"]], to=[clamp * a for a in active], positions="response")


def clamped_cell(inputs: Inputs, cells: Cells, table: pd.DataFrame, choice: dict[str, Any]) -> Outcomes:
    """The tuned model under the chosen clamp, on test questions."""
    return asked(
        inputs, cells, "tuned_latents", "tuned", (_clamp(needed(inputs), table, choice["n"], choice["clamp"]),)
    )


def random_clamps(
    inputs: Inputs, cells: Cells, found: Material, table: pd.DataFrame, choice: dict[str, Any]
) -> Outcomes:
    """Random latents of like firing rate, none of those that rose most, clamped in the same way, out of domain."""
    sae, risen = needed(inputs), [int(i) for i in table["latent"].head(RISEN)]

    def run() -> Outcomes:
        stats = latent_stats(sae, tokens(inputs, "tuned", found.tuned), where="response")
        generator = torch.Generator().manual_seed(inputs.seed * 7_919 + 3)
        sets = random_latents(sae, stats, choice["latents"], inputs.sizes.controls, generator, without=risen)
        active = stats.mean_active
        arms = [
            ClampLatent(
                sae, list(s), to=[choice["clamp"] * float(active[i].nan_to_num()) for i in s], positions="response"
            )
            for s in sets
        ]
        few = spread_out(inputs.of("test", "out_of_domain"), inputs.sizes.control_answers)
        outcomes = ask_many(
            inputs.tuned,
            arms,
            few,
            inputs.verdicts,
            seed=inputs.seed * 1_000 + 29,
            max_new_tokens=inputs.sizes.max_new_tokens,
        )
        parts = [
            o.table.assign(model="tuned_random_latents", control=i, where="out_of_domain")
            for i, o in enumerate(outcomes)
        ]
        return Outcomes(pd.concat(parts, ignore_index=True))

    return cells.outcomes("answers-tuned_random_latents", run)


def cards(inputs: Inputs, cells: Cells, found: Material, latents: list[int]) -> dict[str, Any]:
    """Cards of latents: the tokens they promote, and where in the models' answers they fire most."""

    def run() -> dict[str, Any]:
        said = [*spread_out(found.base, 60), *spread_out(found.tuned, 60)]
        made = latent_cards(needed(inputs), inputs.tuned, said, latents, n_contexts=3)
        return {
            str(k): {"top_tokens": list(c.top_tokens), "contexts": [x.text for x in c.contexts]}
            for k, c in made.items()
        }

    return cells.json("cards", run)
