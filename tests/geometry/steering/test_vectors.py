"""Persona vectors and subspaces: their algebra, their measures, their refusals."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geometry import PersonaVector, Subspace
from probes import InputError

factors = st.floats(-50, 50).filter(lambda x: abs(x) > 1e-3)


def small(*numbers: float, layer: int = 1) -> PersonaVector:
    return PersonaVector({layer: torch.tensor(numbers)}, model="m")


def test_algebra(vector: PersonaVector, other: PersonaVector) -> None:
    assert vector * 20 == -(vector * -20)
    assert vector * 2 == 2 * vector == vector + vector
    assert vector / 4 == vector * 0.25
    assert vector + other == other + vector
    assert vector - other == vector + -other
    assert vector != other and vector != vector.only(1, 2) and vector != "vector"
    for layer in vector.layers:
        torch.testing.assert_close((vector + other - other).at(layer), vector.at(layer), atol=1e-5, rtol=0)


@given(factors)
def test_scaling_keeps_units_and_cosines(factor: float) -> None:
    one, two = small(3.0, 4.0, 0.0), small(1.0, 2.0, 2.0)
    sign = 1 if factor > 0 else -1
    torch.testing.assert_close((one * factor).unit(1), one.unit(1) * sign)
    assert (one * factor).cosine(two)[1] == pytest.approx(sign * one.cosine(two)[1], abs=1e-6)
    assert (one * factor).norm(1) == pytest.approx(abs(factor) * 5, rel=1e-6)


def test_measures() -> None:
    one, two = small(3.0, 4.0, 0.0), small(0.0, 0.0, 2.0)
    assert one.cosine(two) == {1: 0.0} and one.cosine(one)[1] == pytest.approx(1)
    torch.testing.assert_close(one.unit(1), torch.tensor([0.6, 0.8, 0.0]))
    acts = torch.tensor([[[1.0, 1.0, 9.0], [0.0, 0.0, 1.0]]])
    torch.testing.assert_close(one.project(acts, 1), torch.tensor([[1.4, 0.0]]))
    torch.testing.assert_close(one.project(acts.double(), 1), torch.tensor([[1.4, 0.0]]).double(), atol=1e-7, rtol=0)


def test_the_callers_tensor_stays_apart() -> None:
    mine = torch.ones(3, requires_grad=True)
    vector = PersonaVector({0: mine}, model="m")
    with torch.no_grad():
        mine.add_(1)
    assert vector.at(0).tolist() == [1, 1, 1] and not vector.at(0).requires_grad


def test_parts_and_notes(vector: PersonaVector, other: PersonaVector) -> None:
    part = vector.only(3, 1)
    assert part.layers == (1, 3) and set(part.resid_norms) == {1, 3} and torch.equal(part.at(3), vector.at(3))
    copied = vector.spread(2, range(4))
    assert copied.layers == (0, 1, 2, 3) and all(torch.equal(copied.at(i), vector.at(2)) for i in range(4))
    total = vector + replace(other, method="otherwise")
    assert total.method == "made up + otherwise" and total.model == "tiny" and total.split_half == {}
    assert (vector * 2).split_half == vector.split_half and (vector * 2).delta_norms == vector.delta_norms


def test_vector_refusals(vector: PersonaVector) -> None:
    refused = {
        "at least one": lambda: PersonaVector({}, model="m"),
        "widths": lambda: PersonaVector({0: torch.ones(2), 1: torch.ones(3)}, model="m"),
        "counted from 0": lambda: PersonaVector({-1: torch.ones(2)}, model="m"),
        "not finite": lambda: PersonaVector({0: torch.tensor([1.0, torch.nan])}, model="m"),
        "blocks (1, 2, 3)": lambda: vector.at(0),
        "is zero": lambda: (vector - vector).unit(1),
        "divided by 0": lambda: vector / 0,
        ".only(...)": lambda: vector + vector.only(1),
        "share none": lambda: vector.only(1).cosine(vector.only(2)),
    }
    for words, act in refused.items():
        with pytest.raises(InputError) as error:
            act()
        assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(TypeError):
        vector + 1  # type: ignore[operator]
    with pytest.raises(TypeError):
        vector * vector  # type: ignore[operator]


def test_html_is_escaped(vector: PersonaVector) -> None:
    html = replace(vector, model="<script>", method="a & b")._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "a &amp; b" in html
    assert "PersonaVector" in repr(vector)


def test_subspace() -> None:
    rows = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    space = Subspace.spanned(2, rows, made="here")
    torch.testing.assert_close(space.basis @ space.basis.T, torch.eye(3))
    inside = torch.tensor([0.3, -1.0, 2.0]) @ rows
    torch.testing.assert_close(space.project(inside) @ space.basis, inside, atol=1e-5, rtol=1e-5)
    assert space.rank == 3 and space.meta["made"] == "here"
    assert space.overlap(space) == pytest.approx(1, abs=1e-6)
    assert space.overlap(Subspace.spanned(2, rows[:1])) == pytest.approx(1, abs=1e-6)
    away = torch.linalg.qr(torch.cat([rows, torch.eye(10)]).T).Q.T[3:5]
    assert space.overlap(Subspace(2, away)) == pytest.approx(0, abs=1e-6)


def test_random_subspaces_share_what_the_docstring_says() -> None:
    g = torch.Generator().manual_seed(3)
    one = Subspace.spanned(0, torch.randn(4, 40, generator=g))
    shared = [one.overlap(Subspace.spanned(0, torch.randn(2, 40, generator=g))) for _ in range(400)]
    assert sum(shared) / 400 == pytest.approx(4 / 40, abs=0.01)


def test_subspace_refusals() -> None:
    for words, act in {
        "not orthonormal": lambda: Subspace(0, torch.ones(2, 4)),
        "span less": lambda: Subspace.spanned(0, torch.ones(2, 4)),
        "rank 5": lambda: Subspace(0, torch.ones(5, 4)),
    }.items():
        with pytest.raises(InputError, match=words):
            act()
