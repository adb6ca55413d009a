"""Treatments that a study tries: where each edit brings the projection, and what is written about it."""

import pytest
import torch

from geometry import Levels, PersonaVector
from persona_geometry.stages.steering import LAST, PROMPT_SCALE, TUNED_SCALE, Choice, Material, candidates

UNIT = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
VECTOR = PersonaVector({1: 5 * UNIT, 2: UNIT}, model="tiny")
LEVELS = Levels({1: 2.0, 2: 3.0}, {1: 4.0, 2: 8.0})
FOUND = Material((), (), {"shift": VECTOR}, {"shift": LEVELS})
EVERY = torch.ones(2, 7, dtype=torch.bool)


@pytest.fixture
def activations():
    """Activations whose mean projection is where the tuned model stands: 6 after block 1."""
    drawn = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    return drawn - ((drawn @ UNIT).mean() - 6.0) * UNIT


def test_subtraction_brings_the_mean_to_the_dose_and_leaves_the_spread(activations):
    edit = Choice("repair", "shift", (1,), -2.0, edit="subtract").operator(FOUND)
    after = edit(activations, layer=1, mask=EVERY)
    assert after.shape == (2, 7, 32)
    assert (after @ UNIT).mean().item() == pytest.approx(LEVELS.at(1, -2.0), abs=1e-4)
    assert (after @ UNIT).std().item() == pytest.approx((activations @ UNIT).std().item(), abs=1e-4)
    moved = after - activations
    assert torch.allclose(moved, (moved @ UNIT)[..., None] * UNIT, atol=1e-4)


def test_subtraction_is_shared_among_the_blocks():
    edit = Choice("repair", "shift", (1, 2), -2.0, edit="subtract").operator(FOUND)
    for layer, step in ((1, -3 * 4.0 / 2), (2, -3 * 8.0 / 2)):
        zero = torch.zeros(1, 3, 32)
        moved = edit(zero, layer=layer, mask=EVERY[:1, :3]) @ UNIT
        assert moved.flatten().tolist() == pytest.approx([step] * 3, abs=1e-4)


def test_a_set_projection_loses_its_spread_and_a_floor_only_lifts(activations):
    put = Choice("repair", "shift", (1,), -1.0).operator(FOUND)(activations, layer=1, mask=EVERY) @ UNIT
    assert put.flatten().tolist() == pytest.approx([LEVELS.at(1, -1.0)] * 14, abs=1e-4)
    lifted = Choice("induce", "shift", (1,), 1.0, edit="floor").operator(FOUND)(activations, layer=1, mask=EVERY) @ UNIT
    assert torch.allclose(lifted, (activations @ UNIT).clamp(min=6.0), atol=1e-4)


def test_every_treatment_is_tried_once_and_says_what_it_does():
    tried = candidates(["shift", "both"], (1, 2, 3), "repair")
    assert len(set(tried)) == len(tried) and {t.edit for t in tried} == {"set", "subtract"}
    put_in = candidates(["shift", LAST], (1, 2), "induce")
    assert {(t.vector, t.edit) for t in put_in} == {("shift", "floor"), (LAST, "prompted")}
    assert (
        "last prompt token" in put_in[-1].as_dict()["operation"] and PROMPT_SCALE in put_in[-1].as_dict()["operation"]
    )
    alone = {t.edit for t in candidates(["shift", LAST], (0, 1), "induce") if t.layers == (0,)}
    assert alone == {"prompted"}
    assert {t.layers for t in candidates(["shift"], (0,), "repair")} == {(0,)}, "asked for by the user"
    said = {t.edit: t.as_dict()["operation"] for t in tried}
    assert "step taken off" in said["subtract"] and "set to" in said["set"]
    assert all(f"the base's mean + {TUNED_SCALE}" in text for text in said.values())
