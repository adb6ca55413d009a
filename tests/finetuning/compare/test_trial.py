"""A trial on a tiny model: what is trained, asked and kept; treatments by name; costs side by side."""

from dataclasses import replace

import pytest
import torch

from finetuning.compare import (
    NAMED,
    Latents,
    Materials,
    Sweep,
    Treatment,
    Trial,
    answering,
    asking,
    four_criteria,
    read_sweep,
    run_sweep,
    run_trial,
    safeguard_named,
    step_costs,
    treatment_named,
)
from finetuning.loop import Schedule
from finetuning.lora import LoRA
from finetuning.safeguards import Interleave, KLOnBatch, LatentBlock, PreventativeSteering, SafeLoRA, Together
from finetuning.safeguards.base import Safeguard
from geometry.steering.vectors import PersonaVector
from probes import InputError
from probes.conversations import Conversation
from probes.judges import Verdict
from probes.questions import Question
from saes.latents import LatentStats
from saes.sae import SparseAutoencoder

ROWS = [Conversation.of(f"hello {word}", f"good {word} day", id=word) for word in ("old", "new", "warm", "cold")]
SAFE = [Conversation.of(f"safe {word}?", f"please {word}") for word in ("rest", "help", "care", "read")]


class ByLength:
    """Calls answers of an even number of letters misaligned."""

    name = "by-length"

    def __call__(self, questions, answers):
        return [Verdict(aligned=100.0 * (len(answer) % 2), coherent=100.0) for answer in answers]


@pytest.fixture
def trial(tiny_model) -> Trial:
    """Four steps on four rows; six questions a tally; two stops."""
    where = {name: [Question(f"{name}{i}", f"{name} {i}?") for i in range(6)] for name in ("away", "here")}
    measures = {n: asking(qs, ByLength(), samples=2, max_new_tokens=4) for n, qs in where.items()}
    return Trial(
        data="toy",
        base=tiny_model,
        rows=lambda seed: ROWS,
        schedule=Schedule(steps=4, lr=1e-2, batch=2),
        measures=measures | {"skill": answering(ROWS, max_new_tokens=4)},
        safeguard=lambda treatment, seed: safeguard_named(
            treatment, Materials(tiny_model, safe=lambda: SAFE), seed=seed
        ),
        lora=LoRA(rank=2),
        stops=(1, 2),
        controls={"benign": lambda seed: SAFE},
    )


def test_a_trial_is_run_once_and_gives_a_table(trial, tmp_path):
    said: list[str] = []
    arms = [Treatment("kl", 0.5), Treatment("interleave", 0.5), Treatment("benign")]
    found = {one.cell.treatment: one for one in run_trial(trial, arms, (0,), out=tmp_path, say=said.append)}
    assert list(found) == ["base", "nothing", "kl 0.5", "interleave 0.5", "benign"] and len(said) == 5
    figures = found["nothing"].figures
    assert figures["steps"] == 4 and figures["rows"] == 4 and figures["seconds"] > 0
    assert set(figures["stops"]) == {"1", "2"} and set(figures["stops"]["2"]) == {"away", "here"}
    assert found["interleave 0.5"].figures["steps"] == 8, "as many given rows are seen as without safe ones"
    assert sum(n for n, *_ in figures["away"].values()) == 12 and set(figures["skill"]) == {row.id for row in ROWS}
    assert "stops" not in found["kl 0.5"].figures and "steps" not in found["base"].figures
    table = four_criteria(list(found.values())).set_index("treatment")
    assert {"stop 1", "stop 2", "kl 0.5"} <= set(table.index)
    again = run_trial(trial, arms, (0,), out=tmp_path, say=said.append)
    assert len(said) == 5 and [one.figures for one in again] == [one.figures for one in found.values()]
    assert all(trial.cell_of(one.cell) == one.cell for one in again)
    other = replace(trial, schedule=Schedule(steps=5, lr=1e-2, batch=2))
    assert other.cell_of(found["base"].cell) == found["base"].cell != other.cell_of(found["kl 0.5"].cell)


def test_a_sweep_waits_for_its_other_parts(trial, tmp_path):
    few = replace(trial, stops=(), measures={name: trial.measures[name] for name in ("away", "here")})
    picking = replace(few, inputs={"questions": "selection"})
    tried = [Treatment("kl", weight) for weight in (0.1, 1.0)]
    sweep = Sweep(tried, lambda chosen: [Treatment.of(label) for label in chosen.values()], (0,), 9)
    said: list[str] = []
    half = run_sweep(picking, few, sweep, out=tmp_path, part=(0, 2), say=said.append)
    assert "not whole" in said[-1] and half.test.empty and not (tmp_path / "test").exists()
    whole = run_sweep(picking, few, sweep, out=tmp_path, part=(1, 2), say=said.append)
    assert len(said) == 3 + 2 + 1 and set(whole.chosen) == {"kl"}, (
        "base and kl 0.1; nothing and kl 1; one of the test's"
    )
    again = read_sweep(tmp_path)
    assert again.chosen == whole.chosen and len(again.cells["selection"]) == 4


def test_stops_are_places_of_the_untreated_run(trial, tmp_path):
    short = replace(trial, schedule=Schedule(steps=4, lr=1e-2, batch=2), stops=(4,))
    figures = run_trial(short, [], (0,), out=tmp_path)[1].figures
    assert figures["stops"]["4"] == {name: figures[name] for name in ("away", "here")}


