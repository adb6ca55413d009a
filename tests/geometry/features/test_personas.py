"""Persona space: components against scikit-learn, a planted plane, stability, the assistant axis by hand."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from geometry.features import assistant_axis, persona_space
from geometry.steering.vectors import PersonaVector
from probes.errors import InputError


def vector(direction, *, model="m", layers=(2, 5)):
    return PersonaVector({layer: torch.as_tensor(direction) * (1 + layer) for layer in layers}, model=model)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def cast():
    """Eight characters of width 12 in a plane, with little noise."""
    rows = random(8, 2) @ (torch.eye(12)[:2] * torch.tensor([[3.0], [1.5]])) + 0.05 * random(8, 12, seed=1) + 1
    return {f"role {i}": vector(row) for i, row in enumerate(rows)}


def test_components_equal_scikit_learns(cast):
    space = persona_space(cast, layer=2)
    rows = np.stack([v.at(2).double().numpy() for v in cast.values()])
    peer = PCA(n_components=7).fit(rows)
    assert np.allclose(space.explained, peer.explained_variance_ratio_, atol=1e-9)
    assert np.allclose(space.coordinates.abs(), np.abs(peer.transform(rows)), atol=1e-6)
    assert torch.allclose(space.coordinates @ space.components + space.mean, torch.from_numpy(rows), atol=1e-6)
    assert space.dimensions(0.95) == 2 and space.dimensions(1.0) == 7
    assert (space.coordinates.gather(0, space.coordinates.abs().argmax(0)[None]) > 0).all()


def test_a_plane_is_stable_and_noise_is_not(cast):
    space = persona_space(cast, layer=5)
    assert min(space.stability[:2]) > 0.7 > min(space.stability[2:])
    table = space.table()
    assert list(table.columns) == ["persona", *(f"pc{i}" for i in range(1, 8))] and len(table) == 8
    figure = space.figure()
    assert list(figure.data[0].text) == list(cast) and "first component" in figure.layout.xaxis.title.text


def test_rotation_and_order_change_nothing(cast):
    space = persona_space(cast, layer=2)
    rotation = torch.linalg.qr(random(12, 12, seed=3)).Q
    turned = {name: PersonaVector({2: v.at(2) @ rotation}, model="m") for name, v in cast.items()}
    other = persona_space(dict(reversed(turned.items())), layer=2)
    assert other.explained == pytest.approx(space.explained, abs=1e-6)
    assert torch.allclose(other.coordinates[:, :2].flip(0), space.coordinates[:, :2], atol=1e-4)
    longer = {name: v * (2.0 + i) for i, (name, v) in enumerate(cast.items())}
    units = [persona_space(one, layer=2, unit=True).explained for one in (cast, longer)]
    assert units[0] == pytest.approx(units[1], abs=1e-6)


def test_the_assistant_axis_points_from_the_roles_to_the_assistant(cast):
    default = vector(random(12, seed=9), layers=(2, 3, 5))
    axis = assistant_axis(cast, default)
    assert axis.layers == (2, 5) and axis.method == "assistant axis"
    for layer in axis.layers:
        expected = default.at(layer) - sum(v.at(layer) for v in cast.values()) / 8
        assert torch.allclose(axis.at(layer), expected, atol=1e-5)
    contrasts = {name: v - default.only(2, 5) for name, v in cast.items()}
    relative = assistant_axis(contrasts)
    assert all(torch.allclose(relative.at(layer), axis.at(layer), atol=1e-5) for layer in (2, 5))
    space = persona_space(cast, layer=2)
    cosines = torch.tensor(space.axis_cosine(axis))
    unit = axis.unit(2).double()
    inside = (space.components @ unit).norm()
    assert cosines.norm() == pytest.approx(float(inside)) and inside <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cast: persona_space(dict(list(cast.items())[:2]), layer=2), "2 characters"),
        (lambda cast: persona_space({name: cast["role 0"] for name in "abc"}, layer=2), "the same"),
        (lambda cast: persona_space(cast | {"x": vector(random(7))}, layer=2), "widths"),
        (lambda cast: persona_space(cast | {"x": vector(random(12), model="n")}, layer=2), "models"),
        (lambda cast: persona_space(cast, layer=4), "layer 4"),
        (lambda cast: persona_space(cast, layer=2).dimensions(0.0), "share=0.0"),
        (lambda cast: assistant_axis({}), "no roles"),
        (lambda cast: assistant_axis(cast, vector(random(12), layers=(9,))), "no block in common"),
    ],
)
def test_bad_casts_are_refused(cast, call, message):
    with pytest.raises(InputError, match=message):
        call(cast)
