"""Operators: what they do, position by position, against loops; what they leave alone; how they act inside a model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from geometry import Ablate, Add, Cap, Floor, Levels, PersonaVector, SetProjection, Subspace, projection_quantile
from probes import Conversation, InputError, Model, capture, capture_blocks, render
from probes.ask import sample

LEVELS = Levels({1: 1.0, 2: -2.0, 3: 0.5}, {1: 4.0, 2: 3.0, 3: -1.0})


def everyone(vector: PersonaVector) -> dict[str, object]:
    return {
        "add": Add(vector, strength=1.5, unit="raw"),
        "add_norm": Add(vector, strength=-0.5, unit="resid_norm"),
        "ablate": Ablate(vector),
        "ablate_mean": Ablate(vector, to={1: 1.0, 2: 2.0, 3: 3.0}),
        "set": SetProjection(vector, LEVELS, dose=-1.0),
        "cap": Cap(vector, ceiling=0.5),
        "floor": Floor(vector, floor={1: 0.0, 2: 1.0, 3: 2.0}),
        "subspace": Ablate(Subspace.spanned(2, torch.eye(32)[:3]), to=torch.tensor([1.0, 2.0, 3.0]), layers=(1, 2, 3)),
    }


def by_hand(name: str, h: np.ndarray, vector: PersonaVector, layer: int, reference) -> np.ndarray:
    v = vector.at(layer)
    if name == "add":
        return reference.add(h, 1.5 * v.double().numpy())
    if name == "add_norm":
        return reference.add(h, -0.5 * (7.0 + layer) * reference.unit(v))
    if name == "ablate":
        return reference.set(h, v, 0.0)
    if name == "ablate_mean":
        return reference.set(h, v, float(layer))
    if name == "set":
        return reference.set(h, v, LEVELS.reference[layer] - LEVELS.shift[layer])
    if name == "cap":
        return reference.cap(h, v, 0.5)
    if name == "floor":
        return reference.floor(h, v, layer - 1.0)
    return np.concatenate([[1.0, 2.0, 3.0], h[3:]])


NAMES = ["add", "add_norm", "ablate", "ablate_mean", "set", "cap", "floor", "subspace"]


@pytest.mark.parametrize("name", NAMES)
def test_against_loops(name: str, vector: PersonaVector, batch, mask, reference) -> None:
    operator = everyone(vector)[name]
    for layer in vector.layers:
        kept = batch.clone()
        after = operator(batch, layer=layer, mask=mask)
        assert torch.equal(batch, kept), "edited in place"
        assert torch.equal(after[~mask], batch[~mask]), "touched what is not masked"
        for at in mask.nonzero().tolist():
            hand = by_hand(name, batch[tuple(at)].double().numpy(), vector, layer, reference)
            np.testing.assert_allclose(after[tuple(at)].numpy(), hand, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_dtype_and_gradients(name: str, vector: PersonaVector, batch, mask) -> None:
    operator = everyone(vector)[name]
    assert operator(batch.bfloat16(), layer=2, mask=mask).dtype == torch.bfloat16
    wide = operator(batch.double(), layer=2, mask=mask)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), operator(batch, layer=2, mask=mask), atol=1e-5, rtol=1e-5)
    leaf = batch.clone().requires_grad_()
    operator(leaf, layer=2, mask=mask).sum().backward()
    assert leaf.grad is not None and torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("name", ["ablate", "ablate_mean", "set", "cap", "floor", "subspace"])
def test_setting_twice_is_setting_once(name: str, vector: PersonaVector, batch, mask) -> None:
    operator = everyone(vector)[name]
    once = operator(batch, layer=2, mask=mask)
    torch.testing.assert_close(operator(once, layer=2, mask=mask), once, atol=1e-5, rtol=1e-5)


def test_identities(vector: PersonaVector, batch, mask) -> None:
    def run(operator) -> torch.Tensor:
        return operator(batch, layer=2, mask=mask)

    assert torch.equal(run(Add(vector, strength=0.0, unit="raw")), batch)
    added, taken = (run(Add(vector, strength=s, unit="raw")) for s in (2.0, -2.0))
    torch.testing.assert_close(added + taken, 2 * batch, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(run(Add(vector, strength=1.0, unit="raw")), run(Add(-vector, strength=-1.0, unit="raw")))
    torch.testing.assert_close(run(Cap(vector, ceiling=0.3)), run(Floor(-vector, floor=-0.3)))
    torch.testing.assert_close(run(Ablate(vector)), run(Ablate(-5.0 * vector)))
    both = Levels({2: 7.0}, {2: 0.0})
    torch.testing.assert_close(run(Ablate(vector.only(2), to=7.0)), run(SetProjection(vector.only(2), both, dose=9.0)))
    line = Subspace.spanned(2, vector.at(2)[None])
    torch.testing.assert_close(run(Ablate(line)), run(Ablate(vector)), atol=1e-5, rtol=1e-5)


def test_units_of_strength(vector: PersonaVector) -> None:
    for unit, size in {"raw": vector.norm(2), "resid_norm": 9.0, "delta_norm": 4.0}.items():
        step = Add(vector, strength=-0.5, unit=unit).steps[2]
        assert float(step.norm()) == pytest.approx(0.5 * size, rel=1e-5)
        assert float(step @ vector.at(2)) < 0


def test_operator_refusals(vector: PersonaVector) -> None:
    space = Subspace.spanned(2, torch.eye(32)[:2])
    for words, act in {
        "no resid_norm": lambda: Add(replace(vector, resid_norms={}), strength=1.0, unit="resid_norm"),
        "blocks": lambda: Ablate(vector, layers=(0,)),
        "rank 2 to one number": lambda: Ablate(space, to=1.0),
        "2 dimensions": lambda: Ablate(space, to=torch.ones(3)),
        "nothing given for block 2": lambda: Cap(vector, ceiling={1: 0.0}),
        "no shift for block 1": lambda: SetProjection(vector, Levels(LEVELS.reference, {}), dose=0.0),
        "is zero": lambda: Ablate(vector - vector),
    }.items():
        with pytest.raises(InputError, match=words):
            act()
    for wrong in (  # refused by the annotations here, by name outside the tests
        lambda: Add(vector, strength=1.0, unit="cm"),  # type: ignore[arg-type]
        lambda: Ablate(vector, positions="some"),  # type: ignore[arg-type]
        lambda: Ablate(vector, to="mean"),  # type: ignore[arg-type]
    ):
        with pytest.raises((InputError, TypeError)):
            wrong()


def test_quantile_bounds(activations, vector: PersonaVector) -> None:
    floors = projection_quantile(activations, vector, 0.25)
    for layer, floor in floors.items():
        below = (vector.project(activations.at(layer), layer) < floor).float().mean()
        assert float(below) == pytest.approx(0.25, abs=0.02)
    with pytest.raises(InputError, match="quantile"):
        projection_quantile(activations, vector, 1.5)


def test_inside_a_model_projections_are_what_was_asked(
    tiny_model: Model, tiny_conversations: list[Conversation], vector: PersonaVector
) -> None:
    operator = SetProjection(vector.only(1, 3), LEVELS, dose=2.0)
    rendered = render(tiny_model.tokenizer, tiny_conversations)
    active = rendered.response | rendered.last_prompt
    before = capture_blocks(tiny_model, rendered, [0, 1, 3])
    with tiny_model.intervene(operator):
        after = capture_blocks(tiny_model, rendered, [0, 1, 3])
    for place, layer in enumerate((1, 3), 1):
        found = vector.project(after[place], layer)[active]
        torch.testing.assert_close(found, torch.full_like(found, operator.target(layer)), atol=1e-4, rtol=1e-4)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1][~active], before[1][~active])
    assert torch.equal(capture_blocks(tiny_model, rendered, [1])[0], before[1]), "the hooks stayed"


def test_generation_is_steered_and_restored(tiny_model: Model, tiny_conversations, vector: PersonaVector) -> None:
    prompts = [row.prompt for row in tiny_conversations]

    def write(*operators) -> list[str]:
        return sample(tiny_model, prompts, seed=1, max_new_tokens=6, operators=operators)

    plain = write()
    assert write(Add(vector, strength=0.0, unit="raw")) == plain
    assert write(Add(vector, strength=4.0, unit="raw")) != plain
    assert write(Ablate(vector, layers=(3,))) != plain
    assert write() == plain


def test_ablation_on_all_positions_leaves_nothing(tiny_model: Model, tiny_conversations, vector: PersonaVector) -> None:
    with tiny_model.intervene(Ablate(vector)):
        acts = capture(tiny_model, tiny_conversations, layers=[1, 2, 3], pool="tokens")
    for layer in (1, 2, 3):
        assert vector.project(acts.at(layer), layer).abs().max() < 1e-4