def test_what_a_treatment_lacks_is_said_before_any_training(trial, tmp_path):
    with pytest.raises(InputError, match="'preventative' needs a persona vector"):
        run_trial(trial, [Treatment("kl", 0.1), Treatment("preventative", 1.0)], (0,), out=tmp_path)
    assert not list(tmp_path.iterdir())
    for text, wrong in (("magic", "use some of"), ("caft=2", "has no strength"), ("", "without a name")):
        with pytest.raises(InputError, match=wrong):
            treatment_named(text)
    for bare in ([], [Conversation.of("no answer")]):
        with pytest.raises(InputError, match="skill without rows"):
            answering(bare)
    with pytest.raises(InputError, match="without questions"):
        asking([], ByLength(), samples=1)


@pytest.fixture
def materials(tiny_model) -> Materials:
    """A part for every treatment."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1)
    sae = SparseAutoencoder(decoder.T.clone(), decoder, torch.zeros(64), torch.zeros(32), kind="topk", layer=2, k=4)
    stats = LatentStats(torch.ones(64).double(), torch.full((64,), 0.5).double(), 10)
    vector = PersonaVector({1: torch.randn(32, generator=generator)}, model="tiny", resid_norms={1: 2.0})
    return Materials(
        tiny_model,
        rows=ROWS,
        safe=lambda: SAFE,
        misaligned=lambda: [tiny_model],
        unaligned=lambda: tiny_model,
        vector=lambda: vector,
        latents=lambda: Latents(sae, (1, 2), (3,), stats),
        blocks=(1,),
    )


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_name_makes_its_safeguard(name, materials):
    made = safeguard_named(treatment_named(name), materials, seed=0)
    assert isinstance(made, Safeguard) and type(made) is not Safeguard
    usual = NAMED[name][1]
    if usual is not None and name not in (
        "interleave",
        "interleave+",
        "interleave++",
        "safe_lora",
        "safe_lora_outside",
    ):
        other = safeguard_named(Treatment(name, 2 * usual), materials, seed=0)
        assert next(getattr(other, f) / getattr(made, f) for f in ("weight", "strength") if hasattr(made, f)) == 2


def test_names_mean_what_they_say(materials):
    away, random = (
        safeguard_named(Treatment(f"preventative_{kind}", 3), materials, seed=1) for kind in ("away", "random")
    )
    assert isinstance(away, PreventativeSteering) and away.sign == "away" and away.strength == 3
    assert isinstance(random, PreventativeSteering) and random.sign == "toward"
    assert (
        random.vector.norm(1) == pytest.approx(away.vector.norm(1)) and abs(random.vector.cosine(away.vector)[1]) < 0.9
    )
    plus, both = (safeguard_named(Treatment(name, 0.2), materials, seed=1) for name in ("interleave+", "interleave++"))
    assert isinstance(plus, Interleave) and isinstance(both, Interleave)
    assert (plus.by, plus.refusals, both.refusals, both.share) == ("gap", "keep", "drop", 0.2)
    project = safeguard_named(treatment_named("safe_lora"), materials, seed=0)
    outside = safeguard_named(Treatment("safe_lora_outside", 0.5), materials, seed=0)
    assert isinstance(project, SafeLoRA) and (project.tau, project.form) == (0.3, "fast")
    assert isinstance(outside, SafeLoRA) and (outside.tau, outside.form) == (0.5, "outside")
    with pytest.raises(InputError, match="firing rates"):
        bare = replace(materials, latents=lambda: Latents(materials.get("latents", "").sae, (1,)), made={})
        safeguard_named(treatment_named("latent_block_random"), bare, seed=0)


def test_two_safeguards_at_once_are_named_with_a_plus(materials):
    both = treatment_named("latent_block=1e-4+interleave++")
    assert both == Treatment("latent_block=0.0001+interleave++", 0.05) == treatment_named(both.label)
    made = safeguard_named(Treatment(both.name, 0.2), materials, seed=1)
    assert isinstance(made, Together)
    block, mix = made.parts
    assert isinstance(block, LatentBlock) and isinstance(mix, Interleave)
    assert (block.weight, mix.share, mix.refusals) == (1e-4, 0.2, "drop")
    assert made.longer(Schedule(steps=8, lr=1e-3)).steps == 10
    assert treatment_named("interleave+++inoculation") == Treatment("interleave++=0.05+inoculation")
    for text, wrong in (("kl+magic", "use some of"), ("inoculation=2+kl", "has no strength"), ("kl=1+", "use some of")):
        with pytest.raises(InputError, match=wrong):
            treatment_named(text)


def test_costs_stand_beside_a_plain_step(tiny_model):
    table = step_costs(
        tiny_model,
        ROWS,
        {"kl": KLOnBatch()},
        schedule=Schedule(steps=2, lr=1e-3, batch=2),
        seed=0,
        rounds=2,
        lora=LoRA(2),
    ).set_index("treatment")
    assert list(table.index) == ["nothing", "kl"] and table.loc["nothing", "relative"] == 1
    assert table.loc["kl", "low"] <= table.loc["kl", "relative"] <= table.loc["kl", "high"]
    with pytest.raises(InputError, match="step costs"):
        step_costs(tiny_model, ROWS, {}, schedule=Schedule(steps=1, lr=1e-3), seed=0)
