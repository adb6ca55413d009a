"""Random controls: what they share with the treatment, what they do not, and that they are reproducible."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from geometry import (
    Ablate,
    Add,
    AddLatent,
    Cap,
    ClampLatent,
    Floor,
    Levels,
    PersonaVector,
    SetProjection,
    Subspace,
    edit_sizes,
    random_controls,
    random_covariance,
    random_latent_controls,
    random_latents,
    random_like,
    random_projections,
    random_subspaces,
)
from geometry.steering.random_controls import displacement
from probes import Activations, InputError, Model, capture
from saes import LatentStats


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gram(vector: PersonaVector) -> np.ndarray:
    stack = np.stack([vector.at(i).double().numpy() for i in vector.layers])
    return stack @ stack.T


def test_rotations_keep_norms_and_angles_between_blocks(vector: PersonaVector) -> None:
    related = vector + vector.spread(1, vector.layers) * 3  # directions of different blocks are alike, as in life
    drawn = random_like(related, 20, rng())
    for one in drawn:
        np.testing.assert_allclose(gram(one), gram(related), rtol=1e-4, atol=1e-3)
    cosines = [abs(one.cosine(related)[2]) for one in drawn]
    assert max(cosines) < 0.7 and np.mean(cosines) == pytest.approx(np.sqrt(2 / np.pi / 32), abs=0.06)
    assert drawn[0].resid_norms == related.resid_norms and "random" in drawn[0].method


def test_one_direction_at_all_blocks_stays_one(vector: PersonaVector) -> None:
    (one,) = random_like(vector.spread(1, (0, 1, 2, 3)), 1, rng())
    assert one.only(0).at(0).tolist() == pytest.approx(one.at(3).tolist(), abs=1e-5)


def test_draws_are_reproducible_and_leave_the_global_state_alone(vector: PersonaVector, activations) -> None:
    state = torch.random.get_rng_state()
    assert random_like(vector, 3, rng(1)) == random_like(vector, 3, rng(1)) != random_like(vector, 3, rng(2))
    assert random_covariance(activations, vector, 2, rng(1)) == random_covariance(activations, vector, 2, rng(1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_covariance_draws_lie_where_activations_vary(vector: PersonaVector, activations: Activations) -> None:
    drawn = random_covariance(activations, vector, 400, rng())
    for layer in vector.layers:
        assert all(one.norm(layer) == pytest.approx(vector.norm(layer), rel=1e-4) for one in drawn[:5])
        units = np.stack([one.unit(layer).double().numpy() for one in drawn])
        covariance = np.cov(activations.at(layer).double().numpy().T)
        found = units.T @ units / len(units)
        assert np.corrcoef(found.ravel(), covariance.ravel())[0, 1] > 0.9
    alike = [one.cosine(PersonaVector({1: one.at(2)}, model="m"))[1] for one in drawn[:20]]
    assert min(alike) > 0.5, "blocks were drawn apart"


def test_setting_controls_move_as_far_as_the_treatment(vector: PersonaVector, activations: Activations) -> None:
    treated = SetProjection(vector.only(2, 3), Levels({2: 1.0, 3: -2.0}, {2: 4.0, 3: 3.0}), dose=-1.0)
    moved = displacement(treated, activations)
    for kind in ("norm", "covariance"):
        controls = random_controls(treated, 20, rng(), activations=activations, kind=kind)
        assert {control.positions for control in controls} == {treated.positions}
        signs = set()
        for control in controls:
            assert isinstance(control, SetProjection) and control.layers == (2, 3)
            own = displacement(control, activations)
            assert [abs(own[i]) for i in (2, 3)] == pytest.approx([abs(moved[i]) for i in (2, 3)], rel=1e-4)
            ratio = own[2] / moved[2]
            assert own[3] / moved[3] == pytest.approx(ratio, rel=1e-3)
            signs.add(round(ratio))
        assert signs == {1, -1}


def test_ablation_and_addition_controls(vector: PersonaVector, activations: Activations) -> None:
    ablated = random_controls(Ablate(vector), 3, rng(), activations=activations)
    assert all(isinstance(one, SetProjection) and one.positions == "all" for one in ablated)
    added = random_controls(Add(vector, strength=0.4, unit="resid_norm", layers=(2,)), 3, rng())
    for one in added:
        assert isinstance(one, Add) and one.layers == (2,) and one.strength == 0.4
        assert float(one.steps[2].norm()) == pytest.approx(0.4 * 9, rel=1e-4)


def test_bounds_cut_at_the_same_quantile(vector: PersonaVector, activations: Activations) -> None:
    part = vector.only(2)
    lengths = part.project(activations.at(2), 2)
    ceiling = float(lengths.quantile(0.8))
    for operator, name in ((Cap(part, ceiling=ceiling), "ceiling"), (Floor(part, floor=ceiling), "floor")):
        for control in random_controls(operator, 4, rng(), activations=activations):
            own = control.vector.project(activations.at(2), 2)
            assert float((own <= getattr(control, name)[2]).float().mean()) == pytest.approx(0.8, abs=0.03)


def test_sized_controls_push_as_hard_as_the_treatment(vector: PersonaVector, activations: Activations) -> None:
    levels = Levels({2: 1.0, 3: -2.0}, {2: 4.0, 3: 3.0})
    space = Subspace.spanned(2, torch.randn(3, 32, generator=rng()))
    for operator in (SetProjection(vector, levels, dose=0, layers=(2, 3)), Cap(vector, ceiling=0.0), Ablate(space)):
        sizes = {layer: 1.5 * layer for layer in operator.layers}
        for kind in ("norm", "covariance"):
            controls = random_controls(operator, 6, rng(), sizes=sizes, activations=activations, kind=kind)
            assert {control.positions for control in controls} == {operator.positions}
            for control in controls:
                assert isinstance(control, Add) and control.layers == operator.layers
                norms = [float(control.steps[layer].norm()) for layer in control.layers]
                assert norms == pytest.approx([sizes[layer] for layer in control.layers], rel=1e-4)
    with pytest.raises(InputError, match="none given for block 3"):
        random_controls(SetProjection(vector, levels, dose=0, layers=(2, 3)), 2, rng(), sizes={2: 1.0})


def test_edit_sizes(tiny_model: Model, tiny_conversations, vector: PersonaVector, sae) -> None:
    add = Add(vector, strength=-0.5, unit="raw")
    sizes = edit_sizes(tiny_model, add, tiny_conversations)
    assert sizes == pytest.approx({layer: 0.5 * vector.norm(layer) for layer in vector.layers}, rel=1e-4)

    operator = SetProjection(vector, Levels({1: 3.0, 3: -2.0}, {1: 0.0, 3: 0.0}), dose=0, layers=(1, 3))
    plain = capture(tiny_model, tiny_conversations, layers=[1], pool="tokens")
    with tiny_model.intervene(replace(operator, layers=(1,))):
        edited = capture(tiny_model, tiny_conversations, layers=[3], pool="tokens")
    by_hand = {
        1: 3.0 - vector.project(plain.at(1)[plain.in_response], 1),
        3: -2.0 - vector.project(edited.at(3)[edited.in_response], 3),
    }
    rms = {layer: float(change.square().mean().sqrt()) for layer, change in by_hand.items()}
    assert edit_sizes(tiny_model, operator, tiny_conversations, batch_size=2) == pytest.approx(rms, rel=1e-3)

    everywhere = edit_sizes(tiny_model, Ablate(vector, layers=(1,)), tiny_conversations)
    assert everywhere[1] == pytest.approx(float(vector.project(plain.at(1), 1).square().mean().sqrt()), rel=1e-3)
    assert edit_sizes(tiny_model, ClampLatent(sae, 3, delta=2.0), tiny_conversations)[2] == pytest.approx(3.0, rel=1e-3)


def test_subspace_controls(activations: Activations) -> None:
    space = Subspace.spanned(2, torch.randn(3, 32, generator=rng()))
    assert all(one.rank == 3 and one.layer == 2 for one in random_subspaces(space, 2, rng()))
    treated = Ablate(space, to=torch.tensor([4.0, 0.0, -3.0]))
    mean = activations.at(2).mean(0)
    length = float((treated.frames[2].low - space.project(mean)).norm())
    for control in random_controls(treated, 5, rng(), activations=activations):
        basis, target, _ = control.frames[2]
        assert float((target - basis @ mean).norm()) == pytest.approx(length, rel=1e-4)


def test_random_latents_fire_alike(sae) -> None:
    frequency = torch.logspace(-4, -0.1, 64).double()
    stats = LatentStats(mean=frequency, freq=frequency, n=10_000)
    draws = random_latents(sae, stats, (40, 10), 15, rng())
    assert len(draws) == 15 and all(len(set(one)) == 2 and not set(one) & {40, 10} for one in draws)
    for place, latent in enumerate((40, 10)):
        gaps = [abs(float((frequency[one[place]] / frequency[latent]).log10())) for one in draws]
        assert max(gaps) < 1.4
    assert draws == random_latents(sae, stats, (40, 10), 15, rng())
    kept = [i for one in random_latents(sae, stats, (40, 10), 30, rng(), without=tuple(range(36, 45))) for i in one]
    assert not set(kept) & {10, *range(36, 45)} and set(range(36, 45)) & {i for one in draws for i in one}
    clamps = random_latent_controls(ClampLatent(sae, 40, to=-1.0), stats, 3, rng())
    assert all(one.to == -1.0 and one.indices != (40,) for one in clamps)
    adds = random_latent_controls(AddLatent(sae, (40, 10), strength=0.5, norm=2.0), stats, 3, rng())
    assert all(float(one.step.norm()) == pytest.approx(2**0.5, rel=0.5) for one in adds)


def test_control_refusals(vector: PersonaVector, activations: Activations, sae) -> None:
    settled = SetProjection(vector, Levels(dict.fromkeys((1, 2, 3), 0.0), dict.fromkeys((1, 2, 3), 1.0)), dose=0.0)
    for words, act in {
        "needs activations=": lambda: random_controls(settled, 2, rng()),
        "random_latent_controls": lambda: random_controls(ClampLatent(sae, 1, to=0.0), 2, rng()),
        "0 random controls": lambda: random_like(vector, 0, rng()),
        "at least 2": lambda: random_covariance(activations.select(torch.tensor([0])), vector, 2, rng()),
    }.items():
        with pytest.raises(InputError, match=words):
            act()


def test_the_same_rule_on_random_directions_uses_their_own_levels(vector: PersonaVector, activations) -> None:
    """Each control sets its direction to base mean + dose x (tuned - base), both measured on that direction."""
    tuned = replace(activations, values=activations.values + torch.randn(1, 1, activations.values.shape[-1]))
    treated = SetProjection(vector, Levels({1: 5.0, 2: 7.0}, {1: 90.0, 2: 80.0}), dose=-0.5, layers=(1, 2))
    made = random_projections(treated, 4, rng(), base=activations, tuned=tuned)
    assert len(made) == 4 and all(isinstance(one, SetProjection) and one.layers == (1, 2) for one in made)
    for one in made:
        for layer in (1, 2):
            unit = one.vector.unit(layer).double()
            low, high = (float(acts.at(layer).double().mean(0) @ unit) for acts in (activations, tuned))
            assert one.target(layer) == pytest.approx(low - 0.5 * (high - low), abs=1e-4)
            assert abs(float(unit @ vector.unit(layer).double())) < 0.9
